"""Test error along a numeric axis on several data sets at once: each curve relative to its own lowest mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stlab.report.figures.axis import axis_name, scale_axes
from stlab.report.figures.style import legend_beside, legend_label, line_style, paper_style
from stlab.report.statistics.axis_curves import AxisPanel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def relative_axis_figure(path: str, panels: Sequence[AxisPanel]) -> Figure:
    """One curve for each data set (and variant, if there are several): mean test RMSE divided by the lowest of its curve.

    Units cancel, so that curves of different data sets share an axis. The band is the curve's 95 % interval over seeds, divided alike.
    """
    from matplotlib.figure import Figure

    variants = {curve.label for panel in panels for curve in panel.curves}
    with paper_style():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        curves = [(panel, curve) for panel in panels for curve in panel.curves]
        for index, (panel, curve) in enumerate(curves):
            lowest = min(point.rmse.mean for point in curve.points)
            if not lowest:  # a perfect forecast: nothing is relative to it
                continue
            values = [point.value for point in curve.points]
            means = [point.rmse.mean / lowest for point in curve.points]
            halves = [(point.rmse.half_width or 0.0) / lowest for point in curve.points]
            name = panel.title if len(variants) == 1 else f"{panel.title}: {curve.label}"
            style = line_style(index)
            axes.plot(values, means, label=legend_label(name), markersize=4, **style)
            low, high = zip(*((mean - half, mean + half) for mean, half in zip(means, halves, strict=True)), strict=True)
            axes.fill_between(values, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.axhline(1.0, color="#222222", linewidth=0.6)
        scale_axes([axes], [point.value for _, curve in curves for point in curve.points])
        axes.set_xlabel(axis_name(path))
        axes.set_ylabel("test RMSE / lowest of the curve")
        legend_beside(figure, *axes.get_legend_handles_labels())
        return figure


def relative_axis_caption(path: str, panels: Sequence[AxisPanel]) -> str:
    """How far each curve rises above its lowest mean."""
    rises = [
        f"{panel.title} ({curve.label}) by up to {100 * (max(means) / min(means) - 1):.1f} %"
        for panel in panels
        for curve in panel.curves
        if (means := [point.rmse.mean for point in curve.points])
    ]
    return (
        f"Test RMSE along {axis_name(path)}, each curve divided by its own lowest mean; bands are 95 % intervals over seeds. "
        f"The error rises above its lowest: {'; '.join(rises)}."
    )
