"""Which figures a study's trials allow, each with its caption; and, for those they do not allow, why."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from stlab.report.figures import errors, nodes
from stlab.report.figures.axis import axis_caption, axis_figure, axis_name
from stlab.report.figures.tradeoff import differing, tradeoff_caption, tradeoff_figure, tradeoffs
from stlab.report.model_input import THRESHOLD, Choice, WindowView, choose_nodes, node_scores, read_view
from stlab.report.page.text import image_channel
from stlab.report.predictions import Predictions, describe_cell, read_predictions
from stlab.report.statistics.axis_curves import axis_panel, numeric_axes
from stlab.report.statistics.summary import (
    Row,
    Summary,
    anchor,
    best_variant,
    is_slot_of_week,
    slot_of_week,
    strongest_baseline,
)
from stlab.storage import Store, TrialDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kept = TypeVar("Kept")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A figure and what is said under it. ``inline`` is its format on the page: lines as svg, maps as png."""

    name: str
    title: str
    caption: str
    figure: Figure
    inline: str = "svg"


@dataclass
class Pictures:
    """The figures that could be made, and one sentence for each that could not."""

    made: list[Picture] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def draw(store: Store, rows: Sequence[Row], lines: Sequence[Summary]) -> Pictures:
    """All figures of a study."""
    found = Pictures()
    _axes(store, rows, lines, found)
    _horizon(store, lines, found)
    _learning(store, rows, lines, found)
    _costs(rows, lines, found)
    _forecasts(store, rows, lines, found)
    _views(store, rows, lines, found)
    for reason in found.left_out:
        _log.info("report: %s", reason)
    return found


def _axes(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: Pictures) -> None:
    for path in numeric_axes(lines):
        panel = axis_panel(store, rows, lines, path)
        if panel is None:
            found.left_out.append(f"No curve along {path}: no variant has been tested at three of its values.")
            continue
        name = f"along_{path.replace('.', '_')}"
        caption, figure = axis_caption(path, [panel]), axis_figure(path, [panel])
        found.made.append(Picture(name, f"Along {axis_name(path)}", caption, figure))


def _shown(lines: Sequence[Summary]) -> list[Summary]:
    """The lines of a figure: those with a finished trial, in the table's order. Of too many the best point of each variant, by validation,
    then the best of the others: an axis has a figure of its own."""
    variants = [line for line in lines if not line.baseline and line.n]
    by_validation = sorted(variants, key=lambda line: line.val_rmse.mean if line.val_rmse else math.inf)
    first = {line.variant: line.label for line in reversed(by_validation)}
    kept = sorted(variants, key=lambda line: (first[line.variant] != line.label, line.rank_rmse))[: errors.MAX_LINES]
    return [line for line in variants if line in kept]


def _only_best(lines: Sequence[Summary], shown: Sequence[Summary]) -> str:
    every = [line.variant for line in lines if not line.baseline and line.n]
    if len(every) <= len(shown):
        return ""
    if len(set(every)) == len(every):
        return f" Of {len(every)} variants the {len(shown)} best are drawn."
    return f" Of {len(every)} lines {len(shown)} are drawn: each variant's best by validation first."


def _reference_lines(lines: Sequence[Summary], shown: Sequence[Summary]) -> list[Summary]:
    """The baselines of a figure: the slot-of-week mean, the best, and the second unless it would flatten the rest."""
    ranked = [line for line in lines if line.baseline and line.test_rmse]
    week = slot_of_week(lines)
    worst = max((line.rank_rmse for line in shown if line.test_rmse), default=math.inf)
    kept = [line for line in ranked[:2] if line is ranked[0] or line.rank_rmse < 1.3 * worst]
    if week and week.test_rmse and week not in kept:
        kept.append(week)
    return sorted(kept, key=lambda line: (not is_slot_of_week(line.variant), line.rank_rmse))


def _horizon(store: Store, lines: Sequence[Summary], found: Pictures) -> None:
    shown = _shown(lines)
    for segment in ("test", "validation"):
        drawn = [_horizon_line(store, line, segment) for line in [*shown, *_reference_lines(lines, shown)]]
        kept = [line for line in drawn if line.seeds]
        if any(not line.baseline for line in kept):
            caption = (
                f"RMSE by steps ahead on the {segment} segment: mean over seeds, band from the lowest to the highest "
                f"seed. Dashed: baselines, the weak ones left to the table.{_only_best(lines, shown)}"
            )
            figure = errors.horizon_figure(kept, segment)
            found.made.append(Picture("rmse_by_horizon", "Error by horizon", caption, figure))
            return
    found.left_out.append("No errors by horizon: no variant has been measured on the test segment.")


