"""The report folder of small studies written through the results API: complete, partial, on a grid and on sensors."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stlab.errors import ProtocolMismatch, UserError
from stlab.report import write_report
from stlab.report.predictions import read_predictions
from stlab.storage import Store, StudyDirectory, TrialDirectory

WINDOWS, HORIZON = 30, 3
START = np.datetime64("2024-03-04T00:00", "s")


def protocol(**more: Any) -> str:
    fields = {
        "protocol": "forecast", "data_sha256": "ab" * 32, "family": "grid", "channels": 2, "history": 6,
        "horizon": HORIZON, "split": [0.7, 0.15, 0.15], "scaler": "min-max", "mask": None, "scale": 1.0,
    }  # fmt: skip
    return json.dumps(fields | more)


def truth(shape: tuple[int, ...]) -> np.ndarray:
    """(windows, horizon, *shape): a daily wave; the last cell is the busiest."""
    hour = np.arange(WINDOWS)[:, None] + 6 + np.arange(HORIZON)
    level = np.arange(1, np.prod(shape) + 1).reshape(shape)
    return (1.5 + np.sin(2 * np.pi * hour / 24)).reshape(WINDOWS, HORIZON, *(1,) * len(shape)) * level


def write_trial(store: Store, variant: str, seed: int, shape: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Write a finished, tested trial whose forecast is the truth plus noise; returns its row."""
    directory = TrialDirectory(store, f"{re.sub(r'[^a-z0-9]', '', variant)}{seed}")
    noise, baseline = more.get("noise", 1.0), more.get("baseline", False)
    measured = truth(shape)
    error = np.random.default_rng(seed).normal(0, noise, measured.shape)
    rmse, mae = float(np.sqrt((error**2).mean())), float(np.abs(error).mean())
    trial = {
        "seed": seed, "baseline": baseline, "dataset": "bike", "synthetic": False, "leaks": False,
        "protocol": protocol(), "data_sha256": "ab" * 32, "code_version": "0.1.0+abc", "weights": "random",
        "model": {"name": variant},
    }  # fmt: skip
    directory.write_trial(trial | more.get("trial", {}))
    curve = [rmse * (1 + 2 / epoch) for epoch in (1, 2, 3)] + [rmse, rmse * 1.1]
    if not baseline:
        directory.write_epochs([{"epoch": i + 1, "step": i, "loss": 1.0, "val_rmse": v} for i, v in enumerate(curve)])
    result = {"val_rmse": rmse, "val_mae": mae, "best_epoch": 4, "epochs": 5, "wall_seconds": 12.0 * noise, "device": "cpu",
              "peak_memory_bytes": 2**29, "trainable_params": 1000, "total_params": 5000}  # fmt: skip
    directory.write_result(result)
    if more.get("tested", True):
        steps = [{"segment": "test", "horizon": q + 1, "mae": float(np.abs(error[:, q]).mean()), "count": 1,
                  "rmse": float(np.sqrt((error[:, q] ** 2).mean()))} for q in range(HORIZON)]  # fmt: skip
        directory.write_test({"mae": mae, "rmse": rmse}, steps, predictions(measured, measured + error))
    return {**directory.row(), "study": "s", "variant": variant}


def predictions(measured: np.ndarray, forecast: np.ndarray) -> pa.Table:
    window = np.repeat(np.arange(WINDOWS), HORIZON)
    step = np.tile(np.arange(HORIZON), WINDOWS)
    columns = {
        "window": window,
        "horizon": pa.array(step + 1, pa.int32()),
        "time": pa.array(START + (window + 6 + step) * np.timedelta64(3600, "s")),
        "truth": [list(values) for values in measured.reshape(WINDOWS * HORIZON, -1).astype(np.float32)],
        "forecast": [list(values) for values in forecast.reshape(WINDOWS * HORIZON, -1).astype(np.float32)],
    }
    # Out of order on purpose: a reader must not rely on the order of the rows.
    table = pa.table(columns).take(np.random.default_rng(0).permutation(len(window)))
    return table.replace_schema_metadata({"shape": json.dumps(measured.shape[2:])})


def write_study(store: Store, rows: list[dict[str, Any]]) -> None:
    directory = StudyDirectory(store, "s")
    directory.write_study("name: s\ndescription: Does <it> matter & why?\nseeds: [0, 1]\n")
    directory.write_trials(rows)


def full_study(store: Store, shape: tuple[int, ...] = (2, 4, 3)) -> list[dict[str, Any]]:
    rows = [write_trial(store, v, s, shape, noise=n) for v, n in (("full", 1.0), ("_#1 <b> $x", 2.0)) for s in (0, 1)]
    failed = TrialDirectory(store, "lost")
    failed.write_trial({"seed": 2, "baseline": False, "protocol": protocol(), "model": {"name": "full"}})
    failed.write_failure({"reason": "out of memory at batch 64", "epoch": 3, "log_tail": "line 1\nline <2>"})
    rows.append({**failed.row(), "study": "s", "variant": "full"})
    rows.append(write_trial(store, "slot_of_week_mean", 0, shape, noise=1.5, baseline=True))
    return rows


