"""A search as sentences and as a table, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stlab.report.figures.search import OBJECTIVES, Row, SearchResult, choice_text

_LISTED = 10


def search_content(found: SearchResult) -> dict[str, Any]:
    """Everything that the page's section on the search prints."""
    return {
        "sentences": [sentence(found, branch) for branch in found.branches] or ["No trial has begun."],
        "test_use": test_use(found),
        "objectives": [OBJECTIVES[name] for name in found.objectives],
        "fields": [path.rpartition(".")[2] for path in found.space],
        "has_branches": len(found.branches) > 1,
        "best": [_line(found, row) for branch in found.branches for row in _best(found, branch)],
        "listed": _LISTED,
    }


def sentence(found: SearchResult, branch: str) -> str:
    """How a branch's search went and what it selected."""
    mine = [row for row in found.rows if row["arm"] == branch]
    states = {state: sum(row["state"] == state for row in mine) for state in ("complete", "pruned", "fail", "running")}
    names = {"complete": "finished", "pruned": "pruned", "fail": "failed", "running": "not done yet"}
    counts = ", ".join(f"{count} {names[state]}" for state, count in states.items() if count)
    distinct = len({row["trial_id"] for row in mine if row["trial_id"]})
    repeated = f"; {distinct} are different, and a point that was chosen again was not trained again" if distinct < len(mine) else ""
    by = found.sampler + (f", {found.pruner} pruner" if found.pruner != "none" else "")
    chosen = next((row for row in mine if row["selected"]), None)
    result = "no trial finished, so nothing was selected"
    if chosen is not None:
        values = ", ".join(f"{k.rpartition('.')[2]}={_plain(v)}" for k, v in _params(found, chosen).items() if v is not None)
        over = ", the geometric mean over all data sets," if found.over else ""
        result = f"selected #{chosen['number']} by {OBJECTIVES[found.objectives[0]]}{over} {found.value(chosen):.4g}: {values}"
    what = "points, each trained on every data set," if found.over else "trials"
    return f"{branch}: {len(mine)} {what} by {by} ({counts}{repeated}); {result}."


def test_use(found: SearchResult) -> str:
    """How the search used the test segment."""
    selected = [row for row in found.rows if row["selected"]]
    text = "Trials are compared on the validation segment alone."
    if not selected:
        text += " Nothing was selected, so the search has not read the test segment."
    elif not all(row["tested"] for row in selected):
        text += " The test segment is read once, at the end, by the selected configuration. This has not been done yet."
    else:
        text += " The test segment was read once, at the end, by the selected configuration; the table of results lists its errors."
    more = [(branch, sum(bool(r["tested"]) for r in _distinct(found, branch))) for branch in found.branches]
    if beyond := [f"{count} configurations of '{branch}'" for branch, count in more if count > 1]:
        text += (
            f" Test errors exist for {', '.join(beyond)}, because the search went on after its selection was measured, or because another "
            "study tested its trials. The selection itself never read them."
        )
    return text


def _distinct(found: SearchResult, branch: str) -> list[Row]:
    return list({row["trial_id"]: row for row in found.rows if row["arm"] == branch}.values())


def _best(found: SearchResult, branch: str) -> Sequence[Row]:
    done = [row for row in _distinct(found, branch) if row["state"] == "complete"]
    return sorted(done, key=lambda row: (not row["selected"], found.value(row)))[:_LISTED]


def _params(found: SearchResult, row: Row) -> dict[str, Any]:
    return {path: row[f"param.{path}"] for path in found.space}


def _line(found: SearchResult, row: Row) -> dict[str, Any]:
    return {
        "branch": row["arm"],
        "number": row["number"],
        "selected": row["selected"],
        "values": [f"{found.value(row, at):.5g}" for at in range(len(found.objectives))],
        "epochs": row["epochs"],
        "params": ["–" if value is None else _plain(value) for value in _params(found, row).values()],
    }


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else choice_text(str(value))
