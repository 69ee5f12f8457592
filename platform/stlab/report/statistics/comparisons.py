"""Paired tests of variants against the reference, corrected for the number of tests.

Trials of the same seed are paired: shared modules start from the same weights, and the data come in the same order across variants, so an
effect of the seed that all variants share cancels in the difference. With one seed, the pairs are blocks of test windows
(``stlab.report.statistics.window_blocks``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stlab.errors import UserError
from stlab.report.statistics.summary import CONFIDENCE, Row, Summary, summarise
from stlab.report.statistics.window_blocks import block_differences, read_window_errors
from stlab.storage import Store, outcome, single_protocol, table_rows

ALPHA = 1 - CONFIDENCE
"""A difference is marked if its corrected p is below this."""
_ERRORS = ("rmse", "mae")


@dataclass(frozen=True)
class Paired:
    """Paired differences (line − reference, so below zero is better) and Student's t-test that their mean is zero.

    ``low`` and ``high`` bound the 95 % interval of the mean. ``p`` is two-sided, and ``p_holm`` is p after Holm's correction over its
    family. ``d`` is Cohen's d_z (mean over standard deviation of the differences); ``g`` is d_z without its bias in small samples
    (Hedges 1981). Both are None if the differences do not vary, and ``g`` also for two pairs.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    d: float | None
    g: float | None
    p_holm: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Paired | None:
        """The test; None for fewer than two pairs. It assumes independent pairs and nearly normal differences."""
        n = len(differences)
        if n < 2:
            return None
        mean = math.fsum(differences) / n
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
        if sd <= 1e-12 * max(map(abs, differences)):
            # The differences do not vary: the errors are equal, or no seed changes their difference. A t-test says nothing about either.
            return cls(n, mean, mean, mean, p=1.0, d=None, g=None, p_holm=1.0)
        from scipy import stats

        test = stats.ttest_1samp(differences, 0.0)
        interval = test.confidence_interval(CONFIDENCE)
        d, p = mean / sd, float(test.pvalue)
        return cls(n, mean, float(interval.low), float(interval.high), p, d, _hedges(d, n - 1), p)

    @property
    def differs(self) -> bool:
        """Whether the difference is distinguishable from zero, after the correction."""
        return self.p_holm < ALPHA

    @property
    def at_most(self) -> float:
        """An upper bound on the size of the difference: the interval's end that is farther from zero."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Comparison:
    """A line of the table compared with its reference. ``rmse`` and ``mae`` are None for fewer than two pairs."""

    label: str
    reference: str
    over: Literal["seeds", "window blocks"]
    lost: tuple[int, ...]
    """Planned seeds that form no pair, because at least one of both lines has no result."""
    rmse: Paired | None
    mae: Paired | None
    family: int = 1
    """The number of comparisons that p was corrected for."""

    @property
    def mark(self) -> str:
        """An asterisk if the test RMSE is distinguishable from the reference's, else empty."""
        return "*" if self.rmse is not None and self.rmse.differs else ""


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the probability of any false mark in the family stays below the level (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def compare(
    rows: Sequence[Row],
    axes: Sequence[str] | None = None,
    study: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> list[Comparison]:
    """Compare every line of a study's table with its reference (``references``), Holm-corrected over the table for each error.

    Args:
        rows, axes: as for ``summarise``.
        study: the resolved study as a mapping; it names the reference and the base's values of the axes.
        store: the store of the trials. A study of one seed is compared over blocks of test windows, which needs it.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
        UserError: the study's reference is none of its variants.
    """
    rows = table_rows(rows)
    lines = summarise(rows, axes)
    held = references(lines, study)
    pairs = [(line, held[line.label]) for line in lines if line.label in held]
    return compare_lines(rows, pairs, store)


def compare_lines(
    rows: Sequence[Row], pairs: Sequence[tuple[Summary, Summary]], store: Store | None = None
) -> list[Comparison]:
    """Compare each line with its reference, as one family of comparisons; see ``compare``."""
    trained = [row for row in rows if not row.get("baseline")]
    if len({row.get("seed") for row in trained}) == 1:
        found = _over_window_blocks(rows, pairs, store)
    else:
        planned = {int(row["seed"]) for row in trained if row.get("seed") is not None}
        by_id = {str(row.get("trial_id")): row for row in trained}
        found = [_over_seeds(by_id, planned, line, reference) for line, reference in pairs]
    return corrected(found)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with ``p_holm`` over all of them; RMSE and MAE are separate families."""
    found = list(comparisons)
    for error in _ERRORS:
        tested = [(index, one) for index, c in enumerate(found) if (one := getattr(c, error)) is not None]
        for (index, one), p in zip(tested, holm([one.p for _, one in tested]), strict=True):
            own: dict[str, Any] = {error: replace(one, p_holm=p), "family": len(tested)}
            found[index] = replace(found[index], **own)
    return found


def references(lines: Sequence[Summary], study: Mapping[str, Any] | None = None) -> dict[str, Summary]:
    """Label → the line that it is compared with, for each variant that has one.

    The reference is the study's ``reference``, else the variant ``full``, else the first variant, at the same values of the axes. If only
    one setting of the reference is ever used (because other studies have the axes), all lines are compared with that setting, other
    settings of the reference included. A study of one variant is compared along its axes, with the setting that has the base's values or
    else with the first.

    Raises:
        UserError: the study's reference is none of its variants.
    """
    study = study or {}
    variants = [line for line in lines if not line.baseline]
    names = list(dict.fromkeys(line.variant for line in variants))
    name = study.get("reference") or ("full" if "full" in names else next(iter(names), None))
    if name is not None and name not in names:
        raise UserError(
            f"reference: there is no variant {name!r} among the results (there: {', '.join(names)}). Name one of them."
        )
    own = [line for line in variants if line.variant == name]
    middle = _same_point(own, _base_values(study, variants))
    if len(names) > 1:
        beside = {line.label: _same_point(own, line.axis_values) for line in variants if line.variant != name}
        found = {label: line for label, line in beside.items() if line is not None}
        points = {line.label: line for line in found.values()} or {line.label: line for line in (middle,) if line}
        if len(points) != 1:
            return found
        (middle,) = points.values()
    middle = middle or next(iter(variants), None)
    return {line.label: middle for line in variants if middle is not None and line is not middle}


def _same_point(lines: Sequence[Summary], values: Mapping[str, Any]) -> Summary | None:
    return next((line for line in lines if line.axis_values == values), None)


def _base_values(study: Mapping[str, Any], lines: Sequence[Summary]) -> dict[str, Any]:
    """The base's values of the axes' fields."""
    paths = lines[0].axis_values if lines else {}
    base: Mapping[str, Any] = study.get("base") or {}
    split = [(path, *path.partition(".")[::2]) for path in paths]
    return {path: (base.get(section) or {}).get(field) for path, section, field in split}


def _over_seeds(by_id: Mapping[str, Row], planned: set[int], line: Summary, reference: Summary) -> Comparison:
    ours, theirs = trials_by_seed(by_id, line), trials_by_seed(by_id, reference)
    both = sorted(ours.keys() & theirs.keys())
    tests: dict[str, Paired | None] = {}
    for error in _ERRORS:
        values = [(ours[seed].get(f"test_{error}"), theirs[seed].get(f"test_{error}")) for seed in both]
        tests[error] = Paired.of([float(a) - float(b) for a, b in values if a is not None and b is not None])
    return Comparison(line.label, reference.label, "seeds", tuple(sorted(planned - set(both))), tests["rmse"], tests["mae"])


def trials_by_seed(by_id: Mapping[str, Row], line: Summary) -> dict[int, Row]:
    """The finished and tested trials of a line, by seed."""
    own = [by_id[trial_id] for trial_id in line.trial_ids if trial_id in by_id and outcome(by_id[trial_id]) == "finished"]
    return {int(row["seed"]): row for row in own if row.get("test_rmse") is not None}


def _over_window_blocks(
    rows: Sequence[Row], pairs: Sequence[tuple[Summary, Summary]], store: Store | None
) -> list[Comparison]:
    protocol = single_protocol(rows)
    least, scale = int(protocol.get("history") or 0) + int(protocol.get("horizon") or 0), protocol.get("scale", 1.0)
    errors = {
        line.label: read_window_errors(store, line.trial_ids[0])
        for line in {line.label: line for pair in pairs for line in pair}.values()
        if store is not None and line.trial_ids
    }
    found = []
    for line, reference in pairs:
        ours, theirs = errors.get(line.label), errors.get(reference.label)
        tests: dict[str, Paired | None] = dict.fromkeys(_ERRORS)
        if ours is not None and theirs is not None and least:
            by_error = block_differences(ours, theirs, least)
            tests = {error: Paired.of([scale * value for value in by_error[error]]) for error in _ERRORS}
        lost = () if line.n and reference.n else tuple(_seeds(rows))
        over: Literal["seeds", "window blocks"] = "seeds" if ours is None or theirs is None else "window blocks"
        found.append(Comparison(line.label, reference.label, over, lost, tests["rmse"], tests["mae"]))
    return found


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({int(row["seed"]) for row in rows if not row.get("baseline") and row.get("seed") is not None})


def _hedges(d: float, degrees: int) -> float | None:
    """d times the exact factor that removes its bias, which needs two degrees of freedom (Hedges 1981, Eq. 6e)."""
    if degrees < 2:
        return None
    gammas = math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)
    return d * math.exp(gammas) / math.sqrt(degrees / 2)
