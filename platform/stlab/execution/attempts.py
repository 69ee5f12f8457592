"""How often a trial may be run: what the infrastructure did to it and what it did itself are counted apart."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How often more than once, by what ended a trial."""

    infrastructure: int = 3
    """Workers and nodes that died under it (``resources.infrastructure_retries``)."""
    trial: int = 0
    """Errors of its own (``resources.trial_retries``)."""


_MOST_HALVINGS = 12  # a batch of 4096 has no more; what needs too much before its first batch would be begun for ever


@dataclass
class _Tally:
    deaths: int = 0
    for_memory: int = 0
    failures: int = 0
    ran_out_of_memory: bool = False
    cause: str = ""


class Attempts:
    """The tallies of a run's trials."""

    def __init__(self) -> None:
        self._tallies: dict[Hashable, _Tally] = {}

    def _tally(self, trial: Hashable) -> _Tally:
        return self._tallies.setdefault(trial, _Tally())

    def number(self, trial: Hashable) -> int:
        """The how-manieth attempt the next is, from 1."""
        tally = self._tally(trial)
        return 1 + tally.deaths + tally.failures

    def ran_out_of_memory(self, trial: Hashable) -> bool:
        """Whether the attempt before was killed for want of memory."""
        return self._tally(trial).ran_out_of_memory

    def died(self, trial: Hashable, cause: str, *, of_memory: bool) -> None:
        """Its workers died, for ``cause``."""
        tally = self._tally(trial)
        tally.deaths += 1
        tally.for_memory += of_memory
        tally.cause, tally.ran_out_of_memory = cause, of_memory

    def died_of_memory(self, trial: Hashable) -> None:
        """It turns out that the last death was for want of memory."""
        tally = self._tally(trial)
        tally.for_memory += not tally.ran_out_of_memory
        tally.cause, tally.ran_out_of_memory = f"{tally.cause} The kernel had killed for want of memory.", True

    def failed(self, trial: Hashable, budget: Budget) -> bool:
        """It ended with an error of its own; whether it is to be run again."""
        tally = self._tally(trial)
        if tally.failures >= budget.trial:
            return False
        tally.failures += 1
        return True

    def left(self, trial: Hashable) -> None:
        """It was left by workers that live: at a notice, to start anew, or at an error of its own. That costs nothing."""
        self._tally(trial).ran_out_of_memory = False

    def has_died(self, trial: Hashable) -> bool:
        """Whether its workers died in an attempt before."""
        return self._tally(trial).deaths > 0

    def has_failed(self, trial: Hashable) -> bool:
        """Whether an attempt before ended with an error of its own."""
        return self._tally(trial).failures > 0

    def given_up(self, trial: Hashable, budget: Budget) -> str | None:
        """Why it is not to be run again, where its workers died too often. For want of memory they may: each time it needs less."""
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
