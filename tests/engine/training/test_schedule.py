"""The plateau schedule against PyTorch's own, selection by MAE or RMSE, and what of it is part of a trial's identity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stlab.catalog import create_config
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.identity import trial_id
from stlab.study.spec import TrainSpec, TrialSpec
from stlab.training import loop, run_trial
from stlab.training.checkpoint import trainable_state
from stlab.training.epoch import EpochInProgress
from stlab.training.schedule import learning_rate, plateau
from stlab.training.setup import TrainingSetup
from stmodels.video.recurrent import FrameByFrame

MakeTrial = Callable[..., TrialSpec]


def by_torch(errors: list[float], train: TrainSpec) -> list[float]:
    """The learning rate of each epoch that PyTorch's scheduler gives, stepped after every epoch."""
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=train.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=train.plateau_factor, patience=train.plateau_patience, min_lr=min(train.min_lr, train.lr)
    )
    rates = []
    for error in errors:
        rates.append(optimiser.param_groups[0]["lr"])
        scheduler.step(error)
    return rates


@pytest.mark.parametrize("curve", ["falls", "noisy", "flat", "creeps"])
@pytest.mark.parametrize(("factor", "patience", "floor"), [(0.5, 10, 1e-5), (0.3, 0, 1e-4), (0.9, 2, 0.0), (0.5, 1, 1.0)])
def test_plateau_cuts_when_pytorch_does(curve: str, factor: float, patience: int, floor: float) -> None:
    draw = np.random.default_rng(3)
    epochs = np.arange(60)
    errors = {
        "falls": 5 / (1 + epochs),
        "noisy": 3 + 2 * np.exp(-epochs / 8) + draw.normal(0, 0.2, 60),
        "flat": np.full(60, 2.0),
        "creeps": 2.0 * (1 - 0.4e-4) ** epochs,  # better every epoch; only three of them pass the threshold
    }[curve].tolist()
    train = TrainSpec(
        schedule="plateau", lr=1e-3, min_lr=floor, plateau_factor=factor, plateau_patience=patience, warmup_epochs=0
    )
    found = [learning_rate(7 * epoch + 3, 7, train, errors[:epoch]) for epoch in range(60)]
    assert found == pytest.approx(by_torch(errors, train), rel=1e-12)
    if curve in ("falls", "flat"):
        assert (len(set(found)) > 1) == (curve == "flat" and floor < train.lr)


def test_plateau_follows_a_linear_warm_up() -> None:
    """Errors of the warm-up are not counted: the rate was not yet what the plateau would cut."""
    train = TrainSpec(schedule="plateau", lr=0.8, min_lr=0.0, warmup_epochs=2, plateau_factor=0.5, plateau_patience=1)
    errors = [1.0, 1.0, 5.0, 5.0, 5.0, 5.0]
    rates = [[learning_rate(4 * epoch + step, 4, train, errors[:epoch]) for step in range(4)] for epoch in range(6)]
    assert [*rates[0], *rates[1]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert [set(epoch) for epoch in rates[2:]] == [{0.8}, {0.8}, {0.8}, {0.4}]
    assert plateau([], train) == 0.8


def scripted(monkeypatch: pytest.MonkeyPatch, mae: list[float], rmse: list[float]) -> None:
    """Validation answers from two lists."""
    answers = iter([{"mae": a, "rmse": r} for a, r in zip(mae, rmse, strict=True)])
    monkeypatch.setattr(loop, "evaluate", lambda *_: next(answers))


@pytest.mark.parametrize(
    ("select_by", "best", "epochs", "rates"),
    [("mae", 2, 5, [4e-3, 4e-3, 4e-3, 4e-3, 2e-3]), ("rmse", 4, 7, [4e-3] * 6 + [2e-3])],
)
def test_one_validation_error_selects_stops_and_cuts(
    make_trial: MakeTrial,
    directory: TrialDirectory,
    monkeypatch: pytest.MonkeyPatch,
    select_by: str,
    best: int,
    epochs: int,
    rates: list[float],
) -> None:
    mae, rmse = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], [9.0, 8.0, 7.0, 6.0, 7.0, 7.0, 7.0, 7.0]
    scripted(monkeypatch, mae, rmse)
    trial = make_trial(
        max_epochs=8, patience=3, select_by=select_by, schedule="plateau", plateau_patience=1, warmup_epochs=0, lr=4e-3
    )
    assert run_trial(trial, {}, directory, test=False) is TrialStatus.FINISHED
    result, rows = directory.read("result.json") or {}, directory.read_epochs()
    assert (result["best_epoch"], result["epochs"]) == (best, epochs)
    assert (result["val_mae"], result["val_rmse"]) == (mae[best - 1], rmse[best - 1])
    assert result["stopped"] == f"no better validation {select_by.upper()}"
    assert [row["lr"] for row in rows] == pytest.approx(rates)


