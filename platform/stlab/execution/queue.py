"""The trial queue: worker groups take trials from it and say how they ended.

The queue knows which group runs which trial, and what a death, a failure, a preemption or a deferral costs. Its supply decides which
trial comes next. It is plain Python; ``stlab.execution.ray`` runs it as an actor on the cluster's head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stlab.execution.attempts import Attempts, Budget, MemoryKills
from stlab.execution.capacity import Quota, needs, quota_of
from stlab.execution.events import Ended, Event, Started
from stlab.execution.supply import Emit, Supply, Task, Wait

_DEATHS_WITHOUT_TRIAL = 3  # in a row; a group that dies more often before it has a trial will never have one


@dataclass(frozen=True)
class Assignment:
    """A task that a worker group has taken, and what the attempts before decide about this one."""

    task: Task
    attempt: int
    """Counted from 1."""
    needs_less_memory: bool
    """The attempt before was killed for want of memory: the batch is to be cut into twice as many parts."""
    failed_before: bool
    """An attempt of this run may have left the record of an error behind, which is to be set aside."""
    given_up: str | None
    """Why the trial is not to be trained but to be recorded as failed; None where it is to be trained."""


class TrialQueue:
    """Hands trials to worker groups, which are known by their numbers.

    A group calls ``admit``, then ``take`` for each trial until it answers None, then ``leave``. For each trial that it has taken, exactly
    one of these is called: ``end`` (it has a result), ``hand_back`` (to whoever comes next, at no cost), ``defer`` (another study trains
    it), ``worker_died``, or ``halt`` (the storage failed).

    Args:
        make_supply: makes the supply where the queue lives; it is given the function by which the supply emits events.
    """

    def __init__(self, make_supply: Callable[[Emit], Supply]) -> None:
        self._events: list[Event] = []
        self._supply = make_supply(self._keep)
        groups = self._supply.groups
        self._has_several_workers = [resources.workers > 1 for resources in groups]
        self._budgets = [Budget(r.infrastructure_retries, r.trial_retries) for r in groups]
        self._quota = Quota([needs(resources) for resources in groups], quota_of(groups))
        self._attempts = Attempts()
        self._running: dict[int, Task] = {}
        self._preempted: set[int] = set()  # groups whose preemption was announced
        self._started: set[tuple[Hashable, int]] = set()  # attempts whose start was emitted
        self._deaths_without_trial = [0] * len(groups)
        self._halted: str | None = None

    def admit(self, group: int) -> bool:
        """Whether the study's quota lets the group start now."""
        return self._quota.admit(group)

    def leave(self, group: int) -> None:
        """The group has ended, and takes nothing of the cluster any more."""
        self._quota.leave(group)

    def take(self, group: int, kills: Sequence[MemoryKills] = ()) -> Assignment | Wait | None:
        """The next trial for a worker group; WAIT where there may be one later, None where nothing is left.

        Args:
            kills: what the machines of its workers say now.
        """
        self._attempts.see(kills)
        if self._halted is not None:
            return None
        if group in self._running:
            self.worker_died(group, "nobody could say why.")
        self._preempted.discard(group)
        task = self._supply.next(group)
        if task is None or isinstance(task, Wait):
            return task
        self._running[group] = task
        self._deaths_without_trial[group] = 0
        self._attempts.begin(task.key, kills)
        assignment = self._assignment(group, task)
        if assignment.given_up is None and (task.key, assignment.attempt) not in self._started:
            self._started.add((task.key, assignment.attempt))
            self.emit(Started(task.trial_id, assignment.attempt))
        return assignment

    def _assignment(self, group: int, task: Task) -> Assignment:
        attempts, key = self._attempts, task.key
        return Assignment(
            task,
            attempts.number(key),
            needs_less_memory=attempts.ran_out_of_memory(key),
            # A worker that lost another of its group may have recorded that as an error of the trial's.
            failed_before=attempts.has_failed(key) or (self._has_several_workers[group] and attempts.has_died(key)),
            given_up=attempts.why_given_up(key, self._budgets[group]),
        )

    def report(self, group: int, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Epochs of the group's trial, where a pruner is on: why the trial is to stop now, or None."""
        task = self._running.get(group)
        return self._supply.report(task, rows) if task is not None and rows else None

    def end(self, group: int, status: str) -> None:
        """The group's trial ended with ``status``; a failed one is run again as far as its budget goes."""
        if group not in self._running:
            return
        task = self._running.pop(group)
        budget = self._budgets[group]
        is_given_up = self._attempts.why_given_up(task.key, budget) is not None
        self._attempts.left(task.key)
        if status == "failed" and not is_given_up and self._attempts.failed(task.key, budget):
            self._supply.put_back(group, task)
        else:
            self.emit(Ended(task.trial_id, status))
            self._supply.ended(task)

    def hand_back(self, group: int) -> None:
        """The group leaves its trial, preempted or to start anew. That costs the trial nothing: it has a checkpoint to go on from."""
        if group in self._running:
            task = self._running.pop(group)
            self._attempts.left(task.key)
            self._supply.put_back(group, task)

    def announce_preemption(self, group: int) -> None:
        """The group is about to be taken away. If it dies before it has left its trial, that is no failure."""
        self._preempted.add(group)

    def defer(self, group: int) -> None:
        """Another study trains the group's trial at this moment. The trial waits until that has ended, and is a result then."""
        if group in self._running:
            task = self._running.pop(group)
            self._attempts.deferred(task.key)
            self._supply.defer(group, task)

    def worker_died(self, group: int, cause: str, of_memory: bool = False) -> bool:
        """A worker of the group died, for ``cause``, and the group with it. Returns whether the group is worth starting again."""
        if group in self._preempted:
            self._preempted.discard(group)
            self.hand_back(group)
            return True
        if group in self._running:
            task = self._running.pop(group)
            self._attempts.died(task.key, cause, of_memory=of_memory)
            self._supply.put_back(group, task)  # `take` decides whether it has died too often
            return True
        self._deaths_without_trial[group] += 1
        return self._deaths_without_trial[group] <= _DEATHS_WITHOUT_TRIAL

    def halt(self, group: int, reason: str) -> None:
        """The storage failed the group: nobody is given another trial. The trial is neither failed nor lost; its checkpoint stays."""
        self._running.pop(group, None)
        self._halted = self._halted or reason

    def halted(self) -> str | None:
        """Why the run ends early, where it does."""
        return self._halted

    def emit(self, event: Event) -> None:
        """Keep an event for the driver. Nobody waits for an answer."""
        self._keep(event)
        self._supply.tick()

    def _keep(self, event: Event) -> None:
        self._events.append(event)

    def drain(self) -> list[Event]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events
