"""Who trains what: worker groups take their trials here and say how far they are.

Plain Python; ``stlab.execution.ray`` runs it as an actor beside the driver. A worker group works off its own pack and then helps
out with the pack that has most left, so that all have work to the end. Saying something never waits for an answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_ATTEMPTS = 3  # a trial whose workers died that often is given up


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


@dataclass(frozen=True)
class Wait:
    """There is nothing to do now; there may be later."""


WAIT = Wait()


class Board:
    """Packs of trial ids; packs of one ``group`` need the same resources and may help each other."""

    def __init__(self, packs: Sequence[Sequence[str]], groups: Sequence[int]) -> None:
        self._waiting = [deque(pack) for pack in packs]
        self._groups = list(groups)
        self._running: dict[int, str] = {}
        self._attempts: dict[str, int] = {}
        self._events: list[dict[str, Any]] = []

    def take(self, pack: int) -> Assignment | None:
        """The next trial for a pack's worker group; the same one again if the group died over it. None: nothing is left."""
        trial_id = self._running.get(pack)
        if trial_id is None:
            trial_id = self._next(pack)
            if trial_id is None:
                return None
            self._running[pack] = trial_id
        self._attempts[trial_id] = self._attempts.get(trial_id, 0) + 1
        self.say({"kind": "started", "trial_id": trial_id, "attempt": self._attempts[trial_id]})
        return Assignment(trial_id, self._attempts[trial_id])

    def _next(self, pack: int) -> str | None:
        if self._waiting[pack]:
            return self._waiting[pack].popleft()
        peers = [p for p, group in enumerate(self._groups) if group == self._groups[pack] and self._waiting[p]]
        return self._waiting[max(peers, key=lambda p: len(self._waiting[p]))].popleft() if peers else None

    def end(self, pack: int, status: str) -> None:
        """The pack's trial ended, in whatever way."""
        trial_id = self._running.pop(pack, None)
        self.say({"kind": "ended", "trial_id": trial_id, "status": status})

    def say(self, event: Mapping[str, Any]) -> None:
        """Keep an event for the driver: ``started``, ``epochs`` or ``ended``."""
        self._events.append(dict(event))

    def hear(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events