def test_an_interrupted_plateau_goes_on_as_if_nothing_had_been(make_trial: MakeTrial, tmp_path: Path) -> None:
    """Rates are cut in every other epoch, so that a count lost with the interruption would show."""
    trial = make_trial(
        max_epochs=9, lr=0.05, warmup_epochs=1, schedule="plateau", plateau_patience=0, min_lr=0.0, select_by="mae"
    )
    torn, whole = (TrialDirectory(Store(tmp_path / name), "a") for name in ("torn", "whole"))
    run_trial(trial, {}, whole, test=True)

    for last in (4, 7):

        def interrupt(event: Any, last: int = last) -> None:
            if event["rows"][-1]["epoch"] == last:
                raise KeyboardInterrupt  # before the epoch's checkpoint is written

        with pytest.raises(KeyboardInterrupt):
            run_trial(trial, {}, torn, test=True, report=interrupt)
    assert run_trial(trial, {}, torn, test=True) is TrialStatus.FINISHED
    numbers = ("loss", "val_mae", "val_rmse", "lr", "grad_norm")
    found, expected = ([[row[name] for name in numbers] for row in d.read_epochs()] for d in (torn, whole))
    assert found == expected
    assert len({row["lr"] for row in whole.read_epochs()}) > 2
    assert (torn.read("test.json") or {})["mae"] == (whole.read("test.json") or {})["mae"]


