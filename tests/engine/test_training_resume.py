"""Resuming is exact: an interrupted run and an undisturbed one give the same numbers to the last bit."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stlab.results import Store, TrialDirectory, TrialStatus
from stlab.results.schema import trials_table
from stlab.spec import TrialSpec
from stlab.training import run_trial

MakeTrial = Callable[..., TrialSpec]
TIMES = {
    "seconds",
    "samples_per_second",
    "wall_seconds",
    "device_seconds",
    "peak_memory_bytes",
    "started_at",
    "tested_at",
    "files",
    "notes",
}

WORKER = """
import sys
import torch
torch.set_num_threads(1)
from stlab.results import Store, TrialDirectory
from stlab.spec import TrialSpec
from stlab.training import run_trial

trial = TrialSpec.model_validate_json(sys.argv[1])
print(run_trial(trial, {}, TrialDirectory(Store(sys.argv[2]), "a"), test=True))
"""


def whole_epochs(directory: TrialDirectory) -> list[str]:
    prefix = f"{directory.prefix}/checkpoint"
    return [name for name in directory.store.names(prefix) if directory.store.exists(f"{prefix}/{name}/state.json")]


def assert_same_numbers(one: TrialDirectory, other: TrialDirectory) -> None:
    def timeless(row: Any) -> dict[str, Any]:
        return {name: value for name, value in (row or {}).items() if name not in TIMES}

    assert [timeless(row) for row in one.read_epochs()] == [timeless(row) for row in other.read_epochs()]
    for name in ("result.json", "test.json"):
        assert timeless(one.read(name)) == timeless(other.read(name))
        assert timeless(one.read(name))
    assert one.read_predictions().equals(other.read_predictions())
    best = "checkpoint/best.safetensors"
    assert one.store.read(f"{one.prefix}/{best}") == other.store.read(f"{other.prefix}/{best}")


@pytest.fixture
def undisturbed(make_trial: MakeTrial, tmp_path: Path) -> Callable[[TrialSpec], TrialDirectory]:
    def run(trial: TrialSpec) -> TrialDirectory:
        directory = TrialDirectory(Store(tmp_path / "undisturbed"), "a")
        assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
        return directory

    return run


def test_a_killed_trial_goes_on_as_if_nothing_had_been(
    make_trial: MakeTrial, tmp_path: Path, undisturbed: Callable[[TrialSpec], TrialDirectory]
) -> None:
    trial = make_trial(model={"dropout": 0.2}, max_epochs=12, warmup_epochs=2)
    directory = TrialDirectory(Store(tmp_path / "killed"), "a")
    command = [sys.executable, "-c", WORKER, trial.model_dump_json(), directory.store.location]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(whole_epochs(directory)) < 2 and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        worker.send_signal(signal.SIGKILL)
        output, _ = worker.communicate()
    assert worker.returncode == -signal.SIGKILL, output
    assert directory.status() is TrialStatus.STARTED
    reached = int(whole_epochs(directory)[-1])
    assert 2 <= reached < 12
    trained: list[int] = []
    told: list[int] = []

    def report(event: Any) -> None:
        epochs = [row["epoch"] for row in event["rows"]]
        (trained if told else told).extend(epochs)

    assert run_trial(trial, {}, directory, test=True, report=report) is TrialStatus.FINISHED
    assert told == list(range(1, told[-1] + 1))  # those of before are told again,
    assert trained == list(range(told[-1] + 1, 13))  # and only the rest is trained
    assert_same_numbers(directory, undisturbed(trial))


def interrupted(trial: TrialSpec, directory: TrialDirectory, epoch: int) -> None:
    """Run a trial until Ctrl-C strikes when ``epoch`` has ended and is not saved yet."""

    def report(event: Any) -> None:
        if event["rows"][-1]["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(trial, {}, directory, test=True, report=report)


@pytest.fixture(scope="module")
def interruption(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One interrupted and one undisturbed run, made by the first test that asks."""
    return {"root": tmp_path_factory.mktemp("interruption")}


@pytest.fixture
def torn(
    make_trial: MakeTrial, interruption: dict[str, Any], tmp_path: Path
) -> tuple[TrialSpec, TrialDirectory, TrialDirectory]:
    """A trial, its directory with the checkpoints of epochs 4 and 5 of 7, and an undisturbed run's directory."""
    trial = make_trial(model={"dropout": 0.2}, max_epochs=7)
    root: Path = interruption["root"]
    whole = TrialDirectory(Store(root / "whole"), "a")
    if not (root / "torn").exists():
        interrupted(trial, TrialDirectory(Store(root / "torn"), "a"), epoch=6)
        run_trial(trial, {}, whole, test=True)
    shutil.copytree(root / "torn", tmp_path / "torn")
    directory = TrialDirectory(Store(tmp_path / "torn"), "a")
    assert whole_epochs(directory) == ["000004", "000005"]
    return trial, directory, whole


