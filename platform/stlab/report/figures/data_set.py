"""A figure of a data set: its readings in space and in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stlab.report.figures.coverage import HEIGHT, Coverage, calendar
from stlab.report.figures.style import MUTED, PALETTE, paper_style
from stlab.report.model_input import without_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stlab.data import Dataset

_MAX_CHANNELS = 4
_WIDTH = 7.2  # inches: a page's two columns
_DAYS = (("Monday to Friday", PALETTE[0]), ("weekend; bands: 10–90 % of the days", PALETTE[1]))


def data_set_figure(dataset: Dataset, coverage: Coverage | None = None) -> Figure:
    """The first four channels of the train segment, in space and in time.

    A grid is shown as a map of its means and as its mean day. A sensor network is shown as the mean reading of each node, the share of
    missing readings (if any are missing), and the mean day. Means leave missing readings out.

    The mean day is the mean over cells or nodes by slot of the day, with weekdays and weekends apart and a band from the 10th to the 90th
    percentile of the days. Data without timestamps have the mean by step instead.

    Args:
        coverage: what all segments lack, drawn as a calendar below.

    Returns:
        A figure; its map images hold the means in the data's unit, with row 0 on top.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with paper_style():
        figure = (_grid if dataset.info.family == "grid" else _network)(dataset, coverage)
        FigureCanvasAgg(figure)
        figure.suptitle(_title(dataset), x=0.01, ha="left", fontsize=10.5)
    return figure


def _grid(dataset: Dataset, coverage: Coverage | None) -> Figure:
    from matplotlib.figure import Figure

    names = dataset.channel_names[:_MAX_CHANNELS]
    values = dataset.train.values
    # Maps keep their cells square, so the panels take the shape of the grid; otherwise a tall or wide grid would leave white space.
    height, width = values.shape[2:]
    map_width = min(max(2.0 * width / height, 0.7), 2.9)
    row_height = max(map_width * height / width, 1.4) + 0.65
    heights = [row_height] * len(names) + ([HEIGHT] if coverage else [])
    figure = Figure(figsize=(_WIDTH, 0.65 + sum(heights)), layout="constrained")
    places = figure.add_gridspec(len(heights), 2, width_ratios=(map_width + 0.9, _WIDTH - map_width - 0.9), height_ratios=heights)
    days = [figure.add_subplot(places[row, 1]) for row in range(len(names))]
    for row, (name, day) in enumerate(zip(names, days, strict=True)):
        channel = values[:, row].astype(np.float64)
        _map(figure.add_subplot(places[row, 0]), channel.mean(axis=0), name, _per_step(dataset))
        _day(day, channel.mean(axis=(1, 2)), dataset)
        day.set_title(f"{name}, mean over cells {_per_step(dataset)}", loc="left")
        day.set_ylim(bottom=min(0.0, day.dataLim.y0))
    if coverage:
        calendar(figure.add_subplot(places[-1, :]), coverage)
    _day_legend(figure, days[0])
    return figure


def _network(dataset: Dataset, coverage: Coverage | None) -> Figure:
    from matplotlib.figure import Figure

    channels = [
        without_missing(dataset.train.values[..., channel], dataset.protocol.get("mask"))
        for channel in range(min(dataset.info.shape[1], _MAX_CHANNELS))
    ]
    missing = any(np.isnan(channel).any() for channel in channels)
    heights = [1.5, *([0.8] if missing else []), 1.9] * len(channels) + ([HEIGHT] if coverage else [])
    figure = Figure(figsize=(_WIDTH, 0.65 + sum(heights) + 0.35 * len(heights)), layout="constrained")
    panels = iter(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    days = None
    for name, readings in zip(dataset.channel_names, channels, strict=False):
        _nodes(next(panels), readings, name)
        if missing:
            _missing(next(panels), readings)
        days = next(panels)
        counted = (~np.isnan(readings)).sum(axis=1)
        total = np.nansum(readings, axis=1)
        _day(days, np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0), dataset)
        days.set_title(f"{name}, mean over nodes by {'step' if dataset.train.slots is None else 'time of day'}", loc="left")
        days.set_ylabel("data unit")
    if coverage:
        calendar(next(panels), coverage)
    if days is not None:
        _day_legend(figure, days)
    return figure


