"""A study's test error along a numeric axis (λ, a rank, a share of the data), and the range that is not distinguishable from the best."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from stlab.report.statistics.comparisons import Comparison, compare_lines
from stlab.report.statistics.summary import SYMBOLS, Interval, Row, Summary, anchor, plain
from stlab.storage import Store, TrialDirectory

_LAST = 3  # gradient norms are means over the last third of the epochs
_NORM = "grad_norm."
MIN_VALUES = 3
"""The least number of values of a curve."""


@dataclass(frozen=True)
class AxisPoint:
    """Test RMSE at one value, for each seed and as a mean with its interval."""

    value: float
    seeds: tuple[float, ...]
    rmse: Interval


@dataclass(frozen=True)
class AxisCurve:
    """One variant along the axis, by ascending value."""

    label: str
    points: tuple[AxisPoint, ...]
    best: float
    """The value with the lowest mean validation RMSE; the test segment selects nothing."""
    span: tuple[float, float] | None
    """The range around ``best`` whose test RMSE is not distinguishable from the best's (paired, Holm-corrected over the curve).

    None if nothing could be compared.
    """
    apart: tuple[float, ...]
    """All values that are distinguishable from the best."""
    over: str
    """The kind of pairs: seeds or window blocks."""
    lost: tuple[float, ...] = ()
    """Planned values at which no trial has a test error."""
    norms: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Loss term → (value, gradient norm)."""


@dataclass(frozen=True)
class AxisPanel:
    """The curves of one data set, and their baseline: its name and its (value, test RMSE) along the axis."""

    title: str
    curves: tuple[AxisCurve, ...]
    anchor: tuple[str, tuple[tuple[float, float], ...]] | None = None


def numeric_axes(lines: Sequence[Summary]) -> list[str]:
    """Dotted paths of the axes that have at least three values, all of them numbers."""
    values: dict[str, set[Any]] = {}
    for line in lines:
        if not line.baseline:
            for path, value in line.axis_values.items():
                if value is not None:  # None: a variant whose model lacks the field
                    values.setdefault(path, set()).add(value)
    return [path for path, found in values.items() if len(found) >= MIN_VALUES and all(map(_is_number, found))]


def panels_by_axis(store: Store, tables: Iterable[tuple[Sequence[Row], Sequence[Summary]]]) -> dict[str, list[AxisPanel]]:
    """Axis → its panels, one for each data set that has a curve along it; ``tables``: the rows and lines of each data set."""
    panels: dict[str, list[AxisPanel]] = {}
    for rows, lines in tables:
        for path in numeric_axes(lines):
            if (panel := axis_panel(store, rows, lines, path)) is not None:
                panels.setdefault(path, []).append(panel)
    return panels


def axis_panel(store: Store, rows: Sequence[Row], lines: Sequence[Summary], path: str) -> AxisPanel | None:
    """The curves along ``path``; None if no variant has been tested at three values."""
    groups: dict[str, list[Summary]] = {}
    for line in lines:
        if not line.baseline and line.test_rmse and line.axis_values.get(path) is not None:
            others = {name: value for name, value in line.axis_values.items() if name != path}
            groups.setdefault(json.dumps([line.variant, others], default=str), []).append(line)
    kept = [sorted(group, key=lambda line: line.axis_values[path]) for group in groups.values() if len(group) >= MIN_VALUES]
    if not kept:
        return None
    shared = {name for name in kept[0][0].axis_values if len({str(group[0].axis_values.get(name)) for group in kept}) == 1}
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows if row.get("dataset")))
    curves = tuple(replace(_curve(store, rows, group, path, shared), lost=_lost(lines, group[0], path)) for group in kept)
    return AxisPanel(", ".join(datasets), curves, _anchor(lines, kept[0], path))


