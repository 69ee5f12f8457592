"""What the command line answers to files of sensors: the protocol's answer to each kind of bad input, exit code 2, and a plan
where the input is good."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stlab.training.trial import dataset_for

STUDY = """\
name: net
base:
  data: {path: good.npz, family: sensors}
  model: {name: last_value}
"""
STEPS, NODES = 400, 7
TIMES = np.datetime64("2018-01-01", "s") + np.arange(STEPS) * np.timedelta64(300, "s")
Say = Callable[..., Any]


def pems(channels: int = 3) -> np.ndarray:
    """Flow, occupancy and speed as in a PEMS file, without timestamps."""
    return np.random.default_rng(0).uniform(5, 90, (STEPS, NODES, channels)).round(1)


def _with(index: tuple[int, ...], value: float) -> np.ndarray:
    data = pems()
    data[index] = value
    return data


# name → (arrays of the file, what the message must say beside the file's name)
BAD_ARRAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "wrong_key": ({"flow": pems()}, ["no array `data`", "there: flow", "Save"]),
    "rank": ({"data": pems()[:, 0, 0]}, ["`data` has 1 axes", "(400,)", "(T, N, C)", "(T, 1)"]),
    "stray_nan": ({"data": _with((11, 3, 0), np.nan)}, ["1 of 2800", "T=11, N=3, C=0", "data.missing", "interpolate"]),
    "half_inf": ({"data": _with((5, 2, 0), np.inf).astype(np.float16)}, ["1 of 2800", "T=5, N=2, C=0", "inf"]),
    "double": ({"data": _with((6, 1, 2), 1e39)}, ["1 values", "`data`", "T=6, N=1, C=2", "float32"]),
    "pickled": ({"data": np.array([[{}] * NODES] * STEPS, dtype=object)}, ["`data`", "pickled", "refused", "float32"]),
    "text": ({"data": pems().astype(str)}, ["`data`", "not real numbers", "float32"]),
    "short": ({"data": pems()[:100]}, ["100 steps are too few", "12 + 12 = 24", "At least 118"]),
    "few_times": ({"data": pems(), "timestamps": TIMES[:-1]}, ["`timestamps`", "(399,)", "400 steps"]),
    "irregular": (
        {"data": pems(), "timestamps": np.where(np.arange(STEPS) < 60, TIMES, TIMES + np.timedelta64(600, "s"))},
        ["`timestamps`", "irregular", "index 59", "index 60", "900 s", "300 s", "even step"],
    ),
    "no_reading": ({"data": np.zeros((STEPS, NODES, 1))}, ["no reading in the train segment", "data.null: none"]),
}


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "net.yaml").write_text(STUDY)
    return "net.yaml"


def _refused(answer: Any, *words: str) -> None:
    """Exit code 2, one message that says all this, no traceback."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err + answer.out
    missing = [word for word in words if word not in answer.err]
    assert not missing, f"{missing} not in: {answer.err}"


def _planned(answer: Any) -> None:
    """Exit code 0; what the process has read is forgotten, as the tests write files anew under one name."""
    assert answer.code == 0, answer.err
    dataset_for.cache_clear()


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(case: str, study: str, say: Say) -> None:
    arrays, words = BAD_ARRAYS[case]
    path = f"{case}.npz"
    with np.errstate(over="ignore"):
        np.savez(path, **arrays)
    _refused(say("plan", study, "--set", f"data.path={path}"), path, *words)
    _refused(say("data", "inspect", path, "--set", "data.family=sensors"), path, *words)
    assert not list(Path.cwd().rglob("trial.json"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32])
def test_pems_shaped_files_are_planned(channels: int, kind: type, study: str, say: Say) -> None:
    np.savez("good.npz", data=pems(channels).astype(kind))
    _planned(say("plan", study))
    last = say("plan", study, "--set", "data.channel=2")
    if channels == 3:
        _planned(last)
    else:
        _refused(last, "good.npz", "`data` has 1 channels", "data.channel=2", "Set data.channel to 0")


def test_missing_readings_are_masked_and_gaps_filled_on_request(study: str, say: Say) -> None:
    data = pems()
    data[::5] = 0
    np.savez("good.npz", data=data)
    _planned(say("plan", study))
    data[7, 2] = np.nan
    np.savez("good.npz", data=data)
    _refused(say("plan", study), "1 of 2800", "T=7, N=2, C=0", "missing readings")
    for method in ("zero", "interpolate"):
        _planned(say("plan", study, "--set", f"data.missing={method}"))


