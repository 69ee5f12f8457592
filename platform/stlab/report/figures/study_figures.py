"""The figures of a study's report with their captions, and the reasons for figures that its trials do not allow."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from stlab.report.figures import forecast_errors, nodes
from stlab.report.figures.axis import axis_caption, axis_figure, axis_name
from stlab.report.figures.tradeoff import differing, tradeoff_caption, tradeoff_figure, tradeoffs
from stlab.report.model_input import THRESHOLD, NodeChoice, WindowInput, choose_nodes, node_scores, read_model_input
from stlab.report.page.text import image_channel
from stlab.report.predictions import Predictions, describe_cell, read_predictions
from stlab.report.statistics.axis_curves import AxisPanel, axis_panel, numeric_axes
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
class ReportFigure:
    """A figure with its title and caption."""

    name: str
    title: str
    caption: str
    figure: Figure
    page_format: str = "svg"
    """Format on the HTML page: svg for lines, png for maps."""


@dataclass
class FigureSet:
    """The figures that could be made, and one sentence for each that could not."""

    figures: list[ReportFigure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def draw_figures(store: Store, rows: Sequence[Row], lines: Sequence[Summary]) -> FigureSet:
    """All figures of a study."""
    found = FigureSet()
    _axes(store, rows, lines, found)
    _horizon(store, lines, found)
    _learning(store, rows, lines, found)
    _costs(rows, lines, found)
    _forecasts(store, rows, lines, found)
    _model_inputs(store, rows, lines, found)
    for reason in found.left_out:
        _log.info("report: %s", reason)
    return found


def _axes(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: FigureSet) -> None:
    for path in numeric_axes(lines):
        panel = axis_panel(store, rows, lines, path)
        if panel is None:
            found.left_out.append(f"No curve along {path}: no variant has been tested at three of its values.")
            continue
        found.figures.append(axis_on_datasets(path, [panel]))


def axis_on_datasets(path: str, panels: Sequence[AxisPanel]) -> ReportFigure:
    """The curves along an axis, in a panel for each data set."""
    title = f"Along {axis_name(path)}" + (f", on {len(panels)} data sets" if len(panels) > 1 else "")
    return ReportFigure(f"along_{path.replace('.', '_')}", title, axis_caption(path, panels), axis_figure(path, panels))


def _shown(lines: Sequence[Summary]) -> list[Summary]:
    """The variants that a figure shows: those with a finished trial, in the table's order.

    If there are more than ``MAX_LINES``, each variant is shown at its best setting by validation error, then the best other settings
    follow. The settings along an axis have a figure of their own.
    """
    variants = [line for line in lines if not line.baseline and line.n]
    by_validation = sorted(variants, key=lambda line: line.val_rmse.mean if line.val_rmse else math.inf)
    first = {line.variant: line.label for line in reversed(by_validation)}
    kept = sorted(variants, key=lambda line: (first[line.variant] != line.label, line.rank_rmse))[: forecast_errors.MAX_LINES]
    return [line for line in variants if line in kept]


def _only_best(lines: Sequence[Summary], shown: Sequence[Summary]) -> str:
    every = [line.variant for line in lines if not line.baseline and line.n]
    if len(every) <= len(shown):
        return ""
    if len(set(every)) == len(every):
        return f" The figure shows the {len(shown)} best of {len(every)} variants."
    return f" The figure shows {len(shown)} of {len(every)} lines, each variant's best by validation error first."


def _reference_lines(lines: Sequence[Summary], shown: Sequence[Summary]) -> list[Summary]:
    """The baselines of a figure: the slot-of-week mean, the best, and the second best unless it would flatten the other curves."""
    ranked = [line for line in lines if line.baseline and line.test_rmse]
    week = slot_of_week(lines)
    worst = max((line.rank_rmse for line in shown if line.test_rmse), default=math.inf)
    kept = [line for line in ranked[:2] if line is ranked[0] or line.rank_rmse < 1.3 * worst]
    if week and week.test_rmse and week not in kept:
        kept.append(week)
    return sorted(kept, key=lambda line: (not is_slot_of_week(line.variant), line.rank_rmse))


def _horizon(store: Store, lines: Sequence[Summary], found: FigureSet) -> None:
    shown = _shown(lines)
    for segment in ("test", "validation"):
        drawn = [_horizon_line(store, line, segment) for line in [*shown, *_reference_lines(lines, shown)]]
        kept = [line for line in drawn if line.seeds]
        if any(not line.baseline for line in kept):
            caption = (
                f"RMSE by steps ahead on the {segment} segment: the mean over seeds, with a band from the lowest to the highest "
                f"seed. Dashed lines are baselines; the table lists the weaker ones.{_only_best(lines, shown)}"
            )
            figure = forecast_errors.horizon_figure(kept, segment)
            found.figures.append(ReportFigure("rmse_by_horizon", "Error by horizon", caption, figure))
            return
    found.left_out.append("No errors by horizon: no variant has been measured on the test segment.")


def _costs(rows: Sequence[Row], lines: Sequence[Summary], found: FigureSet) -> None:
    shown = _shown(lines)
    points = tradeoffs(rows, shown)
    if sum(point.error is not None for point in points) < 2:
        found.left_out.append("No trade-off: fewer than two variants have been tested.")
        return
    if not differing(points):
        found.left_out.append("No trade-off: the variants cost the same.")
        return
    text = tradeoff_caption(points) + _only_best(lines, shown)
    found.figures.append(ReportFigure("tradeoff", "Accuracy and cost", text, tradeoff_figure(points)))


def _horizon_line(store: Store, line: Summary, segment: str) -> forecast_errors.HorizonLine:
    seeds: list[Mapping[int, float]] = []
    for trial_id in line.trial_ids:
        table = TrialDirectory(store, trial_id).read_horizon()
        if table is not None and (
            steps := {r["horizon"]: r["rmse"] for r in table.to_pylist() if r["segment"] == segment}
        ):
            seeds.append(steps)
    return forecast_errors.HorizonLine(line.label, line.baseline, seeds)


def _learning(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: FigureSet) -> None:
    best_epoch = {row["trial_id"]: row.get("best_epoch") for row in rows}
    curves = []
    for line in _shown(lines):
        epochs = {trial_id: _validation(store, trial_id) for trial_id in line.trial_ids}
        epochs = {trial_id: points for trial_id, points in epochs.items() if points}
        if epochs:
            curves.append(
                forecast_errors.Curve(line.label, list(epochs.values()), [best_epoch[trial_id] for trial_id in epochs])
            )
    if not curves:
        found.left_out.append("No learning curves: no finished trial has kept its epochs.")
        return
    held = anchor(lines)
    reference = (held.label, held.val_rmse.mean) if held and held.val_rmse else None
    caption = (
        "Validation RMSE by epoch. Thin lines are seeds, the thick line is their mean over the epochs that all have trained, and a dot "
        f"marks each seed's best epoch.{f' The dashed line is {reference[0]}.' if reference else ''}{_only_best(lines, _shown(lines))}"
    )
    found.figures.append(
        ReportFigure("learning_curves", "Learning curves", caption, forecast_errors.learning_curves(curves, reference))
    )


def _validation(store: Store, trial_id: str) -> list[tuple[int, float]]:
    epochs = TrialDirectory(store, trial_id).read_epochs()
    return [(row["epoch"], row["val_rmse"]) for row in epochs if row["val_rmse"] is not None]


def _forecasts(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: FigureSet) -> None:
    best = best_variant(lines)
    chosen = _representative(store, rows, best, read_predictions)
    if best is None or chosen is None:
        found.left_out.append("No forecasts are shown: no variant has kept its forecasts of the test segment.")
        return
    seed, forecasts = chosen
    name = f"{best.label}, seed {seed}"
    if forecasts.is_grid:
        caption = (
            f"{name} (its best seed by validation error) beside the truth, for the test window with the largest total "
            f"truth; channel {forecasts.busiest_cell()[0] + 1}. Truth and forecast share one colour scale."
        )
        figure = forecast_errors.forecast_maps(forecasts)
        found.figures.append(ReportFigure("forecast_maps", "Forecast and truth", caption, figure, "png"))
    else:
        found.left_out.append("No maps: the data are not on a grid.")
    held = anchor(lines, best)
    _busiest_series(best.label, name, forecasts, held, _of_baseline(store, rows, held, forecasts), found)
    if not forecasts.is_grid:
        strongest = strongest_baseline(lines, best)
        _node_errors(best.label, name, forecasts, _of_baseline(store, rows, strongest, forecasts), found)


def _busiest_series(
    label: str, name: str, forecasts: Predictions, held: Summary | None, baseline: tuple[str, Predictions] | None, found: FigureSet
) -> None:
    cell = describe_cell(forecasts.busiest_cell())
    caption = f"The series with the largest mean truth ({cell}) on the test segment: truth, {name}"
    lacking = held.label if held else "a baseline"
    caption += f", and {baseline[0]}." if baseline else f"; {lacking} has no forecasts to show."
    if len(forecasts.window) > forecast_errors.MAX_SERIES_WINDOWS:
        caption += f" The figure shows the first {forecast_errors.MAX_SERIES_WINDOWS} of {len(forecasts.window)} windows."
    figure = forecast_errors.busy_series((label, forecasts), baseline)
    title = "A busy cell" if forecasts.is_grid else "A busy node"
    found.figures.append(ReportFigure("busiest_series", title, caption, figure))


def _of_baseline(
    store: Store, rows: Sequence[Row], line: Summary | None, forecasts: Predictions
) -> tuple[str, Predictions] | None:
    """Label and forecasts of a baseline; None if it has kept none, or their shape differs."""
    held = _representative(store, rows, line, read_predictions)
    if line is None or held is None or held[1].truth.shape[1:] != forecasts.truth.shape[1:]:
        return None
    return line.label, held[1]


def _node_errors(
    label: str, name: str, forecasts: Predictions, baseline: tuple[str, Predictions] | None, found: FigureSet
) -> None:
    mean, error = forecasts.by_node()
    text = f"Test error of each node against its mean reading: {name}"
    reference = None
    if baseline is not None:
        reference = (baseline[0], *baseline[1].by_node())
        better = int((error < reference[2]).sum())
        text += f", and {baseline[0]}, the best baseline, which has the larger error at {better} of {len(error)} nodes"
    text += ". Each point is a node, over all test windows and horizons. The lines are running medians over nodes with similar means."
    if forecasts.every_nth > 1:
        text += f" One in {forecasts.every_nth} windows was kept."
    if math.isnan(forecasts.truth.sum()):
        text += " Missing readings are left out."
    figure = nodes.node_error_figure((label, mean, error), reference)
    found.figures.append(ReportFigure("error_by_node", "Error by node", text, figure))


def _model_inputs(store: Store, rows: Sequence[Row], lines: Sequence[Summary], found: FigureSet) -> None:
    """Draw the image with the most channels, from the best variant that sees it. Studies without images get no note."""
    variants = sorted((line for line in lines if not line.baseline), key=lambda line: line.rank_rmse)
    kept = [(line, chosen) for line in variants if (chosen := _representative(store, rows, line, read_model_input))]
    if kept:
        line, (seed, seen) = max(kept, key=lambda pair: len(pair[1][1].channels))
        _model_input(f"{line.label}, seed {seed}", seen, found)


def _model_input(name: str, seen: WindowInput, found: FigureSet) -> None:
    choice = choose_nodes(node_scores(seen.channels))
    labels = [str(node) for node in range(len(seen.names))]
    figure = nodes.image_figure(seen.channels, labels, choice.outstanding)
    described = [image_channel(channel) for channel in seen.channels]
    meaning = "; ".join(f"{channel.title}: {channel.meaning}" for channel in described)
    when = f"step {seen.window} of the series" if seen.time is None else f"{seen.time.item():%Y-%m-%d %H:%M}"
    text = (
        f"The image that the model sees ({name}) for the test window with the largest total truth, {seen.history} steps "
        f"from {when}. Row i, column j shows how nodes i and j go together. {meaning[:1].upper()}{meaning[1:]}."
    )
    if len(seen.channels) == 3:
        text += " The last panel shows the three channels together as red, green and blue."
    found.figures.append(ReportFigure("correlation_image", "What the model sees", text, figure, "png"))
    if choice.outstanding:
        figure = nodes.outstanding_figure(seen, choice)
        found.figures.append(ReportFigure("outstanding_nodes", "Nodes that stand out", _outstanding(seen, choice), figure))


def _outstanding(seen: WindowInput, choice: NodeChoice) -> str:
    lowest = ", ".join(str(node) for node in choice.outstanding)
    bar = f"{THRESHOLD:g}".replace("-", "−")
    if choice.beyond == 0:
        scores = f"No node's score is below {bar}; the lowest scores are those of {lowest}."
    else:
        nodes_have = "node has" if choice.beyond == 1 else "nodes have"
        scores = f"{choice.beyond} {nodes_have} a score below {bar} (dotted line); the lowest scores are those of {lowest}."
    return (
        "The upper panel shows how similar each node is to all others in the image: the mean of its row over channels (a distance counts "
        "as 1 minus its value), less the median of all nodes, in units of 1.4826 times their median absolute deviation. "
        f"{scores} The lower panel shows their series from the window on, beside nodes with a score near 0 (grey); the window is shaded. "
        "Triangles in the image have the same colours. Nodes are counted from 0."
    )


def _representative(
    store: Store, rows: Sequence[Row], line: Summary | None, read: Callable[[Store, str], Kept | None]
) -> tuple[int | None, Kept] | None:
    """Seed and data of the trial with the lowest validation RMSE among those for which ``read`` finds data."""
    if line is None:
        return None
    own = [row for row in rows if row["trial_id"] in line.trial_ids]
    for row in sorted(own, key=lambda row: (row.get("val_rmse") is None, row.get("val_rmse"))):
        kept = read(store, row["trial_id"])
        if kept is not None:
            return row.get("seed"), kept
    return None