def damage(folder: Path, file: str, how: str) -> None:
    path = folder / file
    if how == "removed":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "one bit":
        content = bytearray(path.read_bytes())
        content[len(content) * 3 // 4] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def hear(told: list[list[int]], notes: list[str]) -> Callable[[Any], None]:
    """A listener that keeps the epochs of each event, and the notes."""

    def report(event: Any) -> None:
        if event["kind"] == "note":
            notes.append(event["text"])
        else:
            told.append([row["epoch"] for row in event["rows"]])

    return report


@pytest.mark.parametrize("how", ["halved", "emptied", "removed", "one bit"])
@pytest.mark.parametrize("file", ["state.json", "weights.safetensors", "best.safetensors", "optimiser.pt"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    torn: tuple[TrialSpec, TrialDirectory, TrialDirectory], caplog: pytest.LogCaptureFixture, file: str, how: str
) -> None:
    trial, directory, whole = torn
    damage(Path(directory.store.path(f"{directory.prefix}/checkpoint/000005")), file, how)
    told: list[list[int]] = []
    notes: list[str] = []
    with caplog.at_level(logging.WARNING):
        run_trial(trial, {}, directory, test=True, report=hear(told, notes))
    assert told == [[1, 2, 3, 4], [5], [6], [7]]
    warnings = [record.getMessage() for record in caplog.records if record.name == "stlab.training.checkpoint"]
    assert len(warnings) == 1
    assert "checkpoint/000005 cannot be used" in warnings[0]
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint 000005 cannot be used (")
    assert notes[0].endswith("): gone on from checkpoint 000004")
    assert (directory.read("result.json") or {})["notes"] == notes
    assert trials_table([directory.row()]).to_pylist()[0]["notes"] == notes[0]
    assert_same_numbers(directory, whole)


def test_without_a_whole_checkpoint_the_trial_starts_again(
    torn: tuple[TrialSpec, TrialDirectory, TrialDirectory], caplog: pytest.LogCaptureFixture
) -> None:
    trial, directory, whole = torn
    for epoch in ("000004", "000005"):
        damage(Path(directory.store.path(f"{directory.prefix}/checkpoint/{epoch}")), "weights.safetensors", "halved")
    told: list[list[int]] = []
    notes: list[str] = []
    run_trial(trial, {}, directory, test=True, report=hear(told, notes))
    assert told == [[epoch] for epoch in range(1, 8)]
    assert len([record for record in caplog.records if record.name == "stlab.training.checkpoint"]) == 2
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint 000005 cannot be used (")
    assert "; checkpoint 000004 cannot be used (" in notes[0]
    assert notes[0].endswith("): trained from the start")
    assert_same_numbers(directory, whole)


def test_interrupted_again_and_again(
    make_trial: MakeTrial, tmp_path: Path, undisturbed: Callable[[TrialSpec], TrialDirectory]
) -> None:
    """Early stopping counts across interruptions too."""
    trial = make_trial(model={"dropout": 0.2}, max_epochs=9, patience=2, lr=0.05)
    directory = TrialDirectory(Store(tmp_path / "again"), "a")
    whole = undisturbed(trial)
    epochs = (whole.read("result.json") or {})["epochs"]
    assert epochs < 9
    for epoch in range(2, epochs + 1):
        interrupted(trial, directory, epoch)
    assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
    assert_same_numbers(directory, whole)


SENSOR_MODELS: dict[str, dict[str, Any]] = {
    "st_vlm": {"name": "st_vlm", "backbone": "vilt_test", "weights": "random", "hidden": 8, "lora_rank": 2},
    "lstm": {"name": "lstm", "hidden": 8},
}


@pytest.mark.parametrize("name", SENSOR_MODELS)
def test_a_sensor_model_resumes_as_exactly(
    name: str, make_trial: MakeTrial, tmp_path: Path, undisturbed: Callable[[TrialSpec], TrialDirectory]
) -> None:
    """Under a plateau too, whose patience has to survive: interrupted in every epoch, it goes on as if nothing had been."""
    plateau = {"schedule": "plateau", "plateau_patience": 1, "warmup_epochs": 0, "select_by": "mae"}
    trial = make_trial(model=SENSOR_MODELS[name], data={"family": "sensors"}, max_epochs=6, **plateau)
    directory = TrialDirectory(Store(tmp_path / "again"), "a")
    for epoch in range(2, 7):
        interrupted(trial, directory, epoch)
    assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
    assert_same_numbers(directory, undisturbed(trial))
    assert (directory.read_view() is not None) == (name == "st_vlm")
