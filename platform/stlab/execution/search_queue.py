"""Who trains what in a search: worker groups take points that Optuna chooses, and hear when a trial is to stop.

A worker group takes the baselines first, then points of the branches in turn; when a branch's budget is spent, its best
configuration is measured on the test segment, once, and trained with the study's other seeds.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stlab.execution.worker_groups import WAIT, Assignment, Wait, WorkerGroups
from stlab.search.history import WALL, wall_seconds
from stlab.search.study import BranchSearch
from stlab.storage import Store, TrialDirectory
from stlab.study.plan import PlannedTrial, SearchBranch
from stlab.study.spec import ResourcesSpec, StudySpec

_KEEP_SECONDS = 10.0  # the time searched so far is written that often


@dataclass(frozen=True)
class SearchWork:
    """What a search's worker groups have to do. All resources are decided (``gpus``)."""

    study: StudySpec
    branches: tuple[SearchBranch, ...]
    measured: tuple[PlannedTrial, ...]
    """Trials that are measured on the test segment whatever comes out: baselines."""
    groups: tuple[ResourcesSpec, ...]
    """A worker group each: the resources it has."""


@dataclass
class _Task:
    trial: PlannedTrial
    test: bool
    resources: ResourcesSpec
    branch: _Branch | None = None
    number: int | None = None


@dataclass
class _Branch:
    search: BranchSearch
    resources: ResourcesSpec
    running: dict[int, str] = field(default_factory=dict)
    """Number → trial id, of the points that are being trained or wait for an equal one that is."""
    is_spent: bool = False
    is_selected: bool = False


class SearchBoard(WorkerGroups[_Task]):
    """The board of a search."""

    def __init__(self, store: Store, work: SearchWork) -> None:
        super().__init__(work.groups)
        self._store, self._work = store, work
        self._owner = uuid.uuid4().hex
        self._prefix = f"studies/{work.study.name}/search"
        # Written before the history is read: a board that was left behind by a killed driver sees it and adds nothing more.
        store.write_json(f"{self._prefix}/owner.json", {"owner": self._owner})
        self._branches = [_Branch(BranchSearch(store, work.study, branch), branch.template.spec.resources) for branch in work.branches]
        self._tasks = deque(_Task(trial, True, trial.spec.resources) for trial in work.measured)
        told = sum(entry.told for branch in self._branches for entry in branch.search.entries)
        self._events = [{"kind": "history", "trial_id": "", "told": told}]
        self._wall_before, self._began = wall_seconds(store, work.study.name), time.monotonic()
        self._kept_at = self._began

    def _next(self, group: int) -> _Task | Wait | None:
        if self._is_taken_over():
            return None
        task = self._next_for(self._work.groups[group])
        if task is None and self._may_have_work(self._work.groups[group]):
            return WAIT
        return task

    def _key(self, task: _Task) -> tuple[str, bool]:
        return task.trial.trial_id, task.test

    def _assignment(self, task: _Task) -> Assignment:
        spec = task.trial.spec.model_copy(update={"resources": task.resources})
        prunable = task.number is not None and self._work.study.search is not None and self._work.study.search.pruner != "none"
        return Assignment(task.trial.trial_id, 1, spec.model_dump(), task.trial.identity, task.test, prunable)

    def _again(self, group: int, task: _Task, *, first: bool) -> None:
        self._tasks.insert(0 if first else len(self._tasks), task)

    def _next_for(self, resources: ResourcesSpec) -> _Task | None:
        mine = [branch for branch in self._branches if branch.resources == resources]
        while True:
            if (task := self._waiting(resources, deferred=False)) is not None:
                return task
            # The branch with the fewest points begun: they grow together.
            searching = sorted((branch for branch in mine if not branch.is_spent), key=lambda branch: len(branch.search.entries))
            for branch in searching:
                if (begun := self._begin(branch)) is not None:
                    return begun
            if not any(self._select(branch) for branch in mine):
                return self._waiting(resources, deferred=True)

    def _waiting(self, resources: ResourcesSpec, *, deferred: bool) -> _Task | None:
        for task in self._tasks:
            if task.resources == resources and (self._key(task) in self._deferred) == deferred:
                self._tasks.remove(task)
                return task
        return None

    def _begin(self, branch: _Branch) -> _Task | None:
        """A point of a branch that is to be trained; those that need no training are told on the way. None: none is left."""
        while (proposed := branch.search.next(self._wall())) is not None:
            entry, trial = proposed
            if trial is None:
                branch.search.tell(entry.number)
                continue
            self.say({"kind": "planned", "trial_id": trial.trial_id, "trial": trial, "number": entry.number})
            if trial.trial_id in branch.running.values():
                branch.running[entry.number] = trial.trial_id  # told when the equal one ends
            elif branch.search.has_ended(entry.number):
                self._tell(branch, entry.number, trial.trial_id, is_old=True)
            else:
                branch.running[entry.number] = trial.trial_id
                return _Task(trial, False, branch.resources, branch, entry.number)
        branch.is_spent = True
        return None

    def _select(self, branch: _Branch) -> bool:
        """Once a branch is over: have its best configuration measured, with every seed. Whether there is work from it."""
        if branch.is_selected or branch.running or not branch.is_spent:
            return False
        branch.is_selected = True
        chosen = branch.search.selected()
        todo = [trial for trial in chosen if not TrialDirectory(self._store, trial.trial_id).is_over()]
        for trial in chosen:
            self.say({"kind": "planned", "trial_id": trial.trial_id, "trial": trial, "number": None})
        self._tasks.extend(_Task(trial, True, branch.resources) for trial in todo)
        return bool(todo)

    def _ended(self, group: int, task: _Task, status: str) -> None:
        self.say({"kind": "ended", "trial_id": task.trial.trial_id, "status": status})
        if task.branch is None:
            return
        for number in [n for n, trial_id in task.branch.running.items() if trial_id == task.trial.trial_id]:
            del task.branch.running[number]
            self._tell(task.branch, number, task.trial.trial_id, is_old=number != task.number)
        self._keep_wall(now=True)

    def report(self, group: int, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Epochs of the group's trial, when a pruner is on: why it is to stop now, or None."""
        task = self._running.get(group)
        if task is None or task.branch is None or task.number is None or not rows:
            return None
        return task.branch.search.hear(task.number, rows)

    def say(self, event: Mapping[str, Any]) -> None:
        """Keep an event for the driver: ``history`` (once, first), ``planned``, ``started``, ``epochs``, ``ended`` or ``told``."""
        super().say(event)
        self._keep_wall()

    def _tell(self, branch: _Branch, number: int, trial_id: str, *, is_old: bool) -> None:
        outcome = branch.search.tell(number)
        self.say({"kind": "told", "trial_id": trial_id, "number": number, "status": outcome.state.value, "is_old": is_old})

    def _may_have_work(self, resources: ResourcesSpec) -> bool:
        """Whether what runs now may bring work for a group: a better point to choose, or a selection to train."""
        return any(branch.resources == resources and branch.running for branch in self._branches)

    def _is_taken_over(self) -> bool:
        return bool(self._store.read_json(f"{self._prefix}/owner.json")["owner"] != self._owner)

    def _wall(self) -> float:
        return self._wall_before + time.monotonic() - self._began

    def _keep_wall(self, now: bool = False) -> None:
        if now or time.monotonic() - self._kept_at > _KEEP_SECONDS:
            self._kept_at = time.monotonic()
            self._store.write_json(f"{self._prefix}/{WALL}", {"seconds": self._wall()})
