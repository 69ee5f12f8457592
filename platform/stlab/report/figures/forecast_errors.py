"""Figures of errors and forecasts: errors by horizon, learning curves, forecast maps, and the series of a busy cell.

Each function takes plain data and returns a new Figure; pyplot's global state is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stlab.report.figures.style import (
    MUTED,
    TRUTH,
    baseline_style,
    hide,
    legend_beside,
    legend_label,
    line_style,
    paper_style,
)
from stlab.report.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 8
"""At most so many variants are in one figure, the best ones; the table has all of them."""
MAX_SERIES_WINDOWS = 14 * 24
"""At most so many windows are in the series figure, the earliest ones; two weeks of hours."""


@dataclass(frozen=True)
class HorizonLine:
    """RMSE by steps ahead of one variant or baseline: a mapping horizon → RMSE for each seed."""

    label: str
    baseline: bool
    seeds: Sequence[Mapping[int, float]]


@dataclass(frozen=True)
class Curve:
    """Validation RMSE by epoch, in order, of the seeds of one variant, and each seed's best epoch (from 1)."""

    label: str
    seeds: Sequence[Sequence[tuple[int, float]]]
    best_epochs: Sequence[int | None]


def horizon_figure(lines: Sequence[HorizonLine], segment: str = "test") -> Figure:
    """RMSE by steps ahead: the mean over seeds, with a band from the lowest to the highest seed; baselines are dashed."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with paper_style():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        variants = baselines = 0
        for line in lines:
            steps = sorted(set.intersection(*(set(seed) for seed in line.seeds)))
            values = np.array([[seed[step] for step in steps] for seed in line.seeds])
            if line.baseline:
                axes.plot(steps, values.mean(0), label=legend_label(line.label), **baseline_style(baselines))
                baselines += 1
                continue
            style = line_style(variants)
            axes.plot(steps, values.mean(0), label=legend_label(line.label), markersize=4, **style)
            if len(values) > 1:
                axes.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.18, linewidth=0)
            variants += 1
        axes.set_xlabel("steps ahead")
        axes.set_ylabel(f"{segment} RMSE (data unit)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_beside(figure, *axes.get_legend_handles_labels())
        return figure


def learning_curves(curves: Sequence[Curve], reference: tuple[str, float] | None = None) -> Figure:
    """Validation RMSE by epoch, in a panel for each variant: thin seeds, a thick mean, and a dot at each seed's best epoch.

    The mean covers the epochs that every seed has trained.

    Args:
        reference: label and validation RMSE of a baseline, which is dashed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with paper_style():
        columns = 2 if len(curves) == 4 else min(3, len(curves))
        rows = math.ceil(len(curves) / columns)
        width = {1: 4.8, 2: 5.6}.get(columns, 7.2)
        figure = Figure(figsize=(width, 2.3 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(curves):
                hide(axes)
                continue
            _curve_panel(axes, curves[index], line_style(index)["color"], reference)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            below = index + columns < len(curves)
            axes.tick_params(labelbottom=not below)
        _error_scale(grid.flat[0], [value for curve in curves for seed in curve.seeds for _, value in seed])
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("validation RMSE (data unit)", fontsize=9)
        if reference:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower right")
        return figure


def _curve_panel(axes: Axes, curve: Curve, colour: str, reference: tuple[str, float] | None) -> None:
    import numpy as np

    for seed, best in zip(curve.seeds, curve.best_epochs, strict=True):
        alone: dict[str, Any] = {"linewidth": 1.5} if len(curve.seeds) == 1 else {"linewidth": 0.7, "alpha": 0.55}
        axes.plot(*zip(*seed, strict=True), color=colour, **alone)
        for epoch, value in seed:
            if epoch == best:
                axes.plot(epoch, value, "o", color=colour, markersize=3.5)
    shared = min(len(seed) for seed in curve.seeds)
    if len(curve.seeds) > 1:
        epochs = [epoch for epoch, _ in curve.seeds[0][:shared]]
        mean = np.mean([[value for _, value in seed[:shared]] for seed in curve.seeds], axis=0)
        axes.plot(epochs, mean, color=colour, linewidth=2)
    if reference:
        axes.axhline(reference[1], label=reference[0], **baseline_style(0))
    axes.set_title(curve.label)


def _error_scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, if the first epochs would flatten all others on a linear one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if max(values) < 4 * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def forecast_maps(predictions: Predictions) -> Figure:
    """Truth, forecast and error (forecast − truth) as maps, for several horizons of one test window.

    The window has the largest total truth, and the channel is the busiest cell's. Truth and forecast share one colour scale over all
    horizons; the errors have another one, symmetric about 0.

    Raises:
        ValueError: the steps are not (C, H, W).
    """
    import numpy as np
    from matplotlib.figure import Figure

    if not predictions.is_grid:
        raise ValueError(f"maps need steps of shape (C, H, W); these are {predictions.truth.shape[2:]}")
    window, channel = predictions.busiest_window(), predictions.busiest_cell()[0]
    truth, forecast = predictions.truth[window, :, channel], predictions.forecast[window, :, channel]
    height, width = truth.shape[1:]
    shown = np.unique(np.linspace(0, len(truth) - 1, 6 if height > 1.4 * width else 4).round().astype(int))
    top, worst = float(np.nanmax([truth, forecast])), float(np.nanmax(np.abs(forecast - truth)))
    low = min(0.0, float(np.nanmin([truth, forecast])))
    value_scale = {"cmap": "viridis", "vmin": low, "vmax": top}
    error_scale = {"cmap": "RdBu_r", "vmin": -worst, "vmax": worst}
    with paper_style():
        panel = 6.2 / len(shown)
        # Maps keep their aspect ratio; the "compressed" layout closes the gaps that this leaves between rows.
        figure = Figure(figsize=(7.2, 3 * panel * height / width + 0.9), layout="compressed")
        grid = figure.subplots(3, len(shown), squeeze=False)
        for column, step in enumerate(shown):
            for row, values in enumerate((truth[step], forecast[step], forecast[step] - truth[step])):
                image = grid[row, column].imshow(
                    values, interpolation="nearest", **(error_scale if row == 2 else value_scale)
                )
                _bare(grid[row, column])
                if column == 0:
                    bar = (
                        figure.colorbar(image, ax=grid[row] if row == 2 else grid[:2], shrink=0.8, pad=0.02)
                        if row
                        else None
                    )
                    if bar is not None:
                        bar.outline.set_visible(False)
                        bar.set_label("data unit" if row == 1 else "error (data unit)")
            grid[0, column].set_title(_step_title(predictions, window, int(step)), fontsize=8)
        for row, name in enumerate(("truth", "forecast", "forecast − truth")):
            grid[row, 0].set_ylabel(name)
        return figure


def _step_title(predictions: Predictions, window: int, step: int) -> str:
    name = f"step {step + 1}"
    if predictions.time is None:
        return name
    moment = predictions.time[window, step].item()
    return f"{name}\n{moment:%d %b %H:%M}"


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set(linewidth=0.5, color=MUTED)


def busy_series(best: tuple[str, Predictions], baseline: tuple[str, Predictions] | None) -> Figure:
    """Truth and forecasts of the series with the largest mean truth, one step ahead and at the last horizon.

    Only the first ``MAX_SERIES_WINDOWS`` windows are drawn, and gaps between windows stay gaps.
    """
    from matplotlib.figure import Figure

    label, forecasts = legend_label(best[0]), best[1]
    cell = forecasts.busiest_cell()
    last = forecasts.truth.shape[1] - 1
    with paper_style():
        steps = [0] if last == 0 else [0, last]
        figure = Figure(figsize=(7.2, 2.1 * len(steps) + 0.6), layout="constrained")
        panels = figure.subplots(len(steps), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, step in zip(panels, steps, strict=True):
            _series_line(axes, forecasts, forecasts.truth, step, cell, label="truth", color=TRUTH, linewidth=1.1)
            if baseline is not None:
                kept = {**baseline_style(0), "color": "#D55E00", "label": legend_label(baseline[0])}
                _series_line(axes, baseline[1], baseline[1].forecast, step, cell, **kept)
            _series_line(axes, forecasts, forecasts.forecast, step, cell, label=label, color="#0072B2", linewidth=1.5)
            axes.set_title(f"{step + 1} step{'s' if step else ''} ahead", loc="left")
        if forecasts.time is None:
            panels[-1].set_xlabel("step of the series")
        else:
            date_axis(panels[-1])
        figure.supylabel("data unit", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return figure


def _series_line(
    axes: Axes, predictions: Predictions, values: Any, step: int, cell: tuple[int, ...], **style: Any
) -> None:
    import numpy as np

    line = values[(slice(None), step, *cell)][:MAX_SERIES_WINDOWS]
    start = predictions.window[: len(line)]
    where = start + step if predictions.time is None else predictions.time[: len(line), step]
    steps = np.diff(start)
    gaps = np.flatnonzero(steps > np.median(steps)) + 1 if len(steps) else np.array([], dtype=int)
    axes.plot(np.insert(where, gaps, where[gaps]), np.insert(line, gaps, np.nan), **style)


def date_axis(axes: Axes) -> None:
    """Label the horizontal axis with days, or with hours if it spans less than three days."""
    from matplotlib import dates

    first, last = axes.get_xlim()
    locator = dates.AutoDateLocator(maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    if last - first < 3:  # days
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        return
    axes.xaxis.set_major_formatter(dates.DateFormatter("%d %b"))  # type: ignore[no-untyped-call]
    years = [f"{dates.num2date(end):%Y}" for end in (first, last)]  # type: ignore[no-untyped-call]
    axes.set_xlabel(" – ".join(dict.fromkeys(years)))

