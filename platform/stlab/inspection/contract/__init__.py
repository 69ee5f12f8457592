"""What every model has to keep to: one check a clause, run on data, for our own models and for those of others.

A check gets a :class:`Subject` and returns what is wrong, or None. It raises :class:`NotApplicable` where the clause says nothing about
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stlab.errors import first_line
from stlab.inspection.contract import forecasts, learning
from stlab.inspection.contract.subject import NotApplicable, Subject, default_model, random_batch

__all__ = ["CHECKS", "Finding", "NotApplicable", "Subject", "default_model", "examine", "random_batch"]

CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "shapes": forecasts.shapes,
    "gradients": learning.gradients,
    "no future": forecasts.no_future,
    "windows apart": forecasts.windows_apart,
    "masks": learning.masks,
    "criterion": learning.criterion,
    "pretraining": learning.pretraining,
    "bfloat16": learning.bfloat16,
    "micro-batches": learning.micro_batches,
    "resumption": learning.resumption,
    "seeds": learning.seeds,
    "learning": learning.learning,
    "components": learning.components,
    "season": forecasts.season,
    "information": forecasts.information,
    "network": forecasts.network,
    "inputs": forecasts.inputs,
    "odd sizes": forecasts.odd_sizes,
    "parameters": forecasts.parameters,
    "traced": learning.traced,
}
"""The clauses of the contract, in the order in which they are checked."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    clause: str
    meaning: str
    problem: str | None
    """What is wrong; None where nothing is."""
    skipped: str | None = None
    """Why the clause says nothing about the model."""


def examine(subject: Subject) -> Iterator[Finding]:
    """Run every check. An error that a check does not expect is a finding too."""
    for clause, check in CHECKS.items():
        meaning = (check.__doc__ or "").strip().splitlines()[0]
        try:
            problem = check(subject)
        except NotApplicable as reason:
            yield Finding(clause, meaning, None, str(reason))
            continue
        except Exception as error:  # noqa: BLE001 - the model is somebody's, and the table should be whole
            problem = f"{type(error).__name__}: {first_line(error)}"
        yield Finding(clause, meaning, problem)
