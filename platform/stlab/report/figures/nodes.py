"""Figures of sensor networks: the correlation image of a window, the nodes that stand out in it, and errors by node.

Each function takes plain data and returns a new Figure; pyplot's global state is not touched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stlab.report.figures.forecast_errors import date_axis
from stlab.report.figures.style import MUTED, PALETTE, TRUTH, legend_label, paper_style
from stlab.report.model_input import THRESHOLD, NodeChoice, WindowInput
from stlab.report.page.text import image_channel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_WIDTH = 7.2  # inches: a page's two columns
_MAX_TICKS = 24  # at most so many nodes have their names beside a panel
_MAX_NAME = 10  # characters of a name on an axis
_BAR: dict[str, Any] = {"location": "bottom", "fraction": 0.05, "pad": 0.04, "aspect": 22}
_DASHES = ("-", "--", "-.", ":")


def image_figure(
    channels: Mapping[str, NDArray[np.floating]], names: Sequence[str], marked: Sequence[int] = (), title: str = ""
) -> Figure:
    """Each channel of an image as a panel; three channels are also shown together, as red, green and blue.

    Args:
        channels: name → (N, N) in [0, 1].
        names: labels of the N nodes on the axes.
        marked: indices of nodes to point at, in the colours of ``outstanding_figure``.
    """
    from matplotlib.figure import Figure

    together = len(channels) == 3
    count = len(channels) + together
    # A panel has about 300 pixels if four stand in a row. More nodes, or their names, need rows of two.
    columns = min(count, 4 if _MAX_TICKS < len(names) <= 300 else 2)
    rows = -(-count // columns)
    with paper_style():
        panel = min(_WIDTH / columns, 3.6 if len(names) <= _MAX_TICKS else 2.6)
        figure = Figure(figsize=(panel * columns, rows * (0.92 * panel + 0.6) + 0.25), layout="compressed")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (name, image) in zip(panels, channels.items(), strict=False):
            _channel(axes, name, image)
        if together:
            axes = panels[count - 1]
            axes.imshow(np.clip(np.stack(list(channels.values()), axis=-1), 0, 1), interpolation=_interpolation(image))
            axes.set_title("together, as seen")
            _rgb_legend(axes, [image_channel(name).title for name in channels])
        for number, axes in enumerate(panels[:count]):
            _node_axes(axes, names, marked, first=number % columns == 0)
        for axes in panels[count:]:
            axes.set_axis_off()
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return figure


def _channel(axes: Axes, name: str, image: NDArray[np.floating]) -> None:
    described = image_channel(name)
    shown = axes.imshow(image, cmap="viridis", vmin=0.0, vmax=1.0, interpolation=_interpolation(image))
    axes.set_title(described.title)
    bar = axes.figure.colorbar(shown, ax=axes, **_BAR)
    bar.set_ticks([0.0, 0.5, 1.0], labels=[described.low, described.middle, described.high])
    bar.ax.tick_params(length=2, labelsize=7.5)
    for label, side in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set(horizontalalignment=side)
    bar.outline.set_visible(False)


def _interpolation(image: NDArray[np.floating]) -> str:
    """No blending if each node has a pixel of its own; otherwise blending, so that no node falls between printed pixels."""
    return "nearest" if len(image) <= 100 else "auto"


def _rgb_legend(axes: Axes, titles: Sequence[str]) -> None:
    """The colour of each channel. The legend takes the place of a colour bar, so that the panels stay level."""
    from matplotlib.colorbar import make_axes
    from matplotlib.patches import Patch

    short = {"dynamic time warping": "DTW", "cross-correlation": "cross-corr."}
    handles = [Patch(color=colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    place, _ = make_axes(axes, **_BAR)  # type: ignore[arg-type]
    place.set_axis_off()
    place.legend(
        handles, [short.get(title, title) for title in titles], loc="upper center", ncols=3, fontsize=7,
        handlelength=0.8, handleheight=0.8, handletextpad=0.3, columnspacing=0.6, borderpad=0.0,
    )  # fmt: skip


def _node_axes(axes: Axes, names: Sequence[str], marked: Sequence[int], first: bool) -> None:
    """Label the nodes beside the panel, all of them if they are few; triangles point at the marked rows."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(names) <= _MAX_TICKS:
        short = [_short(name) for name in names]
        axes.set_yticks(range(len(names)), short, fontsize=6.5)
        axes.set_xticks(range(len(names)), short, fontsize=6.5, rotation=90)
        axes.xaxis.tick_top()
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axis.set_major_formatter(FuncFormatter(lambda at, _: names[int(at)] if 0 <= at < len(names) else ""))
        axes.tick_params(labelleft=first, labelbottom=False, labelsize=7.5)
    axes.tick_params(length=2)
    if first:
        axes.set_ylabel("node")
    for place, node in enumerate(marked):
        beside: dict[str, Any] = {"clip_on": False, "transform": axes.get_yaxis_transform()}
        axes.plot(1.02, node, "<", color=PALETTE[place % len(PALETTE)], markersize=4.5, **beside)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _node(seen: WindowInput, node: int) -> str:
    name = seen.names[node]
    return f"node {node}" if name == str(node) else f"node {node} ({_short(name)})"


