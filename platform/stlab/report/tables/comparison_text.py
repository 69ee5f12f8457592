"""Comparisons with the reference as text: table cells, sentences, the legend of the asterisk, and spreadsheet columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stlab.report.statistics.comparisons import Comparison, Paired
from stlab.report.statistics.window_blocks import MAX_BLOCKS


@dataclass(frozen=True)
class ComparisonSentence:
    """A comparison as a sentence. ``verdict`` is ``better``, ``worse``, or empty for lines that are not distinguishable."""

    label: str
    sentence: str
    verdict: str


def signed(value: float, digits: int) -> str:
    """``−0.311``; a number that rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def probability(p: float) -> str:
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.0995 else f"p={p:.2f}"


def cell(comparison: Comparison | None, digits: int, short: bool = False) -> str:
    """``−0.311 [−0.521, −0.101], p=0.012*``, or ``−0.311*`` if ``short``; a dash if there are fewer than two pairs."""
    if comparison is None or comparison.rmse is None:
        return "–"
    found = comparison.rmse
    if short:
        return f"{signed(found.mean, digits)}{comparison.mark}"
    span = f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"
    return f"{signed(found.mean, digits)} {span}, {probability(found.p_holm)}{comparison.mark}"


def parts(comparison: Comparison | None, digits: int) -> tuple[str, str]:
    """The cell in two lines: ``−0.311*`` and ``[−0.521, −0.101], p=0.012``.

    The second is empty if there are fewer than two pairs.
    """
    short, long = cell(comparison, digits, short=True), cell(comparison, digits)
    return short, long.partition(" ")[2].removesuffix("*")


def verdict(comparison: Comparison | None) -> str:
    """``better`` or ``worse`` if the test RMSE is distinguishable from the reference's, else empty."""
    if comparison is None or comparison.rmse is None or not comparison.rmse.differs:
        return ""
    return "better" if comparison.rmse.mean < 0 else "worse"


_TOO_FEW = {
    "seeds": "fewer than two pairs",
    "window blocks": "there is one seed, and too few test windows for two blocks whose errors are nearly independent",
}


def legend(comparisons: Sequence[Comparison], title: str, name: str) -> str:
    """The sentences that explain the column of differences from ``name``, or why there is none."""
    tested = [one for one in comparisons if one.rmse is not None]
    if not tested:
        blocks = bool(comparisons) and all(one.over == "window blocks" for one in comparisons)
        return f"Nothing is told apart from {name}: {_TOO_FEW['window blocks']}. Further seeds tell." if blocks else ""
    family = max(one.family for one in tested)
    after = f", after Holm's correction over {family} comparisons" if family > 1 else ""
    column = (
        f"“{title}” is the test RMSE minus that of {name}, with its 95 % interval (Student t); below zero is better. An asterisk marks "
        f"differences that are distinguishable from zero: paired t-test, two-sided p < 0.05{after}."
    )
    return f"{column} {_pairs(tested)}"


def _pairs(tested: Sequence[Comparison]) -> str:
    if tested[0].over == "seeds":
        return "Trials of the same seed are paired: they share initial weights and the order of the data."
    counts = sorted({one.rmse.n for one in tested if one.rmse})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"There is one seed, so the pairs are {number} blocks of test windows (at most {MAX_BLOCKS}, each at least as long as history and "
        "horizon together, and three times as long as the differences stay correlated). This says nothing about other seeds."
    )


def sentences(
    comparisons: Sequence[Comparison], digits: int, information: Mapping[str, str | None] | None = None
) -> list[ComparisonSentence]:
    """A sentence for each comparison: whether it is distinguishable, and how large the difference is at most.

    Args:
        information: label → what the line's forecasts may know. The sentence says where that is not the same.
    """
    known = information or {}
    return [
        ComparisonSentence(one.label, _sentence(one, digits) + _other_reading(one, known), verdict(one)) for one in comparisons
    ]


_READINGS = {"window": "the window alone", "calendar": "hour and weekday too", "period": "earlier days too"}


def _other_reading(one: Comparison, information: Mapping[str, str | None]) -> str:
    own, other = information.get(one.label), information.get(one.reference)
    if own is None or other is None or own == other:
        return ""
    return f"; it reads {_READINGS[own]}, and {one.reference} reads {_READINGS[other]}"


def _sentence(one: Comparison, digits: int) -> str:
    lost = _lost(one)
    if one.rmse is None:
        return f"cannot be compared with {one.reference}: {_TOO_FEW[one.over]}{lost or ' of results' * (one.over == 'seeds')}"
    found = one.rmse
    size = f"{abs(found.mean):.{digits}f}"
    span = f"95 % interval {signed(found.low, digits)} to {signed(found.high, digits)}"
    evidence = f"{_evidence(one)}{lost}{_by_mae(one, digits)}"
    if found.differs:
        way = "lower" if found.mean < 0 else "higher"
        return f"distinguishable from {one.reference}: its RMSE is {way} by {size} ({span}), at most {found.at_most:.{digits}f}; {evidence}"
    if found.d is None:
        constant = "the errors are the same" if found.mean == 0 else f"the difference is {signed(found.mean, digits)} in every pair"
        return f"not testable against {one.reference}: {constant}, so nothing varies that a test could use{lost}"
    largest = f"a difference, if there is one, is at most {found.at_most:.{digits}f} ({span})"
    alone = "; the interval excludes zero, but not after the correction" if found.low * found.high > 0 else ""
    return f"not distinguishable from {one.reference}: {largest}{alone}; {evidence}"


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
    """Columns for a spreadsheet: differences in full precision, p before and after the correction, and effect sizes."""
    fields: dict[str, Any] = {"reference": None, "pairs_over": None, "distinguishable": None}
    if comparison is not None:
        marked = None if comparison.rmse is None else comparison.rmse.differs
        fields = {"reference": comparison.reference, "pairs_over": comparison.over, "distinguishable": marked}
    for error in ("rmse", "mae"):
        found: Paired | None = getattr(comparison, error, None)
        names = {"mean": "", "low": "_low", "high": "_high", "n": "_pairs", "p": "_p", "p_holm": "_p_holm", "d": "_dz", "g": "_g"}
        fields |= {f"diff_{error}{suffix}": getattr(found, name, None) for name, suffix in names.items()}
    return fields


def reference_label(comparisons: Sequence[Comparison]) -> str:
    """A short name for the reference, as the title of the column of differences uses it."""
    names = list(dict.fromkeys(one.reference for one in comparisons))
    if not names:
        return "–"
    variant, _, point = names[0].partition(" · ")
    if len(names) > 1:  # one reference variant, taken at each setting of the axes
        return variant
    # A study of one variant is compared with one of its own settings, so the setting alone names the reference.
    is_alone = all(one.label.partition(" · ")[0] == variant for one in comparisons)
    return point if point and is_alone else names[0]
