"""What the command line answers to bad input: exit code 2, one message with file, array, index and remedy, nothing trained."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Grid = dict[str, np.ndarray]


def _with_gaps(grid: Grid) -> Grid:
    data = grid["data"].copy()
    data[17, 1, 2, 3], data[20, 0, 0, 0] = np.nan, np.inf
    return grid | {"data": data}


def _moved(grid: Grid, start: int, stop: int | None, seconds: int) -> Grid:
    times = grid["timestamps"].copy()
    times[start:stop] += np.timedelta64(seconds, "s")
    return grid | {"timestamps": times}


# name → (what is done to a sound file's arrays, what the message must say)
BAD_ARRAYS: dict[str, tuple[Callable[[Grid], dict[str, Any]], list[str]]] = {
    "no_key": (lambda g: {"values": g["data"]}, ["`data`", "values", "Save"]),
    "rank": (lambda g: {"data": g["data"][:, 0]}, ["`data`", "(240, 4, 4)", "(T, C, H, W)", "data[:, None]"]),
    "gaps": (_with_gaps, ["`data`", "2 of 7680", "T=17, C=1, H=2, W=3", "data.missing", "interpolate"]),
    "irregular": (lambda g: _moved(g, 100, None, 3600), ["`timestamps`", "index 99", "index 100", "7200 s", "3600 s"]),
    "repeated": (lambda g: _moved(g, 50, 51, -3600), ["`timestamps`", "does not increase", "index 50", "index 49"]),
    "short": (lambda g: {k: v[:20] for k, v in g.items()}, ["20 steps", "At least 77", "data.history"]),
    "pickled": (lambda g: {"data": np.array([{}, {}], dtype=object)}, ["`data`", "pickled", "refused", "float32"]),
}


@pytest.fixture
def study(tmp_path: Path, study_text: str) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(study_text)
    return path


def _refused(answer: Any, *words: str) -> None:
    """Exit code 2, one message that says all this, no traceback."""
    assert answer.code == 2, answer
    assert answer.err.startswith("error:")
    assert "Traceback" not in answer.err + answer.out
    missing = [word for word in words if word not in answer.err]
    assert not missing, f"{missing} not in: {answer.err}"


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_by_every_command(case: str, grid: Grid, study: Path, say: Callable[..., Any]) -> None:
    change, words = BAD_ARRAYS[case]
    path = f"{case}.npz"
    np.savez(path, **change(grid))
    _refused(say("data", "inspect", path), path, *words)
    _refused(say("plan", study.name, "--set", f"data.path={path}"), path, *words)
    _refused(say("run", study.name, "--set", f"data.path={path}"), path, *words)
    left = {entry.name for entry in Path.cwd().iterdir()} - {study.name, path}
    assert not list(Path.cwd().rglob("trial.json")), f"something ran: {left}"


@pytest.mark.parametrize("method", ["zero", "interpolate"])
def test_gaps_are_filled_on_request(method: str, grid: Grid, study: Path, say: Callable[..., Any]) -> None:
    np.savez("gaps.npz", **_with_gaps(grid))
    setting = f"data.missing={method}"
    assert say("data", "inspect", "gaps.npz", "--set", setting, "--picture", "gaps.png").code == 0
    assert Path("gaps.png").read_bytes().startswith(b"\x89PNG")
    answer = say("plan", study.name, "--set", "data.path=gaps.npz", "--set", setting)
    assert answer.code == 0, answer.err
    assert "to do" in answer.out


def test_a_patch_that_does_not_divide_offers_padding(grid: Grid, study: Path, say: Callable[..., Any]) -> None:
    np.savez("odd.npz", **grid | {"data": np.pad(grid["data"], [(0, 0), (0, 0), (0, 1), (0, 3)])})
    command = ("plan", study.name, "--set", "data.path=odd.npz")
    _refused(say(*command), "tiny.yaml:4", "odd.npz", "5×7", "4×4", "model.pad=true", "model.patch")
    answer = say(*command, "--set", "model.pad=true")
    assert answer.code == 0, answer.err


def _truncate(grid: Grid) -> str:
    np.savez("cut.npz", **grid)
    whole = Path("cut.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    return "cut.npz"


def _other_suffix(grid: Grid) -> str:
    Path("counts.xlsx").write_text("no data")
    return "counts.xlsx"


def _near_name(grid: Grid) -> str:
    np.savez("bike.npz", **grid)
    return "bkie.npz"


FILES: dict[str, tuple[Callable[[Grid], str], list[str]]] = {
    "truncated": (_truncate, ["cut.npz", "truncated", "Fetch it again"]),
    "unknown suffix": (_other_suffix, ["counts.xlsx", ".xlsx", ".npz", ".json"]),
    "missing": (_near_name, ["bkie.npz", "no such file", "Did you mean ", "bike.npz?"]),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_refused(case: str, grid: Grid, study: Path, say: Callable[..., Any]) -> None:
    make, words = FILES[case]
    path = make(grid)
    _refused(say("data", "inspect", path), *words)
    _refused(say("plan", study.name, "--set", f"data.path={path}"), *words)


def test_ready_made_windows_need_to_be_asked_for(study: Path, say: Callable[..., Any]) -> None:
    windows = np.random.default_rng(0).poisson(5, (40, 12, 4, 4)).tolist()
    times = (np.arange(40)[:, None] + np.arange(12)).tolist()
    parts = ("train", "val", "test")
    content: dict[str, Any] = {f"X_{part}": [windows, []] for part in parts}
    Path("BikeNYC_short.json").write_text(json.dumps(content | {"timestamps": dict.fromkeys(parts, times)}))
    command = ("plan", study.name, "--set", "data.path=BikeNYC_short.json")
    _refused(say(*command), "BikeNYC_short.json", "leak", "data.protocol: unist")
    _refused(say("data", "inspect", "BikeNYC_short.json"), "BikeNYC_short.json", "data.protocol: unist")
    answer = say(*command, "--set", "data.protocol=unist")
    assert answer.code == 0, answer.err


# (what is replaced in the study, what stands there instead, what the message must say)
BAD_STUDIES = {
    "unknown training field": ("lr:", "lrr:", ["tiny.yaml:5", "base.train.lrr", "Did you mean 'lr'", "clip_norm"]),
    "wrong type": ("max_epochs: 2", "max_epochs: many", ["tiny.yaml:5", "max_epochs", "whole number", "many"]),
    "unknown model field": ("rank: 4", "rnak: 4", ["tiny.yaml:4", "rnak", "Did you mean 'rank'", "temporal_width"]),
    "unknown model": ("st_vfm", "st_vfmm", ["tiny.yaml:4", "st_vfmm", "Did you mean 'st_vfm'"]),
    "repeated seed": ("[0, 1]", "[1, 1]", ["tiny.yaml:9", "seeds", "twice"]),
    "unknown field in a variant": ("flow: false", "flwo: false", ["tiny.yaml:7", "no flow", "flwo", "'flow'"]),
    "not YAML": ("seeds: [0, 1]", "seeds: [0, 1", ["tiny.yaml:10", "YAML"]),
}


@pytest.mark.parametrize("case", BAD_STUDIES)
def test_wrong_studies_name_line_nearest_and_allowed(case: str, study: Path, say: Callable[..., Any]) -> None:
    old, new, words = BAD_STUDIES[case]
    study.write_text(study.read_text().replace(old, new, 1))
    _refused(say("plan", study.name), *words)


def test_wrong_overrides_are_named_as_typed(study: Path, say: Callable[..., Any]) -> None:
    _refused(say("plan", study.name, "--set", "train.lrr=3"), "--set train.lrr=3", "Did you mean 'lr'")
    _refused(say("plan", study.name, "--set", "train.lr"), "--set train.lr", "path=value")


def test_unknown_names_are_answered_with_known_ones(study: Path, say: Callable[..., Any]) -> None:
    _refused(say("plan", "dmeo"), "dmeo", "Did you mean 'demo'", "st_vfm_ablation")
    _refused(say("report", "nothing"), "no results", "stlab run nothing")
    _refused(say("sync", "nothing"), "no results", "stlab run nothing")
    _refused(say("ui"), "mlflow.db", "stlab sync")
    _refused(
        say("run", study.name, "--set", "model.backbone=vit_tset"), "--set model.backbone=vit_tset", "Near: vit_test", "dinov2_s"
    )
    _refused(say("plan", study.name, "--set", "model.backbone=vit_tset"), "--set model.backbone=vit_tset", "Near: vit_test")


def test_what_a_model_says_of_itself_is_said_once_and_where_it_was_written(study: Path, say: Callable[..., Any]) -> None:
    err = say("plan", study.name, "--set", "model.rank=0").err
    assert err.strip() == "error: --set model.rank=0: base.model.rank: model.rank must be at least 1, it is 0"


def test_a_folder_is_no_study_and_trials_are_a_searchs(study: Path, say: Callable[..., Any]) -> None:
    for folder in (".", "..", "/"):
        _refused(say("plan", folder), f"{folder} is a folder", "st_vfm_ablation")
    for command in (["run"], ["plan"], ["submit", "--address", "http://127.0.0.1:9", "--storage", "s3://bucket/runs"]):
        _refused(say(command[0], study.name, *command[1:], "--trials", "3"), "--trials 3", "tiny.yaml has no search")


def test_pretrained_weights_without_network_name_the_way_out(study: Path, say: Callable[..., Any]) -> None:
    settings = ("--set", "model.backbone=dinov2_s", "--set", "model.weights=pretrained")
    _refused(say("run", study.name, *settings), "dinov2", "pretrained", "model.weights=random", "HF_HOME")


def test_more_than_the_machine_has_is_refused_at_once(study: Path, say: Callable[..., Any]) -> None:
    import torch

    _refused(
        say("run", study.name, "--set", "resources.cpus=6400"), "resources.cpus=6400", "6400 CPU", "Lower resources.cpus"
    )
    _refused(say("run", study.name, "--set", "resources.workers=6400"), "resources.workers=6400")
    if not torch.cuda.is_available():
        _refused(say("run", study.name, "--set", "resources.gpus=1"), "1 GPU", "resources.gpus=1", "--address")
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_places_that_cannot_be_used_are_refused_at_once(grid: Grid, study: Path, say: Callable[..., Any]) -> None:
    np.savez("good.npz", **grid)
    _refused(say("run", study.name, "--storage", "good.npz"), "--storage good.npz", "Give a folder")
    _refused(say("run", study.name, "--storage", "/proc/nowhere"), "--storage /proc/nowhere", "Give another folder")
    _refused(say("run", study.name, "--address", "127.0.0.1:1"), "127.0.0.1:1", "ray start --head")
    _refused(say("run", study.name, "--tracking-uri", "file:///tmp/x"), "file:///tmp/x", "sqlite://")
    _refused(say("data", "inspect", "good.npz", "--picture", "nowhere/a.png"), "nowhere", "--picture")


def test_a_user_sees_a_message_and_a_developer_the_traceback(stlab: Any, study_text: str) -> None:
    (stlab.folder / "tiny.yaml").write_text(study_text.replace("lr:", "lrr:"))
    answer = stlab("plan", "tiny.yaml")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    assert "Traceback" in stlab("--debug", "plan", "tiny.yaml").err


def test_help_is_fast_for_it_imports_nothing_heavy() -> None:
    heavy = "torch,ray,mlflow,numpy,pandas,pyarrow,matplotlib,scipy,timm,transformers,pydantic,yaml"
    code = (
        "import sys, stlab.cli; sys.argv = ['stlab', '--help']\n"
        "try: stlab.cli.main()\n"
        f"except SystemExit as end: print(end.code, [name for name in {heavy!r}.split(',') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.splitlines()[-1] == "0 []"
    for command in ("run", "plan", "report", "data", "ui", "sync", "schema"):
        assert f"\n  {command} " in answer.stdout


def test_version(say: Callable[..., Any]) -> None:
    answer = say("--version")
    assert (answer.code, answer.out) == (0, f"stlab {importlib.metadata.version('stlab')}\n")


def test_unknown_commands_and_missing_arguments_are_usage_errors(say: Callable[..., Any]) -> None:
    for arguments, words in ((("frobnicate",), "No such command 'frobnicate'"), (("run",), "Missing argument 'STUDY'")):
        answer = say(*arguments)
        assert answer.code == 2
        assert words in answer.err
