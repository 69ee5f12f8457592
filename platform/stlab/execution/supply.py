"""The supply of a trial queue decides which trial comes next: from packs of a fixed list here, from a search in ``search_supply``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stlab.execution.events import Event
from stlab.study.packs import Pack
from stlab.study.plan import PlannedTrial
from stlab.study.spec import ResourcesSpec

Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Task:
    """A trial to train, and how. Workers get the specification only through this."""

    trial: PlannedTrial
    """Its resources are decided."""
    test: bool = True
    """Whether it is measured on the test segment."""
    prunable: bool = False
    """Whether the queue is asked, at every epoch, if the trial is to stop."""
    branch: int | None = None
    """The branch of the search that chose it, where one did."""
    number: int | None = None
    """Its number in that branch."""

    @property
    def trial_id(self) -> str:
        return self.trial.trial_id

    @property
    def key(self) -> Hashable:
        """Tells it from other tasks of the run: a trial may be trained first, and be measured on the test segment later."""
        return self.trial_id, self.test


@dataclass(frozen=True)
class Wait:
    """There is nothing to do now; there may be later."""


WAIT = Wait()


class Supply(ABC):
    """Decides what comes next. Nothing here knows what deaths and failures cost.

    For each task that ``next`` gave, the queue calls ``put_back``, ``defer`` or ``ended`` once, and ``report`` as often as it likes before.
    A run that is halted calls nothing more.
    """

    groups: Sequence[ResourcesSpec]
    """The worker groups of the run: the resources that each has."""

    @abstractmethod
    def next(self, group: int) -> Task | Wait | None:
        """The next task for a group; None where nothing is left for it, ever."""

    @abstractmethod
    def put_back(self, group: int, task: Task) -> None:
        """The group did not end the task. It comes before all others that the group may take, for this group or for one that helps out."""

    @abstractmethod
    def defer(self, group: int, task: Task) -> None:
        """The group could not begin the task: it is taken again after all others."""

    @abstractmethod
    def ended(self, task: Task) -> None:
        """The task's trial is over."""

    def report(self, task: Task, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Epochs of a prunable task: why its trial is to stop now, or None."""
        return None

    def tick(self) -> None:  # noqa: B027 - most supplies have no clock
        """Something happened in the run; a supply with a clock may take its time."""


def with_resources(trial: PlannedTrial, resources: ResourcesSpec) -> PlannedTrial:
    """The trial with its resources decided."""
    return replace(trial, spec=trial.spec.model_copy(update={"resources": resources}))


class PackSupply(Supply):
    """One pack of trials for each worker group.

    A group works off its own pack and then helps out with the longest pack of equal resources, so that all have work to the end.
    """

    def __init__(self, packs: Sequence[Pack], emit: Emit) -> None:
        self.groups = [pack.resources for pack in packs]
        self._waiting = [deque(Task(trial) for trial in pack.trials) for pack in packs]

    def next(self, group: int) -> Task | None:
        if self._waiting[group]:
            return self._waiting[group].popleft()
        peers = [other for other, r in enumerate(self.groups) if r == self.groups[group] and self._waiting[other]]
        return self._waiting[max(peers, key=lambda other: len(self._waiting[other]))].popleft() if peers else None

    def put_back(self, group: int, task: Task) -> None:
        self._waiting[group].appendleft(task)

    def defer(self, group: int, task: Task) -> None:
        self._waiting[group].append(task)

    def ended(self, task: Task) -> None:
        """Nothing follows from it."""