def _curve(store: Store, rows: Sequence[Row], group: Sequence[Summary], path: str, shared: Set[str]) -> AxisCurve:
    best = min(group, key=lambda line: line.val_rmse.mean if line.val_rmse else line.rank_rmse)
    compared = compare_lines(rows, [(line, best) for line in group if line is not best], store)
    differs = {one.label: one.rmse.differs for one in compared if one.rmse is not None}
    return AxisCurve(
        label=_label(group[0], shared | {path}),
        points=tuple(_point(rows, line, path) for line in group),
        best=float(best.axis_values[path]),
        span=_span(group, best, differs, path) if differs else None,
        apart=tuple(float(line.axis_values[path]) for line in group if differs.get(line.label)),
        over=_over(compared),
        norms=_norms(store, group, path),
    )


def _lost(lines: Sequence[Summary], first: Summary, path: str) -> tuple[float, ...]:
    """Planned values of the variant at which no trial was tested."""
    others = {name: value for name, value in first.axis_values.items() if name != path}
    own = [line for line in lines if not line.baseline and line.variant == first.variant and line.test_rmse is None]
    values = [line.axis_values[path] for line in own if {k: v for k, v in line.axis_values.items() if k != path} == others]
    return tuple(sorted(float(value) for value in values if _is_number(value)))


def _point(rows: Sequence[Row], line: Summary, path: str) -> AxisPoint:
    own = {str(row["trial_id"]): row for row in rows if str(row.get("trial_id")) in line.trial_ids}
    seeds = tuple(float(row["test_rmse"]) for row in own.values() if row.get("test_rmse") is not None)
    assert line.test_rmse
    return AxisPoint(float(line.axis_values[path]), seeds, line.test_rmse)


def _span(group: Sequence[Summary], best: Summary, differs: Mapping[str, bool], path: str) -> tuple[float, float]:
    """Extend the range outward from the best value, up to the first value that is distinguishable or cannot be compared."""
    at = [line is best for line in group].index(True)
    low = high = at
    while low > 0 and differs.get(group[low - 1].label) is False:
        low -= 1
    while high + 1 < len(group) and differs.get(group[high + 1].label) is False:
        high += 1
    return float(group[low].axis_values[path]), float(group[high].axis_values[path])


def _over(compared: Sequence[Comparison]) -> str:
    return compared[0].over if compared else "seeds"


def _label(line: Summary, hidden: Set[str]) -> str:
    shown = {name: value for name, value in line.axis_values.items() if name not in hidden}
    others = [f"{SYMBOLS.get(name, name.rpartition('.')[2])}={plain(value)}" for name, value in shown.items()]
    return " · ".join([line.variant, *others])


def _anchor(
    lines: Sequence[Summary], group: Sequence[Summary], path: str
) -> tuple[str, tuple[tuple[float, float], ...]] | None:
    """Name and points of the baseline. An axis of the data has a baseline at each value, any other axis one for all values."""
    held = [(float(line.axis_values[path]), anchor(lines, line)) for line in group]
    found = [(value, one) for value, one in held if one is not None and one.test_rmse]
    if not found:
        return None
    names = {one.variant for _, one in found}
    points = tuple((value, one.test_rmse.mean) for value, one in found if one.test_rmse)
    return (names.pop() if len(names) == 1 else "best baseline"), points


def _norms(store: Store, group: Sequence[Summary], path: str) -> dict[str, list[tuple[float, float]]]:
    """Loss term → (value, gradient norm), where the norm is a mean over seeds and over each trial's last third of epochs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in group:
        means: dict[str, list[float]] = {}
        for trial_id in line.trial_ids:
            for term, norm in _last_norms(TrialDirectory(store, trial_id).read_epochs()).items():
                means.setdefault(term, []).append(norm)
        for term, norms in means.items():
            found.setdefault(term, []).append((float(line.axis_values[path]), statistics.fmean(norms)))
    return found


def _last_norms(epochs: Sequence[Row]) -> dict[str, float]:
    last = epochs[-max(1, len(epochs) // _LAST) :]
    columns: dict[str, list[float]] = {}
    for epoch in last:
        for name, value in epoch.items():
            if name.startswith(_NORM) and value is not None:
                columns.setdefault(name.removeprefix(_NORM), []).append(float(value))
    return {term: statistics.fmean(values) for term, values in columns.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
