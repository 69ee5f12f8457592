"""Test error along a numeric axis, with the range that is not distinguishable from the best and the loss terms' gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from stlab.report.figures.forecast_errors import MAX_LINES
from stlab.report.figures.style import PALETTE, baseline_style, legend_label, line_style, paper_style
from stlab.report.statistics.axis_curves import AxisCurve, AxisPanel
from stlab.report.statistics.summary import SYMBOLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 8  # an axis is logarithmic if its largest value is so many times the smallest positive one
_ABREAST = 3  # at most so many panels in a row


def axis_figure(path: str, panels: Sequence[AxisPanel]) -> Figure:
    """Mean test RMSE by value, in a panel for each data set, all on one axis.

    The band is the 95 % interval, points are seeds, and a star marks the best value by validation error. The range that is not
    distinguishable from the best is shaded; several variants have a bar each instead. An axis that spans much is logarithmic, with 0 at a
    tick of its own beyond a break. If all panels stand in one row and gradient norms of the loss terms were measured, they are below.
    """
    from matplotlib.figure import Figure

    with paper_style():
        columns = _columns(len(panels))
        rows = -(-len(panels) // columns)
        below = has_norms(panels)
        width = 1.6 + 3.0 * columns if columns > 1 else 6.4
        figure = Figure(figsize=(width, 4.9 if below else 3.2 if rows == 1 else 0.4 + 2.4 * rows), layout="constrained")
        shape: dict[str, Any] = {"height_ratios": (3, 2)} if below else {}
        grid = figure.subplots(rows + below, columns, squeeze=False, sharex=True, **shape)
        labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves[:MAX_LINES]))
        for axes, panel in zip(grid[:rows].flat, panels, strict=False):
            _errors(axes, panel, labels, alone=len(panels) == 1)
        if below:
            for axes, panel in zip(grid[1], panels, strict=True):
                _norms(axes, path, norm_curve(panel))
        scale_axes(grid.flat, [point.value for panel in panels for curve in panel.curves for point in curve.points])
        _finish(figure, grid, rows, path, len(panels))
        return figure


def _columns(panels: int) -> int:
    return panels if panels <= _ABREAST else 2 if panels == 4 else _ABREAST


def has_norms(panels: Sequence[AxisPanel]) -> bool:
    """Whether the figure has gradient norms below the errors; several rows of panels leave no room for them."""
    return len(panels) <= _ABREAST and any(norm_curve(panel) for panel in panels)


def _finish(figure: Figure, grid: Any, rows: int, path: str, panels: int) -> None:
    """Label the axes at the left and at the bottom, and add a legend for each kind of panel."""
    columns = grid.shape[1]
    for axes in grid.flat[panels : rows * columns]:
        axes.set_visible(False)
    lowest = list(grid[-1]) if len(grid) > rows else grid.flat[max(0, panels - columns) : panels]
    for axes in lowest:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(axis_name(path) if panels == 1 else SYMBOLS.get(path, path))
    for row in grid[:rows]:
        row[0].set_ylabel("test RMSE (data unit)")
    if len(grid) > rows:
        grid[-1, 0].set_ylabel("gradient norm")
    places: tuple[Literal["outside right upper", "outside right lower"], ...] = ("outside right upper", "outside right lower")
    for part, place in zip((grid[:rows], grid[rows:]), places, strict=True):
        entries = {label: handle for axes in part.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if entries:
            figure.legend(list(entries.values()), list(entries), loc=place)


def axis_name(path: str) -> str:
    """The name of the axis, preceded by its symbol if it has one."""
    return f"{SYMBOLS[path]} ({path})" if path in SYMBOLS else path


def axis_caption(path: str, panels: Sequence[AxisPanel]) -> str:
    """The content of the figure, and the conclusion from it."""
    several = [f"{panel.title}: " if len(panels) > 1 else "" for panel in panels]
    findings = [f"{where}{_finding(curve, path)}" for where, panel in zip(several, panels, strict=True) for curve in panel.curves]
    curves = [curve for panel in panels for curve in panel.curves]
    points = any(point.rmse.half_width is not None for curve in curves for point in curve.points)
    text = f"Test RMSE along {axis_name(path)}"
    text += ": the mean over seeds, with its 95 % interval (Student t) as a band. Points are seeds." if points else ", one seed."
    text += f" A star marks the lowest mean validation RMSE.{_shown(panels)} {'; '.join(findings)}."
    over = "blocks of test windows of the single seed" if any(curve.over == "window blocks" for curve in curves) else "seeds"
    if any(curve.span for curve in curves):
        text += f" Values are distinguished by paired t-tests over {over}, p < 0.05 after Holm's correction over a curve's values."
        text += " Bands may overlap although pairs differ." if over == "seeds" else " This says nothing about other seeds."
    text += "".join(f" {far}" for panel in panels if (far := _far_anchor(panel)))
    text += "".join(_lost(curve, where, path) for where, panel in zip(several, panels, strict=True) for curve in panel.curves)
    named = [curve for panel in panels if (curve := norm_curve(panel))] if has_norms(panels) else []
    if named:
        text += f" The lower panel shows the norm of each loss term's gradient on an epoch's first batch ({named[0].label}), unweighted, "
        text += "as a mean over the last third of epochs and over seeds. Dashed lines are multiplied by the term's weight."
    return text


def norm_curve(panel: AxisPanel) -> AxisCurve | None:
    """The first curve that has gradient norms; only its norms are shown."""
    return next((curve for curve in panel.curves if curve.norms), None)


def _finding(curve: AxisCurve, path: str) -> str:
    symbol = SYMBOLS.get(path, path.rpartition(".")[2])
    found = f"{curve.label}: best at {symbol} = {curve.best:g}"
    if curve.best in (ends := (curve.points[0].value, curve.points[-1].value)):
        found += f", the {'smallest' if curve.best == ends[0] else 'largest'} tried"
    if curve.span is None:
        return f"{found}; too few pairs to test which values differ from it"
    low, high = curve.span
    if low == high:
        return f"{found}; its neighbours differ from it, or cannot be compared"
    if not curve.apart:
        whole = (low, high) == (curve.points[0].value, curve.points[-1].value)
        return f"{found}; no other value is distinguishable from it" if whole else f"{found}, not distinguishable from {low:g} to {high:g}"
    return f"{found}, not distinguishable from {low:g} to {high:g}; distinguishable: {', '.join(f'{v:g}' for v in curve.apart)}"


def _lost(curve: AxisCurve, where: str, path: str) -> str:
    if not curve.lost:
        return ""
    values = ", ".join(f"{value:g}" for value in curve.lost)
    return f" {where}{curve.label} has no result at {SYMBOLS.get(path, path.rpartition('.')[2])} = {values}; the curve passes over it."


def _shown(panels: Sequence[AxisPanel]) -> str:
    lines = max(len(panel.curves) for panel in panels)
    mark = " The shaded range is" if lines == 1 else " The bars at the bottom are"
    text = f"{mark} the values that are not distinguishable from it." if any(c.span for p in panels for c in p.curves) else ""
    return text + (f" The figure shows the first {MAX_LINES} of {lines} curves." if lines > MAX_LINES else "")


def _errors(axes: Axes, panel: AxisPanel, labels: Sequence[str], alone: bool) -> None:
    """Draw one panel.

    Args:
        labels: of all panels' curves, so that a variant looks the same in each panel.
    """
    curves = panel.curves[:MAX_LINES]
    for index, curve in enumerate(curves):
        _draw(axes, curve, line_style(labels.index(curve.label)), index if len(curves) > 1 else None)
    if panel.anchor and not _far_anchor(panel):
        name, points = panel.anchor
        style = baseline_style(0)
        if len({error for _, error in points}) == 1:
            axes.axhline(points[0][1], label=legend_label(name), **style)
        else:
            axes.plot(*zip(*points, strict=True), label=legend_label(name), **style)
    bottom, top = axes.get_ylim()
    low, high = _range(curves)
    axes.set_ylim(max(bottom, low), min(top, high))
    if not alone:
        axes.set_title(panel.title)


def _range(curves: Sequence[AxisCurve]) -> tuple[float, float]:
    """The largest range that is drawn: three times the span of the seeds.

    The bands of two or three seeds may be many times wider, and a baseline may be far away; either would flatten the curve. So bands are
    cut, and the baseline is left out.
    """
    seen = [error for curve in curves for point in curve.points for error in point.seeds]
    low, high = min(seen), max(seen)
    room = max(high - low, 0.02 * high)
    return max(low - room, 0.0), high + room


def _draw(axes: Axes, curve: AxisCurve, style: dict[str, Any], bar: int | None) -> None:
    """Draw one curve.

    Args:
        bar: number of the curve among several; None for a single curve, whose range is shaded.
    """
    values = [point.value for point in curve.points]
    means = [point.rmse.mean for point in curve.points]
    color = style["color"]
    axes.plot(values, means, label=legend_label(curve.label), markersize=4, **style)
    banded = [(point.value, point.rmse.mean, point.rmse.half_width) for point in curve.points if point.rmse.half_width is not None]
    if len(banded) > 1:
        at, mean, half = (list(column) for column in zip(*banded, strict=True))
        low, high = [m - h for m, h in zip(mean, half, strict=True)], [m + h for m, h in zip(mean, half, strict=True)]
        axes.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
    if banded:
        at_seeds = [(point.value, error) for point in curve.points for error in point.seeds]
        axes.plot(*zip(*at_seeds, strict=True), ".", color=color, markersize=3.5, alpha=0.6)
    chosen = next(point for point in curve.points if point.value == curve.best)
    axes.plot(chosen.value, chosen.rmse.mean, "*", color=color, markersize=12, markeredgecolor="white", zorder=5)
    if curve.span and curve.span[0] < curve.span[1]:
        if bar is None:
            axes.axvspan(*curve.span, color=color, alpha=0.07, linewidth=0)
        else:
            foot = axes.get_xaxis_transform()
            axes.plot(curve.span, [0.02 + 0.025 * bar] * 2, color=color, linewidth=2.5, transform=foot, solid_capstyle="butt")


def _far_anchor(panel: AxisPanel) -> str:
    """The sentence for a baseline that is left out of the figure; empty for a baseline that is in it."""
    if panel.anchor is None:
        return ""
    low, high = _range(panel.curves[:MAX_LINES])
    errors = [error for _, error in panel.anchor[1]]
    if low <= min(errors) and max(errors) <= high:
        return ""
    span = f"{min(errors):.4g}" if min(errors) == max(errors) else f"{min(errors):.4g} to {max(errors):.4g}"
    return f"The baseline {panel.anchor[0]} is outside the figure, at {span}."


def _norms(axes: Axes, path: str, curve: AxisCurve | None) -> None:
    import numpy as np

    for index, (term, points) in enumerate(curve.norms.items() if curve else ()):
        # Other colours than the curves above, since these are terms of one variant's loss.
        style: dict[str, Any] = {"color": PALETTE[(index + 2) % len(PALETTE)], "markersize": 3.5}
        axes.plot(*zip(*points, strict=True), label=f"gradient of {term}", marker="o", **style)
        weighted = [(value, value * norm) for value, norm in points if value > 0]
        if path in (f"model.{term}_weight", f"train.{term}_loss_weight") and weighted:
            label = f"{SYMBOLS.get(path, 'weight')} × gradient of {term}"
            axes.plot(*zip(*weighted, strict=True), label=label, linestyle="--", **style)
    norms = [float(norm) for line in axes.lines for norm in np.asarray(line.get_ydata())]
    if norms and min(norms) > 0:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        decades = math.log10(max(norms) / min(norms))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def scale_axes(panels: Iterable[Axes], values: Sequence[float]) -> None:
    """Make the shared axis logarithmic if its positive values span much; 0 has a tick of its own, beyond a break of the axis."""
    from matplotlib.ticker import FixedLocator, NullLocator

    values = sorted(set(values))
    positive = [value for value in values if value > 0]
    spans = values[0] >= 0 and bool(positive) and positive[-1] >= _WIDE * positive[0]
    for axes in panels:
        if spans and values[0] == 0:
            steps = [math.log10(high / low) for low, high in pairwise(positive)]
            axes.set_xscale("symlog", linthresh=positive[0], linscale=1.2 * sum(steps) / len(steps))
            _break(axes, positive[0] / 2)
        elif spans:
            axes.set_xscale("log")
        if spans:
            axes.xaxis.set_minor_locator(NullLocator())
        if len(values) <= 12:
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _break(axes: Axes, at: float) -> None:
    """Two slanted strokes across the axis."""
    strokes: dict[str, Any] = {"marker": [(-1, -2), (1, 2)], "linestyle": "none", "color": "black", "markersize": 7, "clip_on": False}
    for factor in (0.92, 1.08):
        axes.plot([at * factor], [0], transform=axes.get_xaxis_transform(), **strokes)
