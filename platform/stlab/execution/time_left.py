"""The time that a study still needs, from the epochs and trials it has trained so far."""

from __future__ import annotations

import heapq
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stlab.catalog import config_class
from stlab.execution.events import Ended, Epochs, Event, Planned, Recorded, Resumed, Started
from stlab.study.plan import PlannedTrial
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec
from stmodels.config import KEEPS_COST, marked

_RECENT_EPOCHS = 5  # the pace of a trial is the median of so many


def shape_of(spec: TrialSpec) -> str:
    """The settings that the cost of a step depends on, as JSON: model, data, batch, arithmetic and resources.

    Fields that are annotated with ``KEEPS_COST``, such as the learning rate, do not belong to them, and neither does the seed.
    """
    sections = (
        (spec.model, config_class(spec.model["name"])),
        (spec.data.model_dump(mode="json"), DataSpec),
        (spec.train.model_dump(mode="json"), TrainSpec),
        (spec.resources.model_dump(mode="json"), ResourcesSpec),
    )
    shape = [{name: value for name, value in values.items() if name not in marked(owner, KEEPS_COST)} for values, owner in sections]
    return json.dumps(shape, sort_keys=True, default=str)


@dataclass
class _Trial:
    planned: PlannedTrial
    shape: str
    began_at: float | None = None
    told_at: float | None = None
    """The time of its last news."""
    ended_at: float | None = None
    epoch: int = 0
    best_epoch: int = 0
    best_error: float = float("inf")
    epoch_seconds: list[float] = field(default_factory=list)
    pace: float | None = None
    """Seconds an epoch; None before the first has ended."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        select_by = f"val_{self.planned.spec.train.select_by}"
        for row in rows:
            self.epoch_seconds.append(float(row["seconds"]))
            if row[select_by] < self.best_error:
                self.best_error, self.best_epoch = row[select_by], row["epoch"]
        self.epoch = rows[-1]["epoch"]
        self.pace = statistics.median(self.epoch_seconds[-_RECENT_EPOCHS:])


class TimeLeft:
    """Estimates when the trials of a study will have ended.

    An epoch takes as long as the epochs of the same shape that have ended; a shape that has none yet takes as long as the plan's
    relative costs say. A trial has as many epochs as the ended trials of its shape, or, before there are any, the ended trials of all
    shapes; but never fewer than its patience allows. The trials are then dealt to as many workers as the study has.

    Args:
        trials: the trials that are left to train and known now.
        concurrency: how many trials run at once.
        unplanned: the number of trials that a search has yet to plan; None where nothing limits it.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        trials: Iterable[PlannedTrial],
        concurrency: int,
        *,
        unplanned: int | None = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._concurrency, self._unplanned = clock, max(1, concurrency), unplanned
        self._trials: dict[str, _Trial] = {}
        for trial in trials:
            self._add(trial)

    def _add(self, trial: PlannedTrial) -> None:
        if trial.trial_id not in self._trials:
            self._trials[trial.trial_id] = _Trial(trial, shape_of(trial.spec))

    def event(self, event: Event) -> None:
        """Take up an event of the study."""
        if isinstance(event, Planned):
            self._add(event.trial)
            self._plan(1)
        elif isinstance(event, Resumed):
            self._plan(event.recorded)
        elif (trial := self._trials.get(event.trial_id)) is not None:
            now = self._clock()
            if isinstance(event, Started):
                trial.began_at, trial.told_at, trial.ended_at = now, now, None
            elif isinstance(event, Epochs) and event.rows:
                trial.told_at = now
                trial.add(event.rows)
            elif isinstance(event, Ended) or (isinstance(event, Recorded) and event.is_old):
                trial.ended_at = now

    def _plan(self, count: int) -> None:
        if self._unplanned is not None:
            self._unplanned = max(0, self._unplanned - count)

    def seconds(self) -> float | None:
        """Seconds until all trials have ended; None before the first epoch has ended, and in a search without a limit on its trials."""
        trials = self._trials.values()
        if self._unplanned is None or not any(trial.epoch for trial in trials):
            return None
        rates = _Rates(trials)
        running, waiting, begun = [], [], []
        for trial in trials:
            whole = rates.seconds(trial) + rates.overhead
            if trial.epoch:
                begun.append(whole)
            if trial.ended_at is not None:
                continue
            if trial.told_at is None:
                waiting.append(whole)
            else:
                left = whole - rates.pace(trial) * trial.epoch
                running.append(max(0.0, left - (self._clock() - trial.told_at)))
        waiting += [statistics.mean(begun)] * self._unplanned
        return _makespan(running, waiting, self._concurrency)


class _Rates:
    """What the trials so far tell of the others: seconds an epoch, numbers of epochs, and seconds beside the epochs."""

    def __init__(self, trials: Iterable[_Trial]) -> None:
        paces, epochs = defaultdict(list), defaultdict(list)
        units, shares, beside = [], [], []
        for trial in trials:
            if trial.pace is not None:
                paces[trial.shape].append(trial.pace)
                if trial.planned.cost > 0:
                    units.append(trial.pace / trial.planned.cost)
            if trial.ended_at is not None and trial.epoch:
                epochs[trial.shape].append(trial.epoch)
                shares.append(trial.epoch / trial.planned.spec.train.max_epochs)
            if trial.ended_at is not None and trial.began_at is not None:
                beside.append(trial.ended_at - trial.began_at - sum(trial.epoch_seconds))
        self._paces = {shape: statistics.mean(values) for shape, values in paces.items()}
        self._epochs = {shape: statistics.mean(values) for shape, values in epochs.items()}
        self._unit = statistics.mean(units) if units else 0.0
        self._share = statistics.mean(shares) if shares else 1.0
        self.overhead = max(0.0, statistics.median(beside)) if beside else 0.0
        """Seconds that a trial takes to build its model, and to measure the test segment."""

    def seconds(self, trial: _Trial) -> float:
        """Seconds for all epochs of a trial."""
        return 0.0 if trial.planned.spec.baseline else self.pace(trial) * self._expected_epochs(trial)

    def pace(self, trial: _Trial) -> float:
        """Seconds an epoch: of the trial itself, of trials of its shape, or by the relative costs of the plan."""
        if trial.pace is not None:
            return trial.pace
        return self._paces.get(trial.shape, self._unit * trial.planned.cost)

    def _expected_epochs(self, trial: _Trial) -> float:
        if trial.ended_at is not None:
            return trial.epoch
        train = trial.planned.spec.train
        expected = self._epochs.get(trial.shape, train.max_epochs * self._share)
        earliest = trial.best_epoch + train.patience + train.decay_epochs
        return min(float(train.most_epochs), max(expected, earliest, trial.epoch + 1.0))


def _makespan(running: Sequence[float], waiting: Sequence[float], workers: int) -> float:
    """Seconds until all is done, where a worker that is free takes the longest of what waits."""
    free_at = sorted(running, reverse=True)[:workers]
    free_at += [0.0] * (workers - len(free_at))
    heapq.heapify(free_at)
    for seconds in sorted(waiting, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)
