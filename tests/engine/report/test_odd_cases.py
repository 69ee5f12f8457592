"""Pages and tables of studies with problems: all trials failed, one seed, a search without a finished trial, one lost value of λ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stlab.execution.collect import search_rows
from stlab.report import compare, report_figures, terminal_table, write_report
from stlab.report.page.joint import write_joint_report
from stlab.storage import Store, StudyDirectory, TrialDirectory, best_trial
from stlab.study.file import dump_study
from tests.support.axes import LAMBDAS, lambda_study
from tests.support.searches import planned, searching

LAMBDA = "model.flow_weight"


def write(store: Store, rows: list[dict[str, Any]], name: str = "weights", **more: Any) -> str:
    """Write the study's folder and its report; returns the page's text."""
    study = {"name": name, "axes": {LAMBDA: list(LAMBDAS)}, "base": {"model": {"flow_weight": 0.5}}, **more}
    StudyDirectory(store, name).write_study(json.dumps(study))
    StudyDirectory(store, name).write_trials([{**row, "study": name} for row in rows])
    return text_of(write_report(store, name))


def text_of(path: str) -> str:
    page = re.sub(r"data:image/[^\"]*", "", Path(path).read_text())
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("<main>")[2]).split())


def lose(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"status": "failed", "error": "out of memory", "test_rmse": None, "test_mae": None, "val_rmse": None}


def printed(rows: list[dict[str, Any]], store: Store, width: int) -> str:
    """The terminal's output."""
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(rows, [LAMBDA], width, compare(rows, [LAMBDA], {}, store)))
    return console.export_text()


def test_a_study_whose_trials_all_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [row if row["baseline"] else lose(row) for row in lambda_study(store, seeds=2)]
    page = write(store, rows)
    assert "0 of 2 (2 failed)" in page
    assert "No curve along model.flow_weight" in page
    assert "No variant has been measured on the test segment" in page
    assert page.count("out of memory") == 2 * len(LAMBDAS)
    assert "0/2" in printed(rows, store, 80)
    assert best_trial(rows) is None
    assert report_figures(store, "weights") == {}
    write(store, [{**row, "trial_id": f"b{row['trial_id']}"} for row in rows], "again")
    path, _ = write_joint_report(store, ["weights", "again"])
    assert "out of memory" in text_of(path)


def test_no_trial_ever_began(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [{"variant": "full", "seed": 0, "trial_id": "a", "status": "missing", "baseline": False}]
    assert "protocol unknown" in write(store, rows)
    assert "0/1" in printed(rows, store, 80)


def test_one_seed_has_no_band_and_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = lambda_study(store, seeds=1)
    page = write(store, rows)
    assert "Test RMSE along λ (model.flow_weight), one seed. A star marks" in page
    assert "Each variant has one seed, so there are no intervals" in page
    assert "±" not in printed(rows, store, 140).split("No variant")[0].split("λ:")[0]


def test_a_lambda_that_failed_is_named_where_the_curve_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [lose(row) if row[f"param.{LAMBDA}"] == 0.5 else row for row in lambda_study(store, seeds=3)]
    page = write(store, rows)
    assert "full has no result at λ = 0.5; the curve passes over it." in page
    assert "0 of 3 (3 failed)" in page
    assert "cannot be compared with full · λ=0.5" in page or "vs λ=" not in page, "the reference itself is lost"
    assert "full · λ=0.05" in printed(rows, store, 80)


@pytest.mark.parametrize("failed", [0, 3])
def test_a_search_of_which_nothing_finished(tmp_path: Path, failed: int) -> None:
    plan, store = planned("search.max_trials=3"), Store(tmp_path)
    search = searching(store, plan)
    for _ in range(failed):
        entry, (trial,) = search.next(0.0)
        directory = TrialDirectory(store, trial.trial_id)
        directory.write_trial({})
        directory.write_failure({"reason": "out of memory", "epoch": 0, "log_tail": ""})
        search.tell(entry.number)
    rows = search_rows(plan, store)
    directory = StudyDirectory(store, "bikes")
    directory.write_study(dump_study(plan.study))
    directory.write_trials(rows)
    page = text_of(write_report(store, "bikes"))
    begun = "base: 3 trials by tpe (3 failed); no trial finished, so nothing was selected." if failed else "No trial has begun."
    assert begun in page
    assert "Nothing was selected, so the search has not read the test segment." in page
    assert "no trial of the search finished" in page
    assert "The test segment was read once" not in page, "nothing was selected, so nothing was measured"
    assert best_trial(rows) is None
