"""Files of a trial that are damaged after they were written: never taken for a result, kept beside, made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stlab.catalog import create_model
from stlab.data import load_dataset
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from stlab.training.checkpoint import Checkpoints
from tests.support.trials import assert_same_numbers, count_steps, damage


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A trial and its finished directory, made by the first test that asks."""
    return {}


@pytest.fixture
def done(
    trained: dict[str, Any], make_trial: Callable[..., TrialSpec], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> tuple[TrialSpec, TrialDirectory, TrialDirectory]:
    """A trial, a copy of its finished directory to damage, and the directory."""
    if not trained:
        trained["trial"] = make_trial(max_epochs=2)
        trained["whole"] = TrialDirectory(Store(tmp_path_factory.mktemp("whole")), "a")
        assert run_trial(trained["trial"], {}, trained["whole"], test=True) is TrialStatus.FINISHED
    shutil.copytree(trained["whole"].store.location, tmp_path, dirs_exist_ok=True)
    return trained["trial"], TrialDirectory(Store(tmp_path), "a"), trained["whole"]


def again(trial: TrialSpec, directory: TrialDirectory, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """Run the trial once more: the notes that it told, and the steps that it made."""
    steps = count_steps(monkeypatch)
    notes: list[str] = []
    report = lambda event: notes.append(event["text"]) if event["kind"] == "note" else None  # noqa: E731
    assert run_trial(trial, {}, directory, test=True, report=report) is TrialStatus.FINISHED
    return notes, len(steps)


def assert_as_whole(directory: TrialDirectory, whole: TrialDirectory) -> None:
    assert directory.status() is TrialStatus.FINISHED
    assert directory.is_tested()
    assert directory.read_epochs() == whole.read_epochs()
    assert (directory.read_horizon() or 0) == whole.read_horizon()
    assert_same_numbers(directory, whole, notes=False)


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("result.json", "halved"),
        ("result.json", "emptied"),
        ("result.json", "zeros"),
        ("epochs.parquet", "halved"),
        ("epochs.parquet", "emptied"),
    ],
)
def test_a_truncated_result_is_none(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], monkeypatch: pytest.MonkeyPatch, file: str, how: str
) -> None:
    trial, directory, whole = done
    left = damage(directory, file, how)
    assert directory.status() is TrialStatus.STARTED
    assert directory.row()["status"] == "started"
    notes, steps = again(trial, directory, monkeypatch)
    assert steps == 0, "from its checkpoint, which is of the end"
    assert notes == [f"{file} was damaged (kept as {file}.damaged-1): done again"]
    assert directory.store.read(f"{directory.prefix}/{file}.damaged-1") == left
    assert (directory.read("result.json") or {})["notes"] == notes
    assert_as_whole(directory, whole)
    damage(directory, file, how)
    again(trial, directory, monkeypatch)
    assert f"{file}.damaged-2" in directory.store.names(directory.prefix)


@pytest.mark.parametrize("how", ["halved", "emptied"])
@pytest.mark.parametrize("file", ["test.json", "predictions.parquet", "horizon.parquet"])
def test_a_truncated_test_is_measured_again(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], monkeypatch: pytest.MonkeyPatch, file: str, how: str
) -> None:
    trial, directory, whole = done
    damage(directory, file, how)
    assert (directory.status(), directory.is_tested()) == (TrialStatus.FINISHED, False)
    assert directory.row()["trial_id"] == "a"  # a table can be made of it
    notes, steps = again(trial, directory, monkeypatch)
    assert steps == 0
    assert notes == [f"{file} was damaged (kept as {file}.damaged-1): done again"]
    assert_as_whole(directory, whole)


@pytest.mark.parametrize("file", ["failed.json", "pruned.json"])
def test_a_truncated_end_is_none(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    trial, directory, whole = done
    root = Path(directory.store.path(directory.prefix))
    for name in ("result.json", "test.json"):
        (root / name).unlink()
    (root / file).write_bytes(b'{"reason": "x", "ep')
    assert directory.status() is TrialStatus.STARTED
    notes, steps = again(trial, directory, monkeypatch)
    assert steps == 0
    assert notes == [f"{file} was damaged (kept as {file}.damaged-1): done again"]
    assert_as_whole(directory, whole)


@pytest.mark.parametrize("how", ["halved", "zeros"])
def test_damaged_weights_are_selected_again_to_be_measured(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    trial, directory, whole = done
    damage(directory, "checkpoint/best.safetensors", how)
    model = create_model(trial.model, load_dataset(trial.data).info)
    with pytest.raises(RuntimeError, match=r"checkpoint/best.safetensors is damaged"):
        Checkpoints(directory).load_best(model)
    Path(directory.store.path(f"{directory.prefix}/test.json")).unlink()
    notes, steps = again(trial, directory, monkeypatch)
    assert steps == 0
    assert len(notes) == 1
    assert notes[0].startswith("the selected weights cannot be used (checkpoint/best.safetensors is damaged: ")
    assert_as_whole(directory, whole)


def test_with_no_checkpoint_left_it_is_trained_again(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, directory, whole = done
    damage(directory, "result.json", "halved")
    for epoch in ("000001", "000002"):
        damage(directory, f"checkpoint/{epoch}/state.json", "halved")
    notes, steps = again(trial, directory, monkeypatch)
    assert steps == 10
    assert len(notes) == 2
    assert notes[1].endswith("trained from the start")
    result = directory.read("result.json") or {}
    assert result["notes"] == notes
    assert result["val_rmse"] == (whole.read("result.json") or {})["val_rmse"]
    assert (directory.read_predictions() or 0) == whole.read_predictions()


def test_a_table_that_is_damaged_inside_is_said_and_passed_over(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], caplog: pytest.LogCaptureFixture
) -> None:
    _, directory, _ = done
    damage(directory, "epochs.parquet", "zeros")
    assert directory.read_epochs() == []
    assert "epochs.parquet is damaged" in caplog.text


def test_status_is_one_listing_and_one_small_read(
    done: tuple[TrialSpec, TrialDirectory, TrialDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory, _ = done
    asked: list[str] = []
    for name in ("names", "sizes", "exists", "read"):
        own = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda self, at, own=own, name=name: (asked.append(f"{name} {at}"), own(self, at))[1])
    assert directory.status() is TrialStatus.FINISHED
    assert asked == ["sizes trials/a", "read trials/a/result.json"]
    assert isinstance(directory.read_horizon(), pa.Table)
