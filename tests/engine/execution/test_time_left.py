"""The time left, against studies that a simulated clock runs to their end: how long they took is known then."""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np
import pytest

from stlab.execution import time_left
from stlab.execution.events import Ended, Epochs, Planned, Started
from stlab.execution.time_left import TimeLeft
from stlab.study.plan import PlannedTrial
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec

EPOCHS, PATIENCE, OVERHEAD = 20, 5, 3.0


@dataclasses.dataclass
class Trial:
    """A trial, the seconds that its epochs take, and their validation errors: it stops when its patience is over."""

    planned: PlannedTrial
    seconds: np.ndarray
    errors: np.ndarray

    def events(self) -> list[tuple[float, str, int]]:
        """Seconds since its beginning, what happens then, and the epoch."""
        found, now = [(0.0, "started", 0)], 0.0
        for epoch in range(1, EPOCHS + 1):
            now += self.seconds[epoch - 1]
            found.append((now, "epochs", epoch))
            if epoch - 1 - int(np.argmin(self.errors[:epoch])) >= PATIENCE:
                break
        return [*found, (now + OVERHEAD, "ended", 0)]


def study(draw: np.random.Generator, *, stops: bool) -> list[Trial]:
    """Five variants of three seeds; an epoch takes 1 to 8 s by the variant, which the plan's costs know within a factor of two."""
    trials = []
    for number, pace in enumerate((1.0, 3.0, 4.0, 5.0, 8.0)):
        for seed in range(3):
            spec = TrialSpec(
                study="s", variant=f"#{number}", seed=seed, data=DataSpec(path="a.npz"), model={"name": "lstm", "width": number},
                train=TrainSpec(max_epochs=EPOCHS, patience=PATIENCE), resources=ResourcesSpec(),
            )  # fmt: skip
            best = int(draw.integers(4, EPOCHS)) if stops else EPOCHS
            errors = np.abs(np.arange(1, EPOCHS + 1) - best) + 1.0
            cost = pace * float(draw.uniform(0.7, 1.4))
            planned = PlannedTrial(spec, f"{number}/{seed}/{cost}", {}, cost=cost)
            trials.append(Trial(planned, pace * draw.uniform(0.8, 1.2, EPOCHS), errors))
    return sorted(trials, key=lambda trial: -trial.planned.cost)


def simulate(trials: list[Trial], workers: int, *, known: bool = True) -> list[tuple[float, float | None]]:
    """Run the trials; (time, time left as it is told then) after each event, and at last the time at which all has ended."""
    now = 0.0
    unplanned = 0 if known else len(trials)
    left = TimeLeft([t.planned for t in trials] if known else [], workers, unplanned=unplanned, clock=lambda: now)
    waiting, agenda, told = list(trials), [], []
    order = iter(range(10**6))

    def begin(at: float) -> None:
        if waiting:
            trial = waiting.pop(0)
            for after, kind, epoch in trial.events():
                heapq.heappush(agenda, (at + after, next(order), kind, epoch, trial))

    for _ in range(workers):
        begin(0.0)
    while agenda:
        now, _, kind, epoch, trial = heapq.heappop(agenda)
        trial_id = trial.planned.trial_id
        if kind == "started":
            if not known:
                left.event(Planned(trial.planned, 0))
            left.event(Started(trial_id, 1))
        elif kind == "epochs":
            row = {"epoch": epoch, "seconds": trial.seconds[epoch - 1], "val_rmse": trial.errors[epoch - 1]}
            left.event(Epochs(trial_id, [{**row, "val_mae": row["val_rmse"]}]))
        else:
            left.event(Ended(trial_id, "finished"))
            begin(now)
        told.append((now, left.seconds()))
    return told


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_at_half_time_it_is_right_within_a_factor_of_one_and_a_half(seed: int, workers: int, stops: bool) -> None:
    told = simulate(study(np.random.default_rng(seed), stops=stops), workers)
    end = told[-1][0]
    when, seconds = min(told, key=lambda entry: abs(entry[0] - end / 2))
    assert seconds is not None
    assert 1 / 1.5 <= seconds / (end - when) <= 1.5


@pytest.mark.parametrize("seed", range(3))
def test_of_a_search_it_counts_the_trials_that_are_not_planned_yet(seed: int) -> None:
    trials = study(np.random.default_rng(seed), stops=True) + study(np.random.default_rng(seed + 10), stops=True)
    np.random.default_rng(seed).shuffle(trials)  # type: ignore[arg-type]
    told = simulate(trials, 2, known=False)
    end = told[-1][0]
    when, seconds = min(told, key=lambda entry: abs(entry[0] - end / 2))
    assert seconds is not None
    assert 1 / 1.5 <= seconds / (end - when) <= 1.5


def test_before_the_first_epoch_nothing_is_known() -> None:
    told = simulate(study(np.random.default_rng(0), stops=False), 2)
    assert told[0][1] is None
    assert told[2][1] is not None
    assert told[-1][1] == 0.0


def test_it_counts_down_between_two_epochs() -> None:
    now = 0.0
    (trial, *_) = study(np.random.default_rng(0), stops=False)
    left = TimeLeft([trial.planned], 1, clock=lambda: now)
    left.event(Started(trial.planned.trial_id, 1))
    now = 10.0
    left.event(Epochs(trial.planned.trial_id, [{"epoch": 1, "seconds": 10.0, "val_rmse": 1.0, "val_mae": 1.0}]))
    assert left.seconds() == pytest.approx(190)
    now = 14.0
    assert left.seconds() == pytest.approx(186)


def test_an_open_search_has_no_end_that_could_be_told() -> None:
    (trial, *_) = study(np.random.default_rng(0), stops=False)
    left = TimeLeft([trial.planned], 1, unplanned=None)
    left.event(Epochs(trial.planned.trial_id, [{"epoch": 1, "seconds": 10.0, "val_rmse": 1.0, "val_mae": 1.0}]))
    assert left.seconds() is None


def test_a_trial_is_described_once_however_often_the_time_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    described = []
    monkeypatch.setattr(time_left, "shape_of", lambda spec: described.append(spec) or str(spec.model["width"]))
    trials = study(np.random.default_rng(0), stops=True)
    simulate(trials, 2)
    assert len(described) == len(trials)
