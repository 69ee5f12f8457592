"""Resuming is exact: an interrupted run and an undisturbed one give the same numbers to the last bit."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.storage.schema import trials_table
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from tests.support.trials import Notice, assert_same_numbers, damage, train_until_killed, whole_checkpoints

MakeTrial = Callable[..., TrialSpec]
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
    train_until_killed(trial, directory, "000006/optimiser.pt")
    assert whole_checkpoints(directory) == ["000004", "000005"]
    told: list[list[int]] = []
    assert run_trial(trial, {}, directory, test=True, report=hear(told, [])) is TrialStatus.FINISHED
    # Those of before are told again, at once, and only the rest is trained.
    assert told == [[1, 2, 3, 4, 5], [6], [7], [8], [9], [10], [11], [12]]
    assert_same_numbers(directory, undisturbed(trial), notes=False)


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
    assert whole_checkpoints(directory) == ["000004", "000005"]
    return trial, directory, whole


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
    damage(directory, f"checkpoint/000005/{file}", how)
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
    assert_same_numbers(directory, whole, notes=False)


def test_without_a_whole_checkpoint_the_trial_starts_again(
    torn: tuple[TrialSpec, TrialDirectory, TrialDirectory], caplog: pytest.LogCaptureFixture
) -> None:
    trial, directory, whole = torn
    for epoch in ("000004", "000005"):
        damage(directory, f"checkpoint/{epoch}/weights.safetensors", "halved")
    told: list[list[int]] = []
    notes: list[str] = []
    run_trial(trial, {}, directory, test=True, report=hear(told, notes))
    assert told == [[epoch] for epoch in range(1, 8)]
    assert len([record for record in caplog.records if record.name == "stlab.training.checkpoint"]) == 2
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint 000005 cannot be used (")
    assert "; checkpoint 000004 cannot be used (" in notes[0]
    assert notes[0].endswith("): trained from the start")
    assert_same_numbers(directory, whole, notes=False)


def with_checkpoints(trial: TrialSpec, seconds: float) -> TrialSpec:
    """The trial, with a checkpoint so often."""
    return trial.model_copy(update={"train": trial.train.model_copy(update={"checkpoint_seconds": seconds})})


def test_what_was_damaged_costs_no_checkpoint_written_since(
    torn: tuple[TrialSpec, TrialDirectory, TrialDirectory],
) -> None:
    """The names of those damaged are higher than of those that a trial writes which starts again: they must not count."""
    trial, directory, whole = torn
    damage(directory, "checkpoint/000004/optimiser.pt", "one bit")
    damage(directory, "checkpoint/000005/weights.safetensors", "halved")
    status = run_trial(with_checkpoints(trial, 1e-9), {}, directory, test=True, stop=Notice(3))
    assert status is TrialStatus.STARTED
    assert whole_checkpoints(directory) == ["000000.000002", "000000.000003"]
    names = directory.store.names(f"{directory.prefix}/checkpoint")
    assert {"000004.damaged-1", "000005.damaged-1"} <= set(names), "nothing is lost"
    assert len(directory.store.read(f"{directory.prefix}/checkpoint/000004.damaged-1/optimiser.pt")) > 0
    interrupted(trial, directory, epoch=3)
    told: list[list[int]] = []
    notes: list[str] = []
    run_trial(trial, {}, directory, test=True, report=hear(told, notes))
    assert told[0] == [1, 2], "it goes on from there"
    assert notes == [], "which was said before"
    assert_same_numbers(directory, whole, notes=False)


def test_beside_one_that_was_damaged_two_are_kept(torn: tuple[TrialSpec, TrialDirectory, TrialDirectory]) -> None:
    trial, directory, whole = torn
    damage(directory, "checkpoint/000005/best.safetensors", "emptied")
    trial = with_checkpoints(trial, 1e-9)
    assert run_trial(trial, {}, directory, test=True, stop=Notice(2)) is TrialStatus.STARTED
    assert whole_checkpoints(directory) == ["000004.000001", "000004.000002"]
    assert "000005.damaged-1" in directory.store.names(f"{directory.prefix}/checkpoint")
    damage(directory, "checkpoint/000004.000002/midway.safetensors", "one bit")
    assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
    assert_same_numbers(directory, whole, notes=False)


def test_one_that_was_cut_short_does_not_stay(torn: tuple[TrialSpec, TrialDirectory, TrialDirectory]) -> None:
    """However often a trial is killed while it writes one, its directory does not grow."""
    trial, directory, _ = torn
    damage(directory, "checkpoint/000005/state.json", "removed")
    assert run_trial(with_checkpoints(trial, 1e-9), {}, directory, test=True, stop=Notice(2)) is TrialStatus.STARTED
    assert directory.store.names(f"{directory.prefix}/checkpoint") == ["000004.000001", "000004.000002"]


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
    assert_same_numbers(directory, whole, notes=False)


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
    assert_same_numbers(directory, undisturbed(trial), notes=False)
    assert (directory.read_model_input() is not None) == (name == "st_vlm")
