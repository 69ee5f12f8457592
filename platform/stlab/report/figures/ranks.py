"""The critical-difference diagram of Demšar (2006): mean ranks on an axis, and bars over models that cannot be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlab.report.figures.style import PALETTE, TRUTH, paper_style
from stlab.report.statistics.across import ERRORS, Across, Ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def critical_difference_figure(found: Across) -> Figure | None:
    """A panel for each error; None where no error ranks at least three models."""
    ranked = {error: ranks for error in ERRORS if (ranks := found.ranks.get(error)) is not None and ranks.critical_difference is not None}
    if not ranked:
        return None
    from matplotlib.figure import Figure

    models = max(len(ranks.labels) for ranks in ranked.values())
    height = 0.75 + 0.17 * (models / 2) + 0.12 * models
    with paper_style():
        figure = Figure(figsize=(7.2, height * len(ranked)), layout="constrained")
        for axes, (error, ranks) in zip(figure.subplots(len(ranked), 1, squeeze=False)[:, 0], ranked.items(), strict=True):
            _draw(axes, ranks)
            axes.set_title(f"Mean rank by {error.upper()}; critical difference {ranks.critical_difference:.2f}", loc="left", pad=18)
    return figure


def _draw(axes: object, ranks: Ranks) -> None:
    import pandas as pd
    import scikit_posthocs

    mean = ranks.mean
    labels = list(ranks.labels)
    # The library joins models whose p is above its level; the entries are 1 for pairs that cannot be told apart, 0 for the others.
    same = pd.DataFrame([[float(not ranks.differ(one, other)) for other in labels] for one in labels], index=labels, columns=labels)
    scikit_posthocs.critical_difference_diagram(
        pd.Series(mean), same, ax=axes, label_fmt_left="{label} ({rank:.2f})", label_fmt_right="({rank:.2f}) {label}",
        label_props={"size": 8}, elbow_props={"linewidth": 0.9}, marker_props={"s": 14}, color_palette=dict.fromkeys(labels, TRUTH),
        crossbar_props={"color": PALETTE[0], "linewidth": 2.2, "marker": ""},
    )  # fmt: skip
    axes.grid(False)  # type: ignore[attr-defined]
