"""Error against cost (seconds of a trial, parameters, memory), with the Pareto front of the variants.

After Table 1 of the supplement of arXiv 2507.11558, which sets accuracy beside parameters, time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stlab.report.figures.style import MUTED, legend_beside, legend_label, line_style, paper_style
from stlab.report.page.text import count, duration, memory, number
from stlab.report.statistics.summary import Interval, Row, Summary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {
    "seconds": "seconds a trial",
    "trainable": "trainable parameters",
    "total": "all parameters",
    "memory": "peak memory, GiB",
}
"""The kinds of cost, as the axes of the figure name them."""
_SHORT = {"seconds": "time", "trainable": "trainable", "total": "all parameters", "memory": "memory"}
_GIB = 2**30


@dataclass(frozen=True)
class Tradeoff:
    """Error and costs of one variant, as means over finished seeds with 95 % intervals; all seeds have the same parameters."""

    label: str
    error: Interval | None
    """Test RMSE, in the data's unit; None if the variant was not tested."""
    costs: dict[str, Interval]
    """The known costs, by the kinds in ``COSTS``; memory is in GiB."""
    weights: str | None
    front: tuple[str, ...] = ()
    """The kinds of cost for which no variant has both a lower error and a lower cost."""


def tradeoffs(rows: Sequence[Row], lines: Sequence[Summary]) -> list[Tradeoff]:
    """Error and costs of each variant with a finished trial, in the table's order."""
    by_id = {str(row["trial_id"]): row for row in rows}
    points = [_tradeoff(line, [by_id[trial_id] for trial_id in line.trial_ids]) for line in lines if line.n and not line.baseline]
    fronts = {kind: {point.label for point in pareto_front(points, kind)} for kind in COSTS}
    return [
        Tradeoff(p.label, p.error, p.costs, p.weights, tuple(kind for kind in COSTS if p.label in fronts[kind])) for p in points
    ]


def _tradeoff(line: Summary, rows: Sequence[Row]) -> Tradeoff:
    measured = {
        "seconds": [float(row["wall_seconds"]) for row in rows if row.get("wall_seconds") is not None],
        "memory": [row["peak_memory_bytes"] / _GIB for row in rows if row.get("peak_memory_bytes")],
        "trainable": [] if line.trainable_params is None else [float(line.trainable_params)],
        "total": [] if line.total_params is None else [float(line.total_params)],
    }
    costs = {kind: found for kind in COSTS if (found := Interval.of(measured[kind])) is not None}
    return Tradeoff(line.label, line.test_rmse, costs, line.weights)


def pareto_front(points: Sequence[Tradeoff], kind: str) -> list[Tradeoff]:
    """The variants that no other beats: none has a mean error and a mean cost as low, and one of them lower. By rising cost."""
    known = [(p.costs[kind].mean, p.error.mean, p) for p in points if p.error is not None and kind in p.costs]
    front = [
        (cost, error, p)
        for cost, error, p in known
        if not any(c <= cost and e <= error and (c, e) != (cost, error) for c, e, _ in known)
    ]
    return [p for _, _, p in sorted(front, key=lambda item: item[:2])]


def differing(points: Sequence[Tradeoff]) -> list[str]:
    """The kinds of cost that the tested variants differ in; a cost that all share needs no figure."""
    return [kind for kind in COSTS if len({p.costs[kind].mean for p in points if kind in p.costs and p.error is not None}) > 1]


