"""How often a trial may be run. Deaths of its workers, lack of memory and errors of its own are counted apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOST_HALVINGS = 12  # a batch of 4096 has no more; a trial that needs too much with one window would otherwise begin for ever
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_COUNTS = Path("/proc/vmstat")


@dataclass(frozen=True)
class MemoryKills:
    """How many processes the kernel of a machine has killed for want of memory since it started; its containers share the count.

    Nothing else tells such a death from any other ``kill -9``.
    """

    machine: str
    count: int

    @classmethod
    def here(cls) -> MemoryKills | None:
        """The count of this machine's kernel; None where the kernel does not tell it."""
        try:
            counts = dict(line.split() for line in _COUNTS.read_text().splitlines())
            return cls(_BOOT_ID.read_text().strip(), int(counts["oom_kill"]))
        except (OSError, KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Budget:
    """How often a trial may be run again, by what ended it."""

    infrastructure: int = 3
    """Deaths of workers and nodes (``resources.infrastructure_retries``)."""
    trial: int = 0
    """Errors of the trial's own (``resources.trial_retries``)."""


@dataclass
class _Tally:
    deaths: int = 0
    for_memory: int = 0
    failures: int = 0
    ran_out_of_memory: bool = False
    """Whether the last attempt was killed for want of memory."""
    cause: str = ""
    """Why its workers died the last time."""
    kills: Sequence[MemoryKills] = ()
    """The counts of its workers' machines when the running attempt began."""


class Attempts:
    """The tallies of a run's trials, by a key that tells each trial from the others."""

    def __init__(self) -> None:
        self._tallies: dict[Hashable, _Tally] = {}
        self._kills: dict[str, int] = {}  # by machine: the newest count

    def _tally(self, trial: Hashable) -> _Tally:
        return self._tallies.setdefault(trial, _Tally())

    def number(self, trial: Hashable) -> int:
        """The number of the next attempt, counted from 1."""
        tally = self._tally(trial)
        return 1 + tally.deaths + tally.failures

    def ran_out_of_memory(self, trial: Hashable) -> bool:
        """Whether the attempt before was killed for want of memory."""
        return self._tally(trial).ran_out_of_memory

    def has_died(self, trial: Hashable) -> bool:
        """Whether its workers died in an attempt before."""
        return self._tally(trial).deaths > 0

    def has_failed(self, trial: Hashable) -> bool:
        """Whether an attempt before ended with an error of its own."""
        return self._tally(trial).failures > 0

    def see(self, kills: Sequence[MemoryKills]) -> None:
        """Take note of the newest counts of some machines."""
        self._kills |= {found.machine: found.count for found in kills}

    def begin(self, trial: Hashable, kills: Sequence[MemoryKills]) -> None:
        """An attempt begins on machines with these counts.

        If the attempt before ended in a death, and the kernel of one of its machines has killed since it began, then the death counts
        as one for want of memory.
        """
        tally = self._tally(trial)
        if any(self._kills[found.machine] > found.count for found in tally.kills):
            tally.for_memory += not tally.ran_out_of_memory
            tally.cause, tally.ran_out_of_memory = f"{tally.cause} The kernel had killed for want of memory.", True
        tally.kills = kills

    def died(self, trial: Hashable, cause: str, *, of_memory: bool) -> None:
        """Its workers died, for ``cause``."""
        tally = self._tally(trial)
        tally.deaths += 1
        tally.for_memory += of_memory
        tally.cause, tally.ran_out_of_memory = cause, of_memory

    def failed(self, trial: Hashable, budget: Budget) -> bool:
        """It ended with an error of its own. Returns whether it is to be run again."""
        tally = self._tally(trial)
        if tally.failures >= budget.trial:
            return False
        tally.failures += 1
        return True

    def left(self, trial: Hashable) -> None:
        """Its workers left it alive: they were preempted, start anew, or met an error of its own. That costs nothing.

        A lack of memory in the attempt before is forgotten: the trial's directory knows by now how small its batches are.
        """
        tally = self._tally(trial)
        tally.ran_out_of_memory, tally.kills = False, ()

    def deferred(self, trial: Hashable) -> None:
        """The attempt did not begin, as another study trains the trial at this moment."""
        self._tally(trial).kills = ()

    def why_given_up(self, trial: Hashable, budget: Budget) -> str | None:
        """Why it is not to be run again, where its workers died too often; None otherwise.

        Deaths for want of memory do not count against the budget, because each time the trial needs less.
        """
        tally = self._tally(trial)
        deaths = tally.deaths - tally.for_memory
        if tally.for_memory > _MOST_HALVINGS:
            return f"its workers were killed for want of memory {tally.for_memory} times, however small its batches were; {tally.cause}"
        if deaths <= budget.infrastructure:
            return None
        times = "once" if deaths == 1 else f"{deaths} times"
        return (
            f"its workers died {times} (resources.infrastructure_retries: {budget.infrastructure}); the last time: {tally.cause} "
            "`stlab run --retry-failed` goes on from its last checkpoint"
        )