def test_a_network_that_is_read_as_a_grid_is_told_its_family(study_text: str, say: Say) -> None:
    np.savez("pems.npz", data=pems())
    Path("tiny.yaml").write_text(study_text)
    for command in (("data", "inspect", "pems.npz"), ("plan", "tiny.yaml", "--set", "data.path=pems.npz")):
        _refused(say(*command), "pems.npz", "3 axes", "(400, 7, 3)", "data.family: sensors")
    _refused(say("plan", "tiny.yaml", "--set", "data.channel=1"), "data.channel=1", "is for sensors", "data.family: sensors")
    pd.DataFrame(pems()[:, :, 0]).to_csv("table.csv")
    _refused(say("plan", "tiny.yaml", "--set", "data.path=table.csv"), "table.csv", "data.family: sensors")


def test_tables_are_refused_with_line_and_row(study: str, say: Say) -> None:
    table = pd.DataFrame(pems()[:, :, 0], index=pd.DatetimeIndex(TIMES), columns=[f"s{i}" for i in range(NODES)])
    table.to_csv("table.csv")
    command = ("plan", study, "--set", "data.path=table.csv")
    _planned(say(*command))
    lines = Path("table.csv").read_text().splitlines()
    Path("table.csv").write_text("\n".join([*lines[:40], lines[40].rpartition(",")[0] + ",?", *lines[41:]]))
    _refused(say(*command), "table.csv", "line 41", "sensor s6", "'?' is no number")
    Path("table.csv").write_text("\n".join([*lines[:40], *lines[41:]]))
    _refused(say(*command), "table.csv", "irregular", "index 38", "index 39", "600 s")
    rows = table.stack().rename("value").rename_axis(["timestamp", "node"]).reset_index()
    pd.concat([rows, rows.iloc[[3]]]).to_parquet("long.parquet")
    _refused(say("plan", study, "--set", "data.path=long.parquet"), "long.parquet", "1 readings appear twice", "node s3")


def test_pickles_are_refused_in_every_format(study: str, say: Say) -> None:
    pytest.importorskip("tables", reason="pandas writes HDF5 with it")
    Path("speeds.pkl").write_bytes(pickle.dumps(pems()))
    _refused(say("plan", study, "--set", "data.path=speeds.pkl"), "speeds.pkl", "pickled, which is refused", "np.savez")
    table = pd.DataFrame(pems()[:, :, 0], index=pd.DatetimeIndex(TIMES))
    with pytest.warns(pd.errors.PerformanceWarning):
        table.assign(note=pd.Series([{}] * STEPS, index=TIMES, dtype=object)).to_hdf("metr-la.h5", key="df")
    _refused(say("plan", study, "--set", "data.path=metr-la.h5"), "metr-la.h5", "pickled", "refused")
    np.savez("good.npz", data=pems())
    _refused(say("plan", study, "--set", "data.distances=adj.pkl"), "adj.pkl", "pickled", "data.distances")


def test_times_that_are_given(study: str, say: Say) -> None:
    np.savez("good.npz", data=pems())
    given = ("--set", "data.start=2018-01-01", "--set", "data.step_minutes=5")
    _planned(say("plan", study, *given))
    _refused(say("plan", study, *given[:2]), "start and step_minutes go together")
    _refused(say("plan", study, "--set", "data.start=tomorrow", *given[2:]), "data.start=tomorrow", "ISO time")
    np.savez("good.npz", data=pems(), timestamps=TIMES)
    _refused(say("plan", study, *given), "good.npz", "timestamps of its own", "Leave data.start")


def test_inspect_says_what_a_network_holds(say: Say) -> None:
    data = pems(1)
    data[:, 4] = 0
    np.savez("pems.npz", data=data)
    answer = say("data", "inspect", "pems.npz", "--set", "data.family=sensors")
    for words in ("(T 400, N 7, C 1), sensors", "14.3 % (0 means none)", "1 without a reading", "train segment: 4", "data.start"):
        assert words in answer.out, answer.out
    _planned(answer)


def test_a_wrong_null_says_what_is_allowed(study: str, say: Say) -> None:
    np.savez("good.npz", data=pems())
    _refused(say("plan", study, "--set", "data.null=many"), "data.null=many", "'auto'", "a number")
    for value in ("auto", "none", "0", "-1", "null"):
        _planned(say("plan", study, "--set", f"data.null={value}"))