def tradeoff_figure(points: Sequence[Tradeoff]) -> Figure:
    """Test RMSE against each kind of cost (``differing``), in a panel each, with intervals as error bars.

    A line joins the variants on the front; other variants are hollow.
    """
    from matplotlib.figure import Figure

    kinds = differing(points)
    with paper_style():
        columns = min(2, len(kinds))
        rows = math.ceil(len(kinds) / columns)
        figure = Figure(figsize=(7.2 if columns == 2 else 5.2, 2.5 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(kinds) :]:
            axes.set_axis_off()
        for axes, kind in zip(grid.flat, kinds, strict=False):
            _panel(axes, points, kind)
        errors = [point.error.mean for point in points if point.error is not None]
        if max(errors) > 1.8 * min(errors) > 0:  # otherwise one bad variant would squeeze all others into one line
            _logarithmic(grid.flat[0], "y", (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))
        figure.supylabel("test RMSE (data unit)", fontsize=9)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        legend_beside(figure, handles, labels)
        return figure


def _panel(axes: Axes, points: Sequence[Tradeoff], kind: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    front = pareto_front(points, kind)
    corners = [(p.costs[kind].mean, p.error.mean) for p in front if p.error is not None]
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-post", color=MUTED, linewidth=1.0, linestyle="--", zorder=1, label="front")
    for index, point in enumerate(points):
        if point.error is None or kind not in point.costs:
            continue
        style, cost = line_style(index), point.costs[kind]
        axes.errorbar(
            cost.mean, point.error.mean, yerr=point.error.half_width, xerr=_visible(cost), label=legend_label(point.label),
            linestyle="none", marker=style["marker"], color=style["color"], markersize=5, elinewidth=0.9,
            markerfacecolor=style["color"] if point in front else "white",
        )  # fmt: skip
    means = [p.costs[kind].mean for p in points if kind in p.costs]
    if min(means) > 0 and max(means) > 8 * min(means):
        _logarithmic(axes, "x", (1.0,))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if kind in ("trainable", "total"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(COSTS[kind])


def _logarithmic(axes: Axes, which: str, subs: tuple[float, ...]) -> None:
    """Powers of ten times ``subs`` as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _visible(cost: Interval) -> Any:
    """The interval as error bars that stay above 0."""
    if cost.half_width is None:
        return None
    return [[min(cost.half_width, 0.999 * cost.mean)], [cost.half_width]]


def tradeoff_frame(points: Sequence[Tradeoff]) -> pd.DataFrame:
    """A row for each variant, in full precision; ``front`` names the costs in which it is on the front. ``memory`` is in GiB."""
    import pandas as pd

    records: list[dict[str, Any]] = []
    for point in points:
        record: dict[str, Any] = {"label": point.label}
        for name, value in (("test_rmse", point.error), *((kind, point.costs.get(kind)) for kind in COSTS)):
            record[f"{name}_mean"] = None if value is None else value.mean
            if name not in ("trainable", "total"):
                record[f"{name}_ci95"] = None if value is None else value.half_width
        records.append(record | {"front": "; ".join(point.front), "weights": point.weights})
    return pd.DataFrame(records)


def cost_lines(points: Sequence[Tradeoff], digits: int) -> list[dict[str, str]]:
    """The lines of the page's cost table, as text."""
    return [
        {
            "label": point.label,
            "rmse": number(point.error, digits),
            "trainable": count(_mean(point, "trainable")),
            "total": count(_mean(point, "total")),
            "seconds": _spread(point, "seconds"),
            "memory": _spread(point, "memory"),
            "front": "everything" if len(point.front) == len(COSTS) else ", ".join(_SHORT[kind] for kind in point.front) or "–",
            "weights": point.weights or "–",
        }
        for point in points
    ]


def _mean(point: Tradeoff, kind: str) -> float | None:
    return point.costs[kind].mean if kind in point.costs else None


def _spread(point: Tradeoff, kind: str) -> str:
    """Mean and interval with their unit: ``3.4 min ± 9 %``. The interval is in percent, since units differ between lines."""
    cost = point.costs.get(kind)
    if cost is None:
        return "–"
    mean = duration(cost.mean) if kind == "seconds" else memory(cost.mean * _GIB)
    return mean if cost.half_width is None else f"{mean} ± {100 * cost.half_width / cost.mean:.0f} %"


def tradeoff_caption(points: Sequence[Tradeoff]) -> str:
    """The caption of the figure."""
    return (
        "Test RMSE against cost. Each point is a variant, as a mean over seeds with its 95 % Student-t interval. Filled points on the "
        "dashed line are the Pareto front: no other variant has both a lower mean error and a lower cost. The front depends on means "
        "alone, so it may change where intervals overlap. Time and memory depend on this machine and its load."
    )
