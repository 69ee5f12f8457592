"""A search contributes only its selected trials: to the best trial, to MLflow's means over seeds and to the tags."""

from __future__ import annotations

from typing import Any

import pytest

from stlab.storage import best_trial
from stlab.tracking._rows import by_label, summary_metrics, summary_tags, trial_tags


def row(trial_id: str, val_rmse: float, **more: Any) -> dict[str, Any]:
    return {"variant": "full", "seed": 0, "trial_id": trial_id, "status": "finished", "val_rmse": val_rmse, "baseline": False, **more}


# The selected configuration is #3 with its two seeds; #5 came after the selection, #1 was given up, #0 is another error's best.
SEARCH = [
    row("a", 2.0, searched=False, number=3, seed=0, test_rmse=2.5),
    row("b", 2.2, searched=False, number=3, seed=1, test_rmse=2.7),
    row("c", 1.5, searched=True, number=5),
    row("d", 1.0, searched=True, number=1, status="pruned"),
    row("e", 9.0, searched=True, number=0, val_mae=0.1),
]


def test_best_never_lands_on_a_trial_that_was_only_searched() -> None:
    assert (best_trial(SEARCH) or {})["trial_id"] == "a"
    assert best_trial(SEARCH[2:]) is None, "nothing was selected, so nothing is the best"


def test_the_best_of_a_study_without_a_search_is_of_all_its_trials() -> None:
    plain = [{k: v for k, v in one.items() if k not in ("searched", "number")} for one in SEARCH]
    assert (best_trial(plain) or {})["trial_id"] == "c"


def test_means_over_seeds_leave_out_what_was_only_searched() -> None:
    (own,) = by_label(SEARCH, []).values()
    assert [one["trial_id"] for one in own] == ["a", "b"]
    metrics = summary_metrics(own)
    assert metrics["val_rmse"] == pytest.approx(2.1)
    assert metrics["val_rmse_n"] == 2
    assert summary_tags("full", own)["seeds"] == "0, 1"


def test_a_figure_that_is_no_number_is_a_failure_here_as_in_the_report() -> None:
    rows = [row("a", 2.0, test_rmse=2.5), row("b", 2.2, test_rmse=float("nan"), seed=1), row("c", 2.4, test_rmse=2.7, seed=2)]
    metrics = summary_metrics(rows)
    assert (metrics["failed"], metrics["test_rmse_n"]) == (1.0, 2.0)
    assert metrics["test_rmse"] == pytest.approx(2.6)


def test_a_searched_trial_is_tagged_with_its_number() -> None:
    assert [trial_tags(one, ()).get("number") for one in SEARCH] == ["3", "3", "5", "1", "0"]
    assert "number" not in trial_tags(row("x", 1.0), ())