def outstanding_figure(seen: WindowInput, choice: NodeChoice) -> Figure:
    """The upper panel shows every node's score; the lower panel the series of nodes that stand out and of typical nodes.

    The image's window is shaded. Nodes that stand out have the colours of ``image_figure``; typical nodes are grey.
    """
    from matplotlib.figure import Figure

    with paper_style():
        figure = Figure(figsize=(_WIDTH, 4.3), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(1, 1.7))
        _score_panel(above, choice)
        steps = seen.steps()
        below.axvspan(steps[0], steps[seen.history - 1], color="#e9e4d4", linewidth=0, label="window of the image")
        for place, node in enumerate(choice.typical):
            style: dict[str, Any] = {"color": MUTED, "linestyle": _DASHES[1 + place % 3], "linewidth": 1.2}
            below.plot(steps, seen.series[node], label=f"{_node(seen, node)}, typical", **style)
        for place, node in enumerate(choice.outstanding):
            colour = PALETTE[place % len(PALETTE)]
            below.plot(steps, seen.series[node], label=_node(seen, node), color=colour)
        below.set_ylabel("data unit")
        below.set_title(f"series over {len(steps)} steps", loc="left")
        below.margins(x=0.01)
        if seen.time is None:
            below.set_xlabel("step of the series")
        else:
            date_axis(below)
        handles, labels = below.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _score_panel(axes: Axes, choice: NodeChoice) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    size = 8 if len(choice.scores) <= 400 else 3
    axes.scatter(range(len(choice.scores)), choice.scores, s=size, color=MUTED, linewidths=0)
    axes.axhline(THRESHOLD, color=TRUTH, linewidth=0.8, linestyle=":")
    middle = (len(choice.scores) - 1) / 2
    for place, node in enumerate(choice.outstanding):
        colour = PALETTE[place % len(PALETTE)]
        axes.plot(node, choice.scores[node], "o", color=colour, markersize=5)
        left = node > middle
        axes.annotate(
            str(node), (node, choice.scores[node]), xytext=(-5 if left else 5, 0), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=8, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    axes.margins(x=0.02, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("node")
    axes.set_ylabel("score")
    axes.set_title("similarity to all other nodes, robust z score (low stands out)", loc="left")


def node_error_figure(
    best: tuple[str, NDArray[np.float64], NDArray[np.float64]],
    baseline: tuple[str, NDArray[np.float64], NDArray[np.float64]] | None,
) -> Figure:
    """Test MAE of each node against its mean reading: a point for each node, and a running median.

    Args:
        best, baseline: label, mean reading (N,) and mean absolute error (N,), NaN for nodes without a reading.
    """
    from matplotlib.figure import Figure

    with paper_style():
        figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
        axes = figure.add_subplot()
        drawn = [(best, PALETTE[0], "o", "-")] + ([(baseline, PALETTE[1], "^", "--")] if baseline else [])
        for (label, mean, error), colour, marker, dashes in reversed(drawn):
            known = np.isfinite(mean) & np.isfinite(error)
            axes.scatter(
                mean[known], error[known], s=11, color=colour, marker=marker, alpha=0.45, linewidths=0, rasterized=True
            )
            axes.plot(
                *running_median(mean[known], error[known]), color=colour, linestyle=dashes, marker=marker, markersize=4,
                markevery=0.12, label="\n".join(textwrap.wrap(legend_label(label), 34)),
            )  # fmt: skip
        axes.set_xlabel("mean reading of the node on the test segment (data unit)")
        axes.set_ylabel("test MAE of the node (data unit)")
        axes.set_ylim(bottom=0)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2)
    return figure


def running_median(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Medians of x and y over runs of neighbours in x; a run is a seventh of the points, and at least 5.

    Returns:
        Two arrays of equal length, x increasing; empty if there are no points.
    """
    from numpy.lib.stride_tricks import sliding_window_view

    if not len(x):
        return x, y
    order = np.argsort(x, kind="stable")
    width = min(len(x), max(5, len(x) // 7))
    xs, ys = (np.median(sliding_window_view(values[order], width), axis=1) for values in (x, y))
    return xs, ys
