"""A picture of a data set: where its readings are, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stlab.report.style import MUTED, PALETTE, paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stlab.data import Dataset

_MAX_CHANNELS = 4
_WIDTH = 7.2  # inches: a page's two columns
_DAYS = (("Monday to Friday", PALETTE[0]), ("weekend; bands: 10–90 % of the days", PALETTE[1]))


def data_picture(dataset: Dataset) -> Figure:
    """The mean of the train segment as a map for each channel, and beside it its mean day.

    The day shows the mean over cells by slot of the day, weekdays and weekend apart, with a band from the 10th to the
    90th percentile of the days. Without timestamps it shows the mean over cells by step. The first four channels are
    shown.

    Returns:
        A figure; its map images hold the means in the data's unit, row 0 on top.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = dataset.channel_names[:_MAX_CHANNELS]
    values = dataset.train.values
    with paper_style():
        # Maps keep their cells square: panels are cut to the grid, or a tall or wide one would stand in white.
        height, width = values.shape[2:]
        map_width = min(max(2.0 * width / height, 0.7), 2.9)
        row_height = max(map_width * height / width, 1.4) + 0.65
        figure = Figure(figsize=(_WIDTH, 0.65 + row_height * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_title(dataset), x=0.01, ha="left", fontsize=10.5)
        panels = figure.subplots(len(names), 2, squeeze=False, width_ratios=(map_width + 0.9, _WIDTH - map_width - 0.9))
        for row, name in enumerate(names):
            channel = values[:, row].astype(np.float64)
            _map(panels[row, 0], channel.mean(axis=0), name, _per_step(dataset))
            _day(panels[row, 1], channel.mean(axis=(1, 2)), dataset)
            panels[row, 1].set_title(f"{name}, mean over cells {_per_step(dataset)}", loc="left")
            panels[row, 1].set_ylim(bottom=min(0.0, panels[row, 1].dataLim.y0))
        handles, labels = panels[0, 1].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower right", ncols=3)
    return figure


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
    """The unit of a mean reading, as far as it is known: the files do not name what is counted."""
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