def _day_legend(figure: Figure, day: Axes) -> None:
    handles, labels = day.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower right", ncols=3)


def _nodes(axes: Axes, readings: NDArray[np.float64], name: str) -> None:
    """Each node's mean, with the band of four fifths of its readings; (T, N) with NaN for missing readings."""
    alive = np.flatnonzero(~np.isnan(readings).all(axis=0))
    low, high = np.nanquantile(readings[:, alive], (0.1, 0.9), axis=0)
    axes.vlines(alive, low, high, color=PALETTE[5], alpha=0.45, linewidth=max(0.6, min(4.0, 300 / readings.shape[1])))
    mean = np.nanmean(readings[:, alive], axis=0)
    axes.plot(alive, mean, "o", color=PALETTE[0], markersize=4 if readings.shape[1] <= 60 else 2)
    _node_axis(axes, readings.shape[1])
    axes.set_ylabel("data unit")
    dead = readings.shape[1] - len(alive)
    lost = f"; {dead} never had a reading" if dead else ""
    axes.set_title(f"{name}, {readings.shape[1]} nodes: mean of each, bar: 10–90 % of its readings{lost}", loc="left")


def _missing(axes: Axes, readings: NDArray[np.float64]) -> None:
    share = 100 * np.isnan(readings).mean(axis=0)
    axes.bar(range(len(share)), share, width=0.8 if len(share) <= 60 else 1.0, color=PALETTE[1])
    _node_axis(axes, len(share))
    axes.set_ylim(0, max(1.0, 1.05 * share.max()))
    axes.set_ylabel("%")
    axes.set_title(f"missing readings, {np.isnan(readings).mean():.2%} in all".replace("%", " %"), loc="left")


def _node_axis(axes: Axes, nodes: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.5 - 0.01 * nodes, nodes - 0.5 + 0.01 * nodes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("node")


def _title(dataset: Dataset) -> str:
    label = dataset.name
    if dataset.synthetic and "synthetic" not in label:
        label += " (synthetic)"
    times = dataset.train.timestamps
    span = f"{len(dataset.train.values)} steps"
    if times is not None:
        span = f"{np.min(times).astype('datetime64[D]')} to {np.max(times).astype('datetime64[D]')}"
    return f"{label}, train segment: {span}"


def _per_step(dataset: Dataset) -> str:
    """The unit of a mean reading as far as it is known; the files do not name the counted quantity."""
    per_day = dataset.info.slots_per_day
    if per_day is None:
        return "per step"
    minutes = 1440 / per_day
    if minutes == 60:
        return "per hour"
    return "per day" if per_day == 1 else f"per {minutes:g} min"


def _map(axes: Axes, mean: NDArray[np.float64], name: str, per: str) -> None:
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(mean, cmap="viridis", vmin=min(0.0, float(mean.min())), interpolation="nearest")
    axes.set_title(f"{name}, {mean.shape[0]}×{mean.shape[1]} cells", loc="left")
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.95, pad=0.02)
    bar.set_label(f"mean {per}")
    bar.outline.set_visible(False)


def _day(axes: Axes, mean: NDArray[np.float64], dataset: Dataset) -> None:
    slots, per_day = dataset.train.slots, dataset.info.slots_per_day
    if slots is None or per_day is None:
        axes.plot(mean, color=MUTED, linewidth=0.7)
        axes.set_xlim(0, max(1, len(mean) - 1))
        axes.set_xlabel("step of the train segment")
        return
    table = pd.DataFrame({"hour": slots % per_day * 24 / per_day, "weekend": slots // per_day >= 5, "value": mean})
    for weekend, (label, color) in enumerate(_DAYS):
        readings = table.loc[table["weekend"] == bool(weekend)].groupby("hour")["value"]
        if not len(readings):
            continue
        center = readings.mean()
        axes.fill_between(
            center.index, readings.quantile(0.1), readings.quantile(0.9), color=color, alpha=0.18, linewidth=0
        )
        axes.plot(center.index, center, color=color, label=label)
    axes.set_xlim(0, 24 - 24 / per_day if per_day > 1 else 24)
    axes.set_xticks(range(0, 24, 6), [f"{hour:02d}:00" for hour in range(0, 24, 6)])
    axes.set_xlabel("time of day")
