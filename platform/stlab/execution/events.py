"""The events of a study, which the trial queue emits and the driver passes on to observers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from stlab.execution.run_study import Outcome
    from stlab.study.plan import Plan, PlannedTrial


@dataclass(frozen=True)
class Started:
    """An attempt at a trial began."""

    trial_id: str
    attempt: int
    """Counted from 1."""


@dataclass(frozen=True)
class Epochs:
    """Epochs of a trial ended. A trial that goes on from a checkpoint repeats those it has, all at once."""

    trial_id: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Note:
    """Something was mended in a trial that the user should know of."""

    trial_id: str
    text: str


@dataclass(frozen=True)
class Ended:
    """A trial ended and will not be run again."""

    trial_id: str
    status: str


@dataclass(frozen=True)
class Resumed:
    """A search begins, with what an earlier run of it left; always its first event."""

    recorded: int
    """Trials whose outcomes the sampler knows already."""


@dataclass(frozen=True)
class Planned:
    """A search has chosen a trial."""

    trial: PlannedTrial
    number: int | None
    """The number of the search's trial; None where the trial trains or measures the selected configuration."""


@dataclass(frozen=True)
class Recorded:
    """The sampler of a search was told the outcome of a trial."""

    trial_id: str
    number: int
    status: str
    is_old: bool
    """Whether the trial was not trained under this number: an equal trial had been trained before."""


TrialEvent = Started | Epochs | Note | Ended
SearchEvent = Resumed | Planned | Recorded
Event = TrialEvent | SearchEvent


def from_training(trial_id: str, report: Mapping[str, Any]) -> Epochs | Note:
    """The event in a report of :func:`stlab.training.run_trial`, which reports plain mappings of two kinds."""
    if report["kind"] == "epochs":
        return Epochs(trial_id, report["rows"])
    if report["kind"] == "note":
        return Note(trial_id, report["text"])
    raise ValueError(f"no such report: {report['kind']!r}")


class Observer(Protocol):
    """An observer of a study. Calls never overlap, though several threads make them. A slow observer delays nobody's training."""

    def begin(self, plan: Plan, todo: Sequence[PlannedTrial], concurrency: int) -> None:
        """The plan is made; ``todo`` are the trials that are left to train, ``concurrency`` of them at a time."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def end(self, outcome: Outcome) -> None:
        """The study has ended, and everything is written."""