def _costs(rows: Sequence[Row], lines: Sequence[Summary], found: Pictures) -> None:
    shown = _shown(lines)
    points = tradeoffs(rows, shown)
    if sum(point.error is not None for point in points) < 2:
        found.left_out.append("No trade-off: fewer than two variants have been tested.")
        return
    if not differing(points):
        found.left_out.append("No trade-off: the variants cost the same.")
        return
    text = tradeoff_caption(points) + _only_best(lines, shown)
    found.made.append(Picture("tradeoff", "What accuracy costs", text, tradeoff_figure(points)))


def _horizon_line(store: Store, line: Summary, segment: str) -> errors.HorizonLine:
    seeds: list[Mapping[int, float]] = []
    for trial_id in line.trial_ids:
        table = TrialDirectory(store, trial_id).read_horizon()
        if table is not None and (
            steps := {r["horizon"]: r["rmse"] for r in table.to_pylist() if r["segment"] == segment}
        ):
            seeds.append(steps)
    return errors.HorizonLine(line.label, line.baseline, seeds)


def _learning(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: Pictures) -> None:
    best_epoch = {row["trial_id"]: row.get("best_epoch") for row in rows}
    curves = []
    for line in _shown(lines):
        epochs = {trial_id: _validation(store, trial_id) for trial_id in line.trial_ids}
        epochs = {trial_id: points for trial_id, points in epochs.items() if points}
        if epochs:
            curves.append(
                errors.Curve(line.label, list(epochs.values()), [best_epoch[trial_id] for trial_id in epochs])
            )
    if not curves:
        found.left_out.append("No learning curves: no finished trial has kept its epochs.")
        return
    held = anchor(lines)
    reference = (held.label, held.val_rmse.mean) if held and held.val_rmse else None
    caption = (
        "Validation RMSE by epoch: seeds thin, their mean thick as far as all have trained, a dot at each seed's best "
        "epoch"
        f"{'; dashed: ' + reference[0] if reference else ''}.{_only_best(lines, _shown(lines))}"
    )
    found.made.append(
        Picture("learning_curves", "Learning curves", caption, errors.learning_curves(curves, reference))
    )


def _validation(store: Store, trial_id: str) -> list[tuple[int, float]]:
    epochs = TrialDirectory(store, trial_id).read_epochs()
    return [(row["epoch"], row["val_rmse"]) for row in epochs if row["val_rmse"] is not None]


def _forecasts(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: Pictures) -> None:
    best = best_variant(lines)
    chosen = _representative(store, rows, best, read_predictions)
    if best is None or chosen is None:
        found.left_out.append("No forecasts are shown: no variant has kept its forecasts of the test segment.")
        return
    seed, forecasts = chosen
    name = f"{best.label}, seed {seed}"
    if forecasts.is_grid:
        text = (
            f"{name} (of its seeds the best on validation) beside the truth, for the test window with the largest "
            f"total truth; channel {forecasts.busiest_cell()[0] + 1}. Truth and forecast share one colour scale."
        )
        found.made.append(Picture("forecast_maps", "Forecast and truth", text, errors.forecast_maps(forecasts), "png"))
    else:
        found.left_out.append("No maps: the data are not on a grid.")
    held = anchor(lines, best)
    baseline = _beside(store, rows, held, forecasts)
    cell = describe_cell(forecasts.busiest_cell())
    text = f"The series with the largest mean truth ({cell}) on the test segment: truth, {name}"
    lacking = held.label if held else "a baseline"
    text += f", and {baseline[0]}." if baseline else f"; {lacking} has no forecasts to show."
    if len(forecasts.window) > errors.MAX_SERIES_WINDOWS:
        text += f" The first {errors.MAX_SERIES_WINDOWS} of {len(forecasts.window)} windows."
    figure = errors.busy_series((best.label, forecasts), baseline)
    title = "A busy cell" if forecasts.is_grid else "A busy node"
    found.made.append(Picture("busiest_series", title, text, figure))
    if not forecasts.is_grid:
        strongest = strongest_baseline(lines, best)
        _node_errors(best.label, name, forecasts, _beside(store, rows, strongest, forecasts), found)


