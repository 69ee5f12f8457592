"""Who trains what: worker groups take their trials here and say how far they are.

A worker group works off its own pack and then helps out with the pack that has most left, so that all have work to the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from stlab.execution.worker_groups import WAIT, Assignment, Wait, WorkerGroups
from stlab.study.spec import ResourcesSpec

__all__ = ["WAIT", "Assignment", "Board", "Wait"]


class Board(WorkerGroups[str]):
    """Packs of trial ids, one a worker group; packs of equal resources may help each other."""

    def __init__(self, packs: Sequence[Sequence[str]], resources: Sequence[ResourcesSpec]) -> None:
        super().__init__(resources)
        self._waiting = [deque(pack) for pack in packs]
        self._resources = list(resources)

    def _next(self, group: int) -> str | None:
        if self._waiting[group]:
            return self._waiting[group].popleft()
        peers = [p for p, r in enumerate(self._resources) if r == self._resources[group] and self._waiting[p]]
        return self._waiting[max(peers, key=lambda p: len(self._waiting[p]))].popleft() if peers else None

    def _again(self, group: int, task: str, *, first: bool) -> None:
        self._waiting[group].insert(0 if first else len(self._waiting[group]), task)

    def _ended(self, group: int, task: str, status: str) -> None:
        self.say({"kind": "ended", "trial_id": task, "status": status})

    def _key(self, task: str) -> str:
        return task

    def _assignment(self, task: str) -> Assignment:
        return Assignment(task, 1)
