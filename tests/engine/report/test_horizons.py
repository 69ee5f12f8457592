"""Errors by steps ahead against the rows that each trial kept, and λ over several data sets relative to each lowest."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stlab.errors import StudyError
from stlab.report import summarise, write_report
from stlab.report.figures.axis_relative import relative_axis_caption, relative_axis_figure
from stlab.report.statistics.axis_curves import axis_panel
from stlab.report.tables.horizons import AVERAGE, horizon_frame, horizon_latex, horizon_table
from stlab.storage import Store, TrialDirectory
from stlab.storage.schema import PREDICTIONS
from stlab.study.file import parse
from stlab.study.plan import make_plan
from stlab.study.source import StudySource
from tests.support.axes import PATH, lambda_study
from tests.support.searches import facts
from tests.support.tables import Row, row, write_table

STEPS = range(1, 7)


def a_tested_trial(store: Store, model: str, seed: int) -> Row:
    """A tested trial whose errors grow with the steps ahead."""
    one = row("bikes", model, seed, 5.0 + seed, 2.0)
    errors = [{"segment": "test", "horizon": s, "mae": s + seed, "rmse": 2.0 * s + seed, "mape": None, "count": 9} for s in STEPS]
    other = [{**entry, "segment": "validation", "rmse": 99.0} for entry in errors]
    start = datetime(2024, 1, 1)
    kept = [{"window": 0, "horizon": s, "time": start + timedelta(minutes=5 * s), "truth": [1.0], "forecast": [1.0]} for s in STEPS]
    metadata = {"shape": "[1, 1, 1]"}
    predictions = pa.Table.from_pylist(kept, schema=PREDICTIONS.with_metadata(metadata))
    TrialDirectory(store, one["trial_id"]).write_test({"rmse": one["test_rmse"], "mae": 2.0}, [*errors, *other], predictions)
    return one


def test_a_step_is_the_mean_over_seeds_of_what_trials_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [a_tested_trial(store, model, seed) for model in ("full", "b & c") for seed in (0, 1)]
    table = horizon_table(store, rows, summarise(rows, []), [3, 6])
    assert table is not None
    assert table.steps == {3: "15 min", 6: "30 min", AVERAGE: "average"}
    frame = horizon_frame(table).set_index("label")
    assert frame.loc["full", "rmse_3"] == pytest.approx(np.mean([6.0, 7.0]))
    assert frame.loc["full", "mae_6"] == pytest.approx(6.5)
    assert frame.loc["full", "rmse_average"] == pytest.approx(5.5)
    assert "mape_3" not in frame
    assert r"b \& c & $3.500 \pm" in horizon_latex(table)
    assert horizon_table(store, rows, summarise(rows, []), []) is None
    write_table(store, rows, datasets={}, base={"data": {"path": "bikes.npz"}, "model": {"name": "stid"}}, report={"horizons": [3, 6]})
    report = Path(write_report(store, "whole"))
    assert "<h2>By steps ahead</h2>" in report.read_text()
    written = pd.read_csv(report.parent / "tables/horizons.csv").set_index("label")
    assert written.loc["full", "rmse_6"] == pytest.approx(12.5)


@pytest.mark.parametrize(("steps", "words"), [([7], "beyond the horizon of 6"), ([3, 3], "appears twice"), ([0], "at least 1")])
def test_steps_that_cannot_be_are_refused(steps: list[int], words: str) -> None:
    text = f"{{name: a, base: {{data: {{path: a.npz}}, model: {{name: st_vfm}}}}, report: {{horizons: {steps}}}}}"
    with pytest.raises(StudyError, match=words):
        make_plan(parse(source := StudySource.from_text(text)), facts, source)


def test_each_curve_is_divided_by_its_own_lowest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    panels = []
    for name, size in (("bikes", 1.0), ("taxis", 100.0)):
        rows = [
            one | {"dataset": name} | {key: size * one[key] for key in ("test_rmse", "test_mae", "val_rmse")}
            for one in lambda_study(store)
            if not one["baseline"]
        ]
        panel = axis_panel(store, rows, summarise(rows, [PATH]), PATH)
        assert panel is not None
        panels.append(panel)
    curves = [line.get_ydata() for line in relative_axis_figure(PATH, panels).axes[0].get_lines() if len(line.get_ydata()) > 2]
    assert len(curves) == 2
    np.testing.assert_allclose(curves[0], curves[1])
    assert min(curves[0]) == 1.0
    assert f"taxis (full) by up to {100 * (max(curves[1]) - 1):.1f} %" in relative_axis_caption(PATH, panels)