def _beside(
    store: Store, rows: Sequence[Row], line: Summary | None, forecasts: Predictions
) -> tuple[str, Predictions] | None:
    """Label and forecasts of a baseline, where it has kept them and they are of the same shape."""
    held = _representative(store, rows, line, read_predictions)
    if line is None or held is None or held[1].truth.shape[1:] != forecasts.truth.shape[1:]:
        return None
    return line.label, held[1]


def _node_errors(
    label: str, name: str, forecasts: Predictions, baseline: tuple[str, Predictions] | None, found: Pictures
) -> None:
    mean, error = forecasts.by_node()
    text = f"Test error of each node against its mean reading: {name}"
    reference = None
    if baseline is not None:
        reference = (baseline[0], *baseline[1].by_node())
        better = int((error < reference[2]).sum())
        text += f", and {baseline[0]}, the best baseline, which has the larger error at {better} of {len(error)} nodes"
    text += ". A point is a node, over all test windows and horizons; lines: running medians over nodes of like mean."
    if forecasts.every_nth > 1:
        text += f" Of {forecasts.every_nth} windows one was kept."
    if math.isnan(forecasts.truth.sum()):
        text += " Missing readings are left out."
    figure = nodes.node_error_figure((label, mean, error), reference)
    found.made.append(Picture("error_by_node", "Error by node", text, figure))


def _views(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: Pictures) -> None:
    """The image with the most channels, of the best variant that sees it; nothing is said where none sees an image."""
    variants = sorted((line for line in lines if not line.baseline), key=lambda line: line.rank_rmse)
    kept = [(line, chosen) for line in variants if (chosen := _representative(store, rows, line, read_view))]
    if kept:
        line, (seed, view) = max(kept, key=lambda pair: len(pair[1][1].channels))
        _view(f"{line.label}, seed {seed}", view, found)


def _view(name: str, view: WindowView, found: Pictures) -> None:
    choice = choose_nodes(node_scores(view.channels))
    labels = [str(node) for node in range(len(view.names))]
    figure = nodes.image_figure(view.channels, labels, choice.outstanding)
    words = [image_channel(channel) for channel in view.channels]
    meaning = "; ".join(f"{channel.title}: {channel.meaning}" for channel in words)
    when = f"step {view.window} of the series" if view.time is None else f"{view.time.item():%Y-%m-%d %H:%M}"
    text = (
        f"What the model sees ({name}) of the test window with the largest total truth, {view.history} steps from "
        f"{when}: row i, column j is how nodes i and j go together. {meaning[:1].upper()}{meaning[1:]}."
    )
    if len(view.channels) == 3:
        text += " Last, the three together as red, green and blue."
    found.made.append(Picture("correlation_image", "What the model sees", text, figure, "png"))
    if choice.outstanding:
        figure = nodes.outstanding_figure(view, choice)
        found.made.append(Picture("outstanding_nodes", "Nodes that stand out", _outstanding(view, choice), figure))


def _outstanding(view: WindowView, choice: Choice) -> str:
    lowest = ", ".join(str(node) for node in choice.outstanding)
    bar = f"{THRESHOLD:g}".replace("-", "−")
    if choice.beyond == 0:
        told = f"No node's score is below {bar}; the lowest are those of {lowest}."
    elif choice.beyond > len(choice.outstanding):
        told = f"{choice.beyond} nodes have a score below {bar} (dotted), the lowest {lowest}."
    else:
        told = f"Nodes with a score below {bar} (dotted): {choice.beyond}; shown: {lowest}."
    return (
        "Above: how alike each node is to all others in the image, the mean of its row over channels (a distance taken "
        "from 1), as a distance from the median of all nodes in units of 1.4826 times their median absolute deviation. "
        f"{told} Below: their series from the window on, beside nodes with a score near 0 (grey); the window is "
        "shaded. Triangles in the image have the same colours. Nodes are counted from 0."
    )


def _representative(
    store: Store, rows: Sequence[Row], line: Summary | None, read: Callable[[Store, str], Kept | None]
) -> tuple[int | None, Kept] | None:
    """Seed and what ``read`` finds of the trial with the lowest validation RMSE for which it finds something."""
    if line is None:
        return None
    own = [row for row in rows if row["trial_id"] in line.trial_ids]
    for row in sorted(own, key=lambda row: (row.get("val_rmse") is None, row.get("val_rmse"))):
        kept = read(store, row["trial_id"])
        if kept is not None:
            return row.get("seed"), kept
    return None
