"""Curves along an axis: the range around the best, the scale with its zero, gradient norms, and λ = 0 as one trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stlab.execution.run_study import plan_study
from stlab.report.figures.axis import axis_caption, axis_figure
from stlab.report.statistics.axis_curves import AxisCurve, AxisPanel, axis_panel, numeric_axes
from stlab.report.statistics.summary import summarise
from stlab.storage import Store
from stlab.study.file import load_study
from tests.support.axes import LAMBDAS, PATH, lambda_study


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def panel_of(store: Store, rows: list[dict[str, Any]], path: str = PATH) -> AxisPanel:
    lines = summarise(rows, [path])
    assert numeric_axes(lines) == [path]
    panel = axis_panel(store, rows, lines, path)
    assert panel is not None
    return panel


def test_the_range_that_is_not_distinguishable_from_the_best(store: Store) -> None:
    rows = lambda_study(store)
    (curve,) = panel_of(store, rows).curves
    assert [point.value for point in curve.points] == list(LAMBDAS)
    assert curve.best in (0.2, 0.5)
    errors = {value: [row["test_rmse"] for row in rows if row[f"param.{PATH}"] == value] for value in LAMBDAS}
    p = {value: stats.ttest_rel(errors[value], errors[curve.best]).pvalue for value in LAMBDAS if value != curve.best}
    apart, most = set(), len(p)
    for rank, value in enumerate(sorted(p, key=lambda one: p[one])):  # Holm: as long as each passes its own level
        if p[value] * (most - rank) >= 0.05:
            break
        apart.add(value)
    assert set(curve.apart) == apart
    assert {0.0, 2.0} <= apart
    inside = [value for value in LAMBDAS if curve.span and curve.span[0] <= value <= curve.span[1]]
    assert curve.best in inside
    assert not apart & set(inside)
    beside = [LAMBDAS[LAMBDAS.index(inside[0]) - 1], LAMBDAS[LAMBDAS.index(inside[-1]) + 1]]
    assert set(beside) <= apart


def test_gradient_norms_are_means_over_the_last_third(store: Store) -> None:
    (curve,) = panel_of(store, lambda_study(store)).curves
    assert dict(curve.norms["forecast"]) == pytest.approx(dict.fromkeys(LAMBDAS, 3.0))
    assert dict(curve.norms["flow"]) == pytest.approx({value: 6 / (1 + value) for value in LAMBDAS})


def test_zero_has_its_own_tick_and_the_anchor_its_line(store: Store) -> None:
    panel = panel_of(store, lambda_study(store))
    assert panel.anchor == ("slot_of_week_mean", tuple((value, 7.2) for value in LAMBDAS))
    figure = axis_figure(PATH, [panel])
    figure.canvas.draw()
    errors, norms = figure.axes
    assert [tick.get_text() for tick in norms.get_xticklabels()] == ["0", "0.05", "0.1", "0.2", "0.5", "1", "2"]
    at = norms.transData.transform([(value, 3.0) for value in LAMBDAS])[:, 0]
    assert np.diff(at).min() > 0.4 * np.diff(at).max()  # no two values on top of each other
    assert norms.get_xlabel() == "λ (model.flow_weight)"
    assert [line.get_ydata()[0] for line in errors.lines if line.get_label() == "slot_of_week_mean"] == [7.2]
    weighted = next(line for line in norms.lines if line.get_label() == "λ × gradient of flow")
    assert list(weighted.get_ydata()) == pytest.approx([value * 6 / (1 + value) for value in LAMBDAS[1:]])


def test_the_caption_says_what_the_figure_says(store: Store) -> None:
    panel = panel_of(store, lambda_study(store))
    text = axis_caption(PATH, [panel])
    low, high = panel.curves[0].span or (0, 0)
    assert f"best at λ = {panel.curves[0].best:g}, not distinguishable from {low:g} to {high:g}" in text
    assert "distinguishable: 0," in text
    assert "paired t-tests over seeds" in text
    far = AxisPanel("", panel.curves, ("ridge", ((0.0, 30.0),)))
    assert "The baseline ridge is outside the figure, at 30." in axis_caption(PATH, [far])
    assert not [line for line in axis_figure(PATH, [far]).axes[0].lines if line.get_label() == "ridge"]


def test_what_stands_in_the_legend_stands_in_the_figure(store: Store) -> None:
    """A baseline near the curve but outside the range of the figure is named in the caption instead of drawn."""
    panel = panel_of(store, lambda_study(store))
    seeds = [error for point in panel.curves[0].points for error in point.seeds]
    span = max(seeds) - min(seeds)
    for level in (min(seeds) - 0.9 * span, min(seeds) - 1.1 * span, max(seeds) + 0.9 * span, max(seeds) + 1.1 * span):
        shown = AxisPanel("", panel.curves, ("week", ((0.0, level),)))
        errors = axis_figure(PATH, [shown]).axes[0]
        low, high = errors.get_ylim()
        drawn = [line.get_ydata()[0] for line in errors.lines if line.get_label() == "week"]
        assert all(low <= value <= high for value in drawn)
        assert bool(drawn) != ("The baseline week is outside the figure" in axis_caption(PATH, [shown]))


def test_a_value_without_a_result_is_said(store: Store) -> None:
    rows = lambda_study(store)
    for row in rows:
        if row[f"param.{PATH}"] == 0.5:
            row |= {"status": "failed", "test_rmse": None, "val_rmse": None, "error": "out of memory"}
    panel = panel_of(store, rows)
    assert [point.value for point in panel.curves[0].points] == [0.0, 0.05, 0.1, 0.2, 1.0, 2.0]
    assert "full has no result at λ = 0.5; the curve passes over it." in axis_caption(PATH, [panel])
    assert "has no result" not in axis_caption(PATH, [panel_of(store, lambda_study(store))])


def test_more_panels_than_fit_abreast_stand_in_rows_on_one_axis(store: Store) -> None:
    panel = panel_of(store, lambda_study(store, variants=("full", "no adapter")))
    swapped = AxisPanel("e", panel.curves[::-1])
    figure = axis_figure(PATH, [*(AxisPanel(name, panel.curves) for name in "abcd"), swapped])
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == list("abcde")
    assert len({axes.get_xlim() for axes in shown}) == 1
    assert [axes.get_xlabel() for axes in shown] == ["", "", "λ", "λ", "λ"]
    colours = [{line.get_label(): line.get_color() for line in axes.lines if line.get_label() in ("full", "no adapter")} for axes in shown]
    assert all(found == colours[0] for found in colours), "a variant looks the same in each"


def test_several_variants_and_several_data_sets(store: Store) -> None:
    panel = panel_of(store, lambda_study(store, variants=("full", "no adapter")))
    assert [curve.label for curve in panel.curves] == ["full", "no adapter"]
    other = AxisPanel("taxi", panel.curves[:1])
    figure = axis_figure(PATH, [panel, other])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["bike", "taxi"]
    assert "taxi: full: best at" in axis_caption(PATH, [panel, other])


def test_one_seed_without_forecasts_shades_nothing(store: Store) -> None:
    (curve,) = panel_of(store, lambda_study(store, seeds=1)).curves
    assert curve.span is None
    assert isinstance(curve, AxisCurve)
    assert "too few pairs" in axis_caption(PATH, [AxisPanel("", (curve,))])


def test_axes_that_are_no_numbers_have_no_curve(store: Store) -> None:
    rows = lambda_study(store)
    for row in rows:
        row["param.model.peft"] = None if row["baseline"] else ("lora", "adapter", "none")[row["seed"] % 3]
        row["param.model.flow"] = row["seed"] % 2 == 0
    assert numeric_axes(summarise(rows, ["model.peft", "model.flow"])) == []


def test_lambda_zero_is_full_without_the_flow_loss(small_grid: Path) -> None:
    """λ = 0 is one trial in every study, and λ = 0.5 is `full` of the ablation."""
    tiny = [f"data.path={small_grid}", "model.backbone=vit_test", "model.weights=random", "seeds=[0]", "baselines=[]"]
    along = plan_study(load_study("st_vfm_lambda", tiny))
    without = ["variants.full without the flow loss.model.flow_weight=0"]
    ablation = plan_study(load_study("st_vfm_ablation", tiny + without))
    by_value = {trial.spec.axis_values[PATH]: trial.trial_id for trial in along.trials}
    by_variant = {trial.spec.variant: trial.trial_id for trial in ablation.trials}
    assert len(set(by_value.values())) == 7
    assert by_value[0] == by_variant["full without the flow loss"]
    assert by_value[0.5] == by_variant["full"]
