"""A study on several data sets, from the command line: one of which cannot be read, and its page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stlab import api
from stlab.errors import UserError
from tests.support.command_line import CommandLine

STUDY = """
name: cities
base:
  model: {name: stid, width: 8}
  train: {max_epochs: 2, batch_size: 64, lr: 3e-3, warmup_epochs: 0}
datasets:
  one: {path: "synthetic:city?seed=1&weeks=3"}
  two: {path: "synthetic:city?seed=2&weeks=3", scale: 100, without: [norm]}
variants: {STID: {}, norm: {model: {name: stnorm, width: 4}}}
baselines: [last_value]
report: {horizons: [1, 6]}
"""

pytestmark = pytest.mark.slow


def test_a_study_on_several_data_sets(stlab: CommandLine) -> None:
    """Slow: one command that starts Ray. What a killed study goes on from does not depend on its data sets, see test_interrupt."""
    folder = stlab.folder
    (folder / "cities.yaml").write_text(STUDY)
    done = stlab("run", "cities.yaml", "--storage", "runs", "--set", "datasets.three.path=gone.npz", "--skip-bad-datasets")
    assert done.code == 0, done.err
    assert "gone.npz" in done.out
    results = api.results(folder / "runs", "cities")
    trials = results.trials
    assert set(trials["status"]) == {"finished"}
    assert trials.groupby("dataset").size().to_dict() == {"one": 3, "two": 2}
    report = Path(results.report_path).parent
    cells = pd.read_parquet(report / "tables/cells.parquet").set_index(["dataset", "model"])
    assert cells.loc[("two", "norm"), "reason"].startswith("not run")
    assert (report / "datasets/one/tables/horizons.csv").exists()
    assert "<details" in (report / "index.html").read_text()
    with pytest.raises(UserError, match="best_on"):
        _ = results.best
    assert results.best_on("two")["dataset"] == "two"
    assert results.load_model(results.best_on("two")["trial_id"]) is not None
    assert "gone.npz" in (report / "index.html").read_text()
