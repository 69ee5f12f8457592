"""The trials of a search: baselines first, then points that Optuna chooses, then what is selected.

Points are asked of the branches in turn. When the budget of a branch is spent, its best configuration is measured on the test segment,
once, and is trained with the study's other seeds.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stlab.execution.events import Event, Planned, Recorded, Resumed
from stlab.execution.supply import WAIT, Emit, Supply, Task, Wait, with_resources
from stlab.search.history import WALL, wall_seconds
from stlab.search.study import BranchSearch
from stlab.storage import Store, TrialDirectory
from stlab.study.plan import PlannedTrial, SearchBranch
from stlab.study.spec import ResourcesSpec, StudySpec

_KEEP_SECONDS = 10.0  # the time searched so far is written that often


@dataclass(frozen=True)
class SearchWork:
    """The work of a search's worker groups. All resources are decided (``gpus``)."""

    study: StudySpec
    branches: tuple[SearchBranch, ...]
    measured: tuple[PlannedTrial, ...]
    """Trials that are measured on the test segment whatever comes out: baselines."""
    groups: tuple[ResourcesSpec, ...]
    """The resources of each worker group."""


@dataclass
class _Branch:
    index: int
    search: BranchSearch
    resources: ResourcesSpec
    running: dict[int, set[str]] = field(default_factory=dict)
    """Number → the trials of a point that have not ended: they are being trained, or wait to be, here or for an equal point."""
    trained: dict[int, set[str]] = field(default_factory=dict)
    """Number → the trials of a running point that have been trained for it."""
    is_spent: bool = False
    is_selected: bool = False


class SearchSupply(Supply):
    """Asks Optuna for points, and tells it what became of them."""

    def __init__(self, store: Store, work: SearchWork, emit: Emit) -> None:
        self.groups = work.groups
        self._store, self._study, self._emit_event = store, work.study, emit
        self._is_pruned = work.study.search is not None and work.study.search.pruner != "none"
        self._owner = uuid.uuid4().hex
        self._prefix = f"studies/{work.study.name}/search"
        # Written before the history is read: the queue that a killed driver left behind sees it, and adds nothing more.
        store.write_json(f"{self._prefix}/owner.json", {"owner": self._owner})
        self._branches = [
            _Branch(index, BranchSearch(store, work.study, branch), branch.template.spec.resources)
            for index, branch in enumerate(work.branches)
        ]
        self._waiting = deque(Task(trial) for trial in work.measured)
        self._deferred: set[object] = set()  # keys of tasks that another study was training when they were last taken
        emit(Resumed(sum(entry.told for branch in self._branches for entry in branch.search.entries)))
        self._wall_before, self._began = wall_seconds(store, work.study.name), time.monotonic()
        self._kept_at = self._began

    def next(self, group: int) -> Task | Wait | None:
        if self._is_taken_over():
            return None
        resources = self.groups[group]
        task = self._next_for(resources)
        # A point that runs now may bring work for the group: a better point to choose, or a selection to train.
        if task is None and any(branch.resources == resources and branch.running for branch in self._branches):
            return WAIT
        return task

    def _next_for(self, resources: ResourcesSpec) -> Task | None:
        mine = [branch for branch in self._branches if branch.resources == resources]
        while True:
            if (task := self._next_waiting(resources, deferred=False)) is not None:
                return task
            # The branch with the fewest points begun comes first, so that the branches grow together.
            searching = sorted((branch for branch in mine if not branch.is_spent), key=lambda branch: len(branch.search.entries))
            for branch in searching:
                if (asked := self._ask(branch)) is not None:
                    return asked
            if not any(self._select(branch) for branch in mine):
                return self._next_waiting(resources, deferred=True)

    def _next_waiting(self, resources: ResourcesSpec, *, deferred: bool) -> Task | None:
        for task in self._waiting:
            if task.trial.spec.resources == resources and (task.key in self._deferred) == deferred:
                self._waiting.remove(task)
                return task
        return None

    def _ask(self, branch: _Branch) -> Task | None:
        """The next trial of a branch; None where none is left. Points that need no training end at once.

        A point on several data sets has several trials; those after the first wait for the next worker groups.
        """
        while (proposed := branch.search.next(self._wall())) is not None:
            entry, trials = proposed
            if not trials:
                branch.search.tell(entry.number)
                continue
            for trial in trials:
                self._emit(Planned(trial, entry.number))
            busy = set().union(*branch.running.values())
            left = [trial for trial in trials if trial.trial_id in busy or not self._has_ended(branch, trial)]
            if not left:
                self._tell(branch, entry.number)
                continue
            branch.running[entry.number] = {trial.trial_id for trial in left}
            tasks = [
                Task(with_resources(trial, branch.resources), False, self._is_pruned, branch.index, entry.number)
                for trial in left
                if trial.trial_id not in busy  # Optuna is told when the equal one ends
            ]
            if tasks:
                self._waiting.extend(tasks[1:])
                return tasks[0]
        branch.is_spent = True
        return None

    def _select(self, branch: _Branch) -> bool:
        """Once a branch is over: have its best configuration measured, with every seed. Returns whether that is work."""
        if branch.is_selected or branch.running or not branch.is_spent:
            return False
        branch.is_selected = True
        selected = branch.search.selected()
        todo = [trial for trial in selected if not TrialDirectory(self._store, trial.trial_id).is_over()]
        for trial in selected:
            self._emit(Planned(trial, None))
        self._waiting.extend(Task(with_resources(trial, branch.resources)) for trial in todo)
        return bool(todo)

    def put_back(self, group: int, task: Task) -> None:
        self._waiting.appendleft(task)

    def defer(self, group: int, task: Task) -> None:
        self._deferred.add(task.key)
        self._waiting.append(task)

    def ended(self, task: Task) -> None:
        if task.branch is None:
            return
        branch = self._branches[task.branch]
        if task.number is not None:
            branch.trained.setdefault(task.number, set()).add(task.trial_id)
        for number in [number for number, left in branch.running.items() if task.trial_id in left]:
            branch.running[number].discard(task.trial_id)
            if not branch.running[number]:
                del branch.running[number]
                self._tell(branch, number)
        self._keep_wall()

    def report(self, task: Task, rows: Sequence[Mapping[str, Any]]) -> str | None:
        if task.branch is None or task.number is None:
            return None
        return self._branches[task.branch].search.hear(task.number, rows)

    def tick(self) -> None:
        if time.monotonic() - self._kept_at > _KEEP_SECONDS:
            self._keep_wall()

    def _has_ended(self, branch: _Branch, trial: PlannedTrial) -> bool:
        return branch.search.history.trial_outcome(TrialDirectory(self._store, trial.trial_id)) is not None

    def _tell(self, branch: _Branch, number: int) -> None:
        """Tell the sampler of a point, and the observers of each of its trials."""
        outcome, trained = branch.search.tell(number), branch.trained.pop(number, set())
        for trial_id in branch.search.entries[number].trial_ids:
            self._emit(Recorded(trial_id, number, outcome.state.value, trial_id not in trained))

    def _emit(self, event: Event) -> None:
        self._emit_event(event)
        self.tick()

    def _is_taken_over(self) -> bool:
        """Whether another queue has begun to run this search."""
        return bool(self._store.read_json(f"{self._prefix}/owner.json")["owner"] != self._owner)

    def _wall(self) -> float:
        return self._wall_before + time.monotonic() - self._began

    def _keep_wall(self) -> None:
        self._kept_at = time.monotonic()
        self._store.write_json(f"{self._prefix}/{WALL}", {"seconds": self._wall()})