class Page(HTMLParser):
    """Tags, what they point to, and the text."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.html = Path(path).read_text()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Page, Path]:
    store = Store(tmp_path_factory.mktemp("runs"))
    write_study(store, full_study(store))
    path = write_report(store, "s", notes=["same_slot_last_week: not possible, <3 weeks"])
    return store, Page(path), Path(path).parent


def test_the_page_needs_nothing_beside_itself(written: tuple[Store, Page, Path]) -> None:
    page = written[1]
    assert page.targets
    assert all(target.startswith("data:image/") for target in page.targets)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(|https?://", page.html)
    for target in page.targets:
        content = base64.b64decode(target.split(",", 1)[1])
        assert content.startswith(b"\x89PNG\r\n\x1a\n") or b"<svg" in content[:1000]


def test_the_folder_is_complete(written: tuple[Store, Page, Path]) -> None:
    folder = written[2]
    names = {"rmse_by_horizon", "learning_curves", "tradeoff", "forecast_maps", "busiest_series"}
    assert {path.stem for path in (folder / "figures").iterdir()} == names
    for name in names:
        assert (folder / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (folder / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF-")
    assert r"\_\#1 \textless{}b\textgreater{} \$x" in (folder / "tables/ablation.tex").read_text()


def test_csv_and_page_say_what_the_trials_say(written: tuple[Store, Page, Path]) -> None:
    store, page, folder = written
    table = pd.read_csv(folder / "tables/ablation.csv").set_index("label")
    values = [TrialDirectory(store, f"full{seed}").read("test.json")["rmse"] for seed in (0, 1)]  # type: ignore[index]
    assert table.loc["full", "test_rmse_mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert table.loc["full", "failed"] == 1
    assert f"{np.mean(values):.3f} ±" in page.text


def test_the_page_hides_nothing(written: tuple[Store, Page, Path]) -> None:
    text = written[1].text
    for says in (
        "Does <it> matter & why?", "grid of 2 channels, 6 → 3 steps, split by time 70/15/15", "random weights",
        "2 of 3 (1 failed)", "out of memory at batch 64", "line <2>", "same_slot_last_week: not possible, <3 weeks",
        "_#1 <b> $x does not beat the mean by slot of week (RMSE 1.", "1 of 2 variants beat the mean by slot of week",
        "ab" * 32, "0.1.0+abc", "seeds: [0, 1]", "lost",
    ):  # fmt: skip
        assert says in text, says


def test_the_report_is_the_same_each_time(written: tuple[Store, Page, Path]) -> None:
    store, page, folder = written
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    write_report(store, "s", notes=["same_slot_last_week: not possible, <3 weeks"])
    assert {path: path.read_bytes() for path in before} == before
    assert page.html.encode() in before.values()


def test_predictions_come_back_in_order(written: tuple[Store, Page, Path]) -> None:
    found = read_predictions(written[0], "full0")
    assert found is not None
    np.testing.assert_allclose(found.truth, truth((2, 4, 3)), rtol=1e-6)
    assert found.time is not None
    assert found.time[2, 1] == START + np.timedelta64(9, "h")
    assert found.busiest_cell() == (1, 3, 2)
    assert found.busiest_window() == int(truth((2, 4, 3)).sum(axis=(1, 2, 3, 4)).argmax())


def test_sensors_have_no_maps_and_everything_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_study(store, full_study(store, (5, 1)))
    page = Page(write_report(store, "s"))
    assert "No maps: the data are not on a grid." in page.text
    assert "node 4; nodes are counted from 0" in page.text
    assert page.tags.count("img") == 5  # errors by node in the place of maps


def test_partial_results_are_reported_as_such(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [write_trial(store, "full", 0, (2, 4, 3), tested=False)]
    rows.append({"study": "s", "variant": "simple", "trial_id": "none", "seed": 0, "status": "missing"})
    write_study(store, rows)
    text = Page(write_report(store, "s")).text
    for says in ("one seed", "not all tested", "0 of 1 (1 missing)", "No forecasts are shown", "No errors by horizon"):
        assert says in text


def test_a_study_without_one_finished_trial_has_a_report(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_study(store, [{"study": "s", "variant": "full", "trial_id": "none", "seed": 0, "status": "failed"}])
    text = Page(write_report(store, "s", study={"name": "s", "axes": {"model.rank": [4, 8]}})).text
    assert "No learning curves" in text
    assert "no reason was kept" in text


def test_mixed_protocols_have_no_report(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = write_trial(store, "other", 0, (2, 4, 3), trial={"protocol": protocol(horizon=12)})
    write_study(store, [*full_study(store), other])
    with pytest.raises(ProtocolMismatch, match="horizon is 3"):
        write_report(store, "s")
    assert not (tmp_path / "studies/s/report/index.html").exists()


def test_a_study_that_has_not_run_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run it first"):
        write_report(Store(tmp_path), "absent")
