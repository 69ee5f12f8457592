"""Error against cost: intervals compared with SciPy's, and the front with its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from stlab.report.figures.tradeoff import (
    COSTS,
    Tradeoff,
    cost_lines,
    pareto_front,
    tradeoff_figure,
    tradeoff_frame,
    tradeoffs,
)
from stlab.report.statistics.summary import Interval, Row, summarise


def row(variant: str, seed: int, rmse: float | None, seconds: float, size: int, **other: Any) -> dict[str, Any]:
    return {
        "trial_id": f"{variant}-{seed}", "variant": variant, "seed": seed, "status": "finished", "test_rmse": rmse, "test_mae": rmse,
        "val_rmse": 1.0, "wall_seconds": seconds, "peak_memory_bytes": 2**30 + 2**20 * size, "trainable_params": size,
        "total_params": 10 * size, **other,
    }  # fmt: skip


ROWS: list[Row] = [
    *(row("small", seed, 9.0 + seed, 10.0 + seed, 100) for seed in range(3)),
    *(row("large", seed, 5.0 + 0.1 * seed, 90.0 + 7 * seed, 5000) for seed in range(3)),
    *(row("dear", seed, 6.0 + seed, 200.0, 4000) for seed in range(3)),
    row("untested", 0, None, 5.0, 50),
    row("failed", 0, None, 1.0, 1, status="failed"),
    row("last value", 0, 20.0, 0.1, 0, baseline=True),
]


def test_costs_are_means_over_seeds_with_students_interval() -> None:
    points = {point.label: point for point in tradeoffs(ROWS, summarise(ROWS, []))}
    assert list(points) == ["small", "large", "dear", "untested"]
    for label, values in (("small", [10.0, 11.0, 12.0]), ("large", [90.0, 97.0, 104.0])):
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        seconds = points[label].costs["seconds"]
        assert seconds.half_width is not None
        assert (seconds.mean - seconds.half_width, seconds.mean + seconds.half_width) == pytest.approx((expected.low, expected.high))
    assert points["large"].costs["memory"].mean == pytest.approx(1 + 5000 / 1024)
    assert points["small"].front == ("seconds", "trainable", "total", "memory")
    assert points["dear"].front == ("trainable", "total", "memory")  # smaller than large, but slower
    assert points["untested"].front == ()  # cheapest of all, and how good it is nobody knows


def test_the_front_is_what_nothing_beats_in_both() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 12, (40, 2)).astype(float)
    points = [Tradeoff(str(i), Interval(error), {"seconds": Interval(cost)}, None) for i, (cost, error) in enumerate(values)]
    front = {point.label for point in pareto_front(points, "seconds")}
    for i, own in enumerate(values):
        beaten = any((other <= own).all() and (other < own).any() for other in values)
        assert (str(i) in front) == (not beaten)
    assert pareto_front(points, "memory") == []


def test_the_table_says_it_in_full_and_the_page_in_short() -> None:
    points = tradeoffs(ROWS, summarise(ROWS, []))
    frame = tradeoff_frame(points).set_index("label")
    assert frame.loc["large", "test_rmse_mean"] == pytest.approx(5.1)
    assert frame.loc["dear", "front"] == "trainable; total; memory"
    assert frame.loc["untested", "test_rmse_mean"] is None or np.isnan(frame.loc["untested", "test_rmse_mean"])
    lines = {line["label"]: line for line in cost_lines(points, 2)}
    assert lines["large"]["front"] == "everything"
    assert lines["dear"]["front"] == "trainable, all parameters, memory"
    assert lines["small"]["seconds"] == "11 s ± 23 %"  # t(0.975, 2) / sqrt(3) = 2.48
    assert lines["untested"]["seconds"] == "5.0 s"
    assert lines["untested"]["front"] == "–"


def test_the_figure_has_a_panel_a_cost_and_tells_the_front_from_the_rest() -> None:
    figure = tradeoff_figure(tradeoffs(ROWS, summarise(ROWS, [])))
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_xlabel() for axes in panels] == list(COSTS.values())
    seconds = {bars.get_label(): bars.lines[0] for bars in panels[0].containers}
    assert {label: line.get_markerfacecolor() == "white" for label, line in seconds.items()} == {
        "small": False, "large": False, "dear": True,
    }  # fmt: skip
    (step,) = [line for line in panels[0].lines if line.get_label() == "front"]
    np.testing.assert_allclose(step.get_xydata(), [(11.0, 10.0), (97.0, 5.1)])
