"""The look of the figures: a palette for colour-blind readers, font sizes, and how figures are saved."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008), without black (reserved for the truth) and yellow (faint on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES: tuple[Any, ...] = ("--", (0, (1, 1.5)), "-.", (0, (6, 2, 1, 2, 1, 2)))
TRUTH = "#222222"
MUTED = "#6b6b6b"

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    # The name of a variant may contain a single $.
    "text.parse_math": False,
    # Journals accept TrueType fonts in PDF. The salt keeps the ids in an SVG file the same in each run.
    "pdf.fonttype": 42,
    "svg.hashsalt": "stlab",
}


@contextmanager
def paper_style() -> Iterator[None]:
    """A context in which figures look alike, whatever the user's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def line_style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th variant; no two of the first thirty share both."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": _MARKERS[index % len(_MARKERS)]}


def baseline_style(index: int) -> dict[str, Any]:
    """The style of the index-th baseline: grey, with dashes of its own."""
    return {"color": MUTED, "linestyle": _DASHES[index % len(_DASHES)], "linewidth": 1.3}


def legend_label(name: str) -> str:
    """The name as a label; matplotlib would leave a name with a leading underscore out of the legend."""
    return f" {name}" if name.startswith("_") else name


def legend_beside(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Place a legend to the right of all panels, so that it hides no data."""
    figure.legend(handles, labels, loc="outside right upper")


def hide(axes: Axes) -> None:
    axes.set_axis_off()


def render(figure: Figure, kind: str) -> bytes:
    """The figure as ``png`` (200 dpi), ``pdf`` or ``svg``. It contains no date, so the bytes are the same each time."""
    dated: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    sink = io.BytesIO()
    with paper_style():
        figure.savefig(sink, format=kind, dpi=200, bbox_inches="tight", pad_inches=0.04, metadata=dated[kind])
    # The layout takes longer than the drawing. It is made once, and so the same in all formats.
    figure.set_layout_engine("none")
    return sink.getvalue()