def test_a_decay_goes_back_to_the_best_weights_and_resumes_exactly(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate so high that validation soon stops improving; then three epochs from the best weights, stopped in every part of them."""
    trial = make_trial(max_epochs=40, lr=0.3, warmup_epochs=0, patience=2, decay_epochs=3, min_lr=1e-4)
    starts: list[dict[str, torch.Tensor]] = []
    begin = EpochInProgress.begin.__func__  # type: ignore[attr-defined]

    def recorded(cls: type, setup: TrainingSetup, *rest: Any) -> EpochInProgress:
        starts.append(trainable_state(setup.model))
        return begin(cls, setup, *rest)  # type: ignore[no-any-return]

    whole = TrialDirectory(Store(tmp_path / "whole"), "a")
    with monkeypatch.context() as patch:
        patch.setattr(EpochInProgress, "begin", classmethod(recorded))
        assert run_trial(trial, {}, whole, test=True) is TrialStatus.FINISHED
    rows, result = whole.read_epochs(), whole.read("result.json") or {}
    turn = len(rows) - 3
    errors = [row["val_rmse"] for row in rows[:turn]]
    best = errors.index(min(errors)) + 1
    assert turn == best + 2 < 40
    assert all(torch.equal(value, starts[best][name]) for name, value in starts[turn].items()), "the weights after the best epoch"
    steps = rows[0]["step"]
    falling = np.linspace(rows[best - 1]["lr"], 1e-4, 3 * steps)[steps - 1 :: steps]
    assert [row["lr"] for row in rows[turn:]] == pytest.approx(falling, rel=1e-6)
    assert result["val_rmse"] == min(row["val_rmse"] for row in rows)  # whether the decay helps here depends on the processor
    assert f"after epoch {turn}, and the learning rate has decayed" in result["stopped"]

    for stopped in (steps * turn, steps * turn + 1, steps * (turn + 2)):
        torn = TrialDirectory(Store(tmp_path / f"torn-{stopped}"), "a")
        asked = iter([False] * stopped + [True] + [False] * 10_000)
        assert run_trial(trial, {}, torn, test=True, stop=lambda asked=asked: next(asked)) is TrialStatus.STARTED
        assert run_trial(trial, {}, torn, test=True) is TrialStatus.FINISHED
        numbers = ("epoch", "step", "loss", "val_rmse", "lr", "grad_norm")
        found, expected = ([[row[name] for name in numbers] for row in d.read_epochs()] for d in (torn, whole))
        assert found == expected


def test_what_a_schedule_does_not_read_is_no_part_of_the_id(make_trial: MakeTrial) -> None:
    def of(**train: Any) -> str:
        trial = make_trial(**train)
        return trial_id(trial, create_config(trial.model), "ab")

    for field, value in (("plateau_factor", 0.1), ("plateau_patience", 3)):
        assert of(**{field: value}) == of()
        assert of(schedule="plateau", **{field: value}) != of(schedule="plateau")
    assert len({of(), of(schedule="plateau"), of(select_by="mae"), of(min_lr=0.0)}) == 4
    assert of(schedule="plateau", min_lr=0.0) != of(schedule="plateau")


@pytest.mark.parametrize(("field", "value"), [("plateau_factor", 1.0), ("plateau_factor", 0.0), ("plateau_patience", -1)])
def test_fields_that_make_no_schedule_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        TrainSpec(**{field: value})


@pytest.mark.parametrize(("milestones", "factor"), [((1, 50), 0.5), ((15, 30), 0.1), (tuple(range(10, 60, 10)), 0.95)])
def test_steps_cut_when_pytorch_does(milestones: tuple[int, ...], factor: float) -> None:
    train = TrainSpec(schedule="steps", lr=1e-3, milestones=milestones, milestone_factor=factor, warmup_epochs=0)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=train.lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(milestones), gamma=factor)
    for epoch in range(60):
        rates = [learning_rate(7 * epoch + step, 7, train) for step in range(7)]
        assert rates == pytest.approx([optimiser.param_groups[0]["lr"]] * 7, rel=1e-12)
        optimiser.step()
        scheduler.step()


def test_milestones_without_their_schedule_are_refused_and_change_no_id(make_trial: MakeTrial) -> None:
    for given in ({"schedule": "steps"}, {"schedule": "steps", "milestones": (5, 2)}):
        with pytest.raises(ValidationError, match="milestones"):
            TrainSpec(**given)
    trials = [make_trial(schedule="steps", milestones=given, min_lr=floor) for given in ((3,), (3, 4)) for floor in (0.0, 1e-5)]
    assert len({trial_id(trial, create_config(trial.model), "ab") for trial in trials}) == 2, "the steps have no floor"


def test_the_engine_says_how_far_training_is(
    make_trial: MakeTrial, directory: TrialDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is stopped hears the same shares of the planned steps as one that is not."""
    heard: list[float] = []
    monkeypatch.setattr(FrameByFrame, "progresses", lambda self, share: heard.append(share))
    trial = make_trial(model={"name": "predrnn", "width": 4, "layers": 1, "kernel": 3}, max_epochs=2, warmup_epochs=0, batch_size=40)
    whole = TrialDirectory(directory.store, "whole")
    assert run_trial(trial, {}, whole, test=False) is TrialStatus.FINISHED
    straight = list(heard)
    assert straight == [step / len(straight) for step in range(len(straight))]
    assert len(straight) >= 6
    heard.clear()
    asked = iter([False] * 3 + [True] + [False] * 100)
    assert run_trial(trial, {}, directory, test=False, stop=lambda: next(asked)) is TrialStatus.STARTED
    assert run_trial(trial, {}, directory, test=False) is TrialStatus.FINISHED
    assert heard == straight


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 2), (0.5, 5)])
def test_patience_waits_until_the_task_has_settled(
    make_trial: MakeTrial, directory: TrialDirectory, share: float, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No epoch of eight is better than the first."""
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"rmse": 1.0, "mae": 1.0})
    trial = make_trial(
        model={"name": "predrnn", "width": 4, "layers": 1, "kernel": 3, "sampling_share": share},
        max_epochs=8, warmup_epochs=0, patience=1,
    )  # fmt: skip
    assert run_trial(trial, {}, directory, test=False) is TrialStatus.FINISHED
    assert len(directory.read_epochs()) == epochs
