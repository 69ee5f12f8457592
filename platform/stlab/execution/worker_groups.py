"""What worker groups train, and what becomes of a trial whose group dies, leaves or fails: what all boards have in common.

Plain Python; ``stlab.execution.ray`` runs a board as an actor on the cluster's head. Saying something never waits for an answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stlab.execution.attempts import Attempts, Budget
from stlab.execution.memory_kills import MemoryKills
from stlab.execution.quota import Quota, limits, needs
from stlab.study.spec import ResourcesSpec

_DEATHS_WITHOUT_TRIAL = 3  # in a row; a group that dies more often before it has a trial never will have one


@dataclass(frozen=True)
class Assignment:
    """A trial to run, and the how-manieth time that is."""

    trial_id: str
    attempt: int
    spec: Mapping[str, Any] | None = None
    """The trial, where the worker group does not have it already: a search makes them as it goes."""
    identity: Mapping[str, Any] | None = None
    test: bool = True
    """Whether it is measured on the test segment."""
    prunable: bool = False
    """Whether the board is asked, at every epoch, if the trial is to stop."""
    needs_less_memory: bool = False
    """Whether the attempt before was killed for want of memory: the batch is to be cut into twice as many parts."""
    failed_before: bool = False
    """Whether a record of an error that an attempt of this run left behind is to be set aside."""
    given_up: str | None = None
    """Why it is not to be trained but to be recorded as failed."""


@dataclass(frozen=True)
class Wait:
    """There is nothing to do now; there may be later."""


WAIT = Wait()
Task = TypeVar("Task")


class WorkerGroups(ABC, Generic[Task]):
    """Groups by number. Each takes a trial, and ends it, loses it, or hands it back.

    Args:
        resources: of each group.
        wanted: resources of the study's trials, for its quota.
    """

    def __init__(self, resources: Sequence[ResourcesSpec], wanted: Sequence[ResourcesSpec] | None = None) -> None:
        self._several = [r.workers > 1 for r in resources]
        self._budgets = [Budget(r.infrastructure_retries, r.trial_retries) for r in resources]
        self._quota = Quota([needs(r) for r in resources], limits(resources if wanted is None else wanted))
        self._attempts = Attempts()
        self._running: dict[int, Task] = {}
        self._kills: dict[str, int] = {}  # by machine: as it was last told
        self._kills_before: dict[Hashable, Sequence[MemoryKills]] = {}  # by trial: as an attempt began
        self._leaving: set[int] = set()  # groups that were told to go
        self._announced: set[tuple[Hashable, int]] = set()
        self._deferred: set[Hashable] = set()  # somebody else was training them when they were last taken
        self._deaths_without_trial = [0] * len(resources)
        self._events: list[dict[str, Any]] = []
        self._halted: str | None = None

    @abstractmethod
    def _next(self, group: int) -> Task | Wait | None:
        """The next trial for a group; None where nothing is left for it, ever."""

    @abstractmethod
    def _again(self, group: int, task: Task, *, first: bool) -> None:
        """Have a trial of this group's wait to be taken once more, by whoever comes: before all others or after them."""

    @abstractmethod
    def _ended(self, group: int, task: Task, status: str) -> None:
        """The trial is over."""

    @abstractmethod
    def _key(self, task: Task) -> Hashable:
        """What tells it from other trials of the run."""

    @abstractmethod
    def _assignment(self, task: Task) -> Assignment:
        """What its group is told, less what the attempts before decide."""

    def admit(self, group: int) -> bool:
        """Whether the study's quota lets the group start now."""
        return self._quota.admit(group)

    def leave(self, group: int) -> None:
        """The group has ended and holds nothing of the cluster any more."""
        self._quota.leave(group)

    def take(self, group: int, kills: Sequence[MemoryKills] = ()) -> Assignment | Wait | None:
        """The next trial for a worker group. WAIT: perhaps later; None: nothing is left.

        Args:
            kills: what the machines of its workers say now.
        """
        self._kills |= {found.machine: found.count for found in kills}
        if self._halted is not None:
            return None
        if group in self._running:
            self.fall(group, "nobody could say why.")
        self._leaving.discard(group)
        task = self._next(group)
        if task is None or isinstance(task, Wait):
            return task
        self._running[group] = task
        key, budget = self._key(task), self._budgets[group]
        self._ask_the_kernel(key, kills)
        found = self._assignment(task)
        assignment = Assignment(
            found.trial_id, self._attempts.number(key), found.spec, found.identity, found.test, found.prunable,
            needs_less_memory=self._attempts.ran_out_of_memory(key),
            # One of several workers that lost another may have taken that for an error of the trial's.
            failed_before=self._attempts.has_failed(key) or (self._several[group] and self._attempts.has_died(key)),
            given_up=self._attempts.given_up(key, budget),
        )  # fmt: skip
        if (key, assignment.attempt) not in self._announced:
            self._announced.add((key, assignment.attempt))
            self.say({"kind": "started", "trial_id": found.trial_id, "attempt": assignment.attempt})
        return assignment

    def _ask_the_kernel(self, key: Hashable, kills: Sequence[MemoryKills]) -> None:
        """Whether it killed for want of memory since the trial was begun, on a machine where it then died; and remember ``kills``."""
        before = self._kills_before.pop(key, ())
        if any(self._kills[found.machine] > found.count for found in before):
            self._attempts.died_of_memory(key)
        self._kills_before[key] = kills

    def end(self, group: int, status: str) -> None:
        """The group's trial ended, in whatever way; a failed one is run again as far as its budget goes."""
        self._deaths_without_trial[group] = 0
        if group not in self._running:
            return
        task = self._running.pop(group)
        key, budget = self._key(task), self._budgets[group]
        is_given_up = self._attempts.given_up(key, budget) is not None
        self._forget(task)
        if status == "failed" and not is_given_up and self._attempts.failed(key, budget):
            self._again(group, task, first=True)
        else:
            self._ended(group, task, status)

    def hand_back(self, group: int) -> None:
        """The group leaves because it was told to, or to start anew, and its trial has something to go on from. That costs it nothing."""
        if group in self._running:
            task = self._running.pop(group)
            self._forget(task)
            self._again(group, task, first=True)

    def _forget(self, task: Task) -> None:
        """That an attempt ran out of memory: the trial's directory knows by now how small its batches are."""
        self._attempts.left(self._key(task))
        self._kills_before.pop(self._key(task), None)

    def notice(self, group: int) -> None:
        """The group was told to go. Should it die before it has left its trial, that is no failure."""
        self._leaving.add(group)

    def defer(self, group: int) -> None:
        """Somebody else trains the group's trial at this moment: it waits until they are done, and is a result then."""
        if group in self._running:
            task = self._running.pop(group)
            self._deferred.add(self._key(task))
            self._kills_before.pop(self._key(task), None)
            self._again(group, task, first=False)

    def fall(self, group: int, cause: str, of_memory: bool = False) -> bool:
        """The group died, for ``cause``. Whether it is worth starting it again."""
        if group in self._leaving:
            self._leaving.discard(group)
            self.hand_back(group)
            return True
        if group in self._running:
            task = self._running.pop(group)
            self._attempts.died(self._key(task), cause, of_memory=of_memory)
            self._again(group, task, first=True)
            return True
        self._deaths_without_trial[group] += 1
        return self._deaths_without_trial[group] <= _DEATHS_WITHOUT_TRIAL

    def halt(self, group: int, reason: str) -> None:
        """The storage failed the group: nobody is given another trial. The trial is neither failed nor lost; its checkpoint stays."""
        self._running.pop(group, None)
        self._halted = self._halted or reason

    def halted(self) -> str | None:
        """Why the run ends before its time, where it does."""
        return self._halted

    def say(self, event: Mapping[str, Any]) -> None:
        """Keep an event for the driver: ``started``, ``epochs`` or ``ended``."""
        self._events.append(dict(event))

    def hear(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events
