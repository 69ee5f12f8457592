"""The time that a study still needs, from the epochs and trials it has trained so far."""

from __future__ import annotations

import heapq
import json
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stlab.study.plan import PlannedTrial

_RECENT_EPOCHS = 5  # the pace of a trial is the median of so many


@dataclass
class _Trial:
    planned: PlannedTrial
    began_at: float | None = None
    told_at: float | None = None
    """The time of its last news."""
    ended_at: float | None = None
    epoch: int = 0
    best_epoch: int = 0
    best_error: float = float("inf")
    epoch_seconds: list[float] = field(default_factory=list)

    @property
    def max_epochs(self) -> int:
        return self.planned.spec.train.max_epochs

    @property
    def pace(self) -> float | None:
        """Seconds an epoch; None before the first has ended."""
        return statistics.median(self.epoch_seconds[-_RECENT_EPOCHS:]) if self.epoch_seconds else None

    @property
    def shape(self) -> Hashable:
        """Trials of one shape take equally long for an epoch."""
        spec = self.planned.spec
        return spec.data, json.dumps(spec.model, sort_keys=True), spec.train.batch_size, spec.resources.workers


class TimeLeft:
    """Estimates when the trials of a study will have ended.

    An epoch takes as long as the epochs of the same shape that have ended; a shape that has none yet takes as long as the plan's
    relative costs say. A trial has as many epochs as the ended trials of its shape, or, before there are any, the ended trials of all
    shapes; but never fewer than its patience allows. The trials are then dealt to as many workers as the study has.

    Args:
        trials: the trials that are left to train; a search adds its trials as it plans them.
        concurrency: how many trials run at once.
        most: the number of trials of a search, of which only a few are planned yet.
        clock: gives the time in seconds.
    """

    def __init__(
        self, trials: Iterable[PlannedTrial], concurrency: int, *, most: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._concurrency, self.most = clock, max(1, concurrency), most
        self._trials = {trial.trial_id: _Trial(trial) for trial in trials}

    def add(self, trial: PlannedTrial) -> None:
        """Take up a trial that a search has planned."""
        self._trials.setdefault(trial.trial_id, _Trial(trial))

    def started(self, trial_id: str) -> None:
        """A trial began, or began again."""
        if (trial := self._trials.get(trial_id)) is not None:
            trial.began_at = trial.told_at = self._clock()

    def epochs(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Epochs of a trial ended; ``rows`` are those of ``epochs.parquet``."""
        trial = self._trials.get(trial_id)
        if trial is None or not rows:
            return
        trial.told_at = self._clock()
        select_by = f"val_{trial.planned.spec.train.select_by}"
        for row in rows:
            trial.epoch_seconds.append(float(row["seconds"]))
            if row[select_by] < trial.best_error:
                trial.best_error, trial.best_epoch = row[select_by], row["epoch"]
        trial.epoch = rows[-1]["epoch"]

    def ended(self, trial_id: str) -> None:
        """A trial ended, in whatever way."""
        if (trial := self._trials.get(trial_id)) is not None:
            trial.ended_at = self._clock()

    def seconds(self) -> float | None:
        """Seconds until all trials have ended; None before the first epoch has ended."""
        ended = [trial for trial in self._trials.values() if trial.ended_at is not None]
        if not any(trial.epoch_seconds for trial in self._trials.values()):
            return None
        overhead = self._overhead(ended)
        whole = {trial_id: self._seconds(trial, ended) for trial_id, trial in self._trials.items()}
        running, waiting = [], []
        for trial_id, trial in self._trials.items():
            if trial.ended_at is not None:
                continue
            if trial.told_at is None:
                waiting.append(whole[trial_id] + overhead)
            else:
                left = whole[trial_id] - self._pace(trial) * trial.epoch + overhead
                running.append(max(0.0, left - (self._clock() - trial.told_at)))
        begun = [whole[trial_id] + overhead for trial_id, trial in self._trials.items() if trial.epoch]
        waiting += [statistics.mean(begun)] * max(0, self.most - len(self._trials))
        return _makespan(running, waiting, self._concurrency)

    def _overhead(self, ended: Sequence[_Trial]) -> float:
        """Seconds that a trial takes beside its epochs: to build its model, and to measure the test segment."""
        beside = [t.ended_at - t.began_at - sum(t.epoch_seconds) for t in ended if t.ended_at is not None and t.began_at is not None]
        return max(0.0, statistics.median(beside)) if beside else 0.0

    def _seconds(self, trial: _Trial, ended: Sequence[_Trial]) -> float:
        """Seconds for all epochs of a trial."""
        return 0.0 if trial.planned.spec.baseline else self._pace(trial) * self._expected_epochs(trial, ended)

    def _expected_epochs(self, trial: _Trial, ended: Sequence[_Trial]) -> float:
        if trial.ended_at is not None:
            return trial.epoch
        trained = [other for other in ended if other.epoch]
        alike = [other.epoch for other in trained if other.shape == trial.shape]
        if alike:
            expected = statistics.mean(alike)
        else:
            shares = [other.epoch / other.max_epochs for other in trained]
            expected = trial.max_epochs * (statistics.mean(shares) if shares else 1.0)
        earliest = trial.best_epoch + trial.planned.spec.train.patience
        return min(float(trial.max_epochs), max(expected, earliest, trial.epoch + 1.0))

    def _pace(self, trial: _Trial) -> float:
        """Seconds an epoch: of the trial itself, of trials of its shape, or by the relative costs of the plan."""
        if trial.pace is not None:
            return trial.pace
        others = [other for other in self._trials.values() if other.pace is not None]
        if alike := [other.pace for other in others if other.pace is not None and other.shape == trial.shape]:
            return statistics.mean(alike)
        unit = [other.pace / other.planned.cost for other in others if other.pace is not None and other.planned.cost > 0]
        return statistics.mean(unit) * trial.planned.cost if unit else 0.0


def _makespan(running: Sequence[float], waiting: Sequence[float], workers: int) -> float:
    """Seconds until all is done, where a worker that is free takes the longest of what waits."""
    free_at = sorted(running, reverse=True)[:workers]
    free_at += [0.0] * (workers - len(free_at))
    heapq.heapify(free_at)
    for seconds in sorted(waiting, reverse=True):
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)
