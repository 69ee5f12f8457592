"""Comparisons with the reference as a reader meets them: a cell, a sentence, the legend of the mark, a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stlab.report.statistics.comparisons import Comparison, Paired
from stlab.report.statistics.window_blocks import MAX_BLOCKS


@dataclass(frozen=True)
class Told:
    """A comparison in plain words. ``verdict``: ``better``, ``worse`` or empty, where they cannot be told apart."""

    label: str
    sentence: str
    verdict: str


def signed(value: float, digits: int) -> str:
    """``−0.311``; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def probability(p: float) -> str:
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.0995 else f"p={p:.2f}"


def cell(comparison: Comparison | None, digits: int, short: bool = False) -> str:
    """``−0.311 [−0.521, −0.101], p=0.012*``; short: ``−0.311*``; a dash without two pairs."""
    if comparison is None or comparison.rmse is None:
        return "–"
    found = comparison.rmse
    if short:
        return f"{signed(found.mean, digits)}{comparison.mark}"
    span = f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"
    return f"{signed(found.mean, digits)} {span}, {probability(found.p_holm)}{comparison.mark}"


def parts(comparison: Comparison | None, digits: int) -> tuple[str, str]:
    """The cell in two lines: ``−0.311*`` and ``[−0.521, −0.101], p=0.012``; the second empty without two pairs."""
    short, long = cell(comparison, digits, short=True), cell(comparison, digits)
    return short, long.partition(" ")[2].removesuffix("*")


def verdict(comparison: Comparison | None) -> str:
    """``better`` or ``worse`` where the test RMSE is distinguishable from the reference's."""
    if comparison is None or comparison.rmse is None or not comparison.rmse.differs:
        return ""
    return "better" if comparison.rmse.mean < 0 else "worse"


def legend(comparisons: Sequence[Comparison], title: str, name: str) -> str:
    """What the column of differences from ``name`` and its mark mean; empty where nothing was compared."""
    tested = [one for one in comparisons if one.rmse is not None]
    if not tested:
        return ""
    family = max(one.family for one in tested)
    after = f", after Holm's correction over {family} comparisons" if family > 1 else ""
    said = (
        f"“{title}”: test RMSE less that of {name}, below zero is better, with its 95 % interval (Student t); * distinguishable from "
        f"zero: paired t-test, two-sided p < 0.05{after}."
    )
    return f"{said} {_pairs(tested)}"


def _pairs(tested: Sequence[Comparison]) -> str:
    if tested[0].over == "seeds":
        return "Pairs are seeds: they share initial weights and the order of the data."
    counts = sorted({one.rmse.n for one in tested if one.rmse})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"One seed: pairs are {number} blocks of test windows (at most {MAX_BLOCKS}, each as long as history and horizon together or "
        "longer); this says nothing about other seeds."
    )


def tell(comparisons: Sequence[Comparison], digits: int) -> list[Told]:
    """A sentence for each comparison: distinguishable or not, and by how much at the most."""
    return [Told(one.label, _sentence(one, digits), verdict(one)) for one in comparisons]


def _sentence(one: Comparison, digits: int) -> str:
    lost = _lost(one)
    if one.rmse is None:
        return f"cannot be compared with {one.reference}: fewer than two pairs{lost or ' of results'}"
    found = one.rmse
    size = f"{abs(found.mean):.{digits}f}"
    span = f"95 % interval {signed(found.low, digits)} to {signed(found.high, digits)}"
    told = f"{_evidence(one)}{lost}{_by_mae(one, digits)}"
    if found.differs:
        way = "lower" if found.mean < 0 else "higher"
        return f"distinguishable from {one.reference}: its RMSE is {way} by {size} ({span}), at most {found.at_most:.{digits}f}; {told}"
    if found.d is None:
        constant = "the figures are the same" if found.mean == 0 else f"the difference is {signed(found.mean, digits)} in every pair"
        return f"{constant} as of {one.reference}: nothing varies that a test could weigh{lost}"
    largest = f"a difference, if there is one, is at most {found.at_most:.{digits}f} ({span})"
    alone = "; the interval leaves out zero, but not after the correction" if found.low * found.high > 0 else ""
    return f"not distinguishable from {one.reference}: {largest}{alone}; {told}"


def _evidence(one: Comparison) -> str:
    assert one.rmse
    pairs = f"{one.rmse.n} {'seeds' if one.over == 'seeds' else 'blocks of test windows, one seed'}"
    effect = "" if one.rmse.g is None else f", effect size g = {signed(one.rmse.g, 1)}"
    return f"{probability(one.rmse.p_holm)}, {pairs}{effect}"


def _by_mae(one: Comparison, digits: int) -> str:
    if one.mae is None or one.rmse is None:
        return ""
    size = f"{signed(one.mae.mean, digits)} [{signed(one.mae.low, digits)}, {signed(one.mae.high, digits)}]"
    apart = "distinguishable" if one.mae.differs else "not distinguishable"
    return f"; MAE {size}, {probability(one.mae.p_holm)}, {apart}"


def _lost(one: Comparison) -> str:
    if not one.lost:
        return ""
    many = len(one.lost) > 1
    return f" (seed{'s' if many else ''} {', '.join(map(str, one.lost))} {'have' if many else 'has'} no result in both)"


def record(comparison: Comparison | None) -> dict[str, Any]:
    """The columns of a spreadsheet: differences in full precision, p before and after the correction, effect sizes."""
    fields: dict[str, Any] = {"reference": None, "pairs_over": None, "distinguishable": None}
    if comparison is not None:
        marked = None if comparison.rmse is None else comparison.rmse.differs
        fields = {"reference": comparison.reference, "pairs_over": comparison.over, "distinguishable": marked}
    for error in ("rmse", "mae"):
        found: Paired | None = getattr(comparison, error, None)
        names = {"mean": "", "low": "_low", "high": "_high", "n": "_pairs", "p": "_p", "p_holm": "_p_holm", "d": "_dz", "g": "_g"}
        fields |= {f"diff_{error}{suffix}": getattr(found, name, None) for name, suffix in names.items()}
    return fields
