"""The rows of a study's table, from the directories of its trials."""

from __future__ import annotations

from typing import Any

from stlab.execution.run_search import histories, state_of
from stlab.search.table import Tried, write_search
from stlab.storage import Store, TrialDirectory
from stlab.study.plan import Plan, PlannedTrial

Row = dict[str, Any]


def study_rows(plan: Plan, store: Store) -> list[Row]:
    """A row for every trial that was planned or searched."""
    rows = [trial_row(trial, store) for trial in plan.trials]
    return rows + search_rows(plan, store) if plan.branches else rows


def trial_row(trial: PlannedTrial, store: Store) -> Row:
    """A trial as its study's row: the directory's figures under this study's labels and parameters."""
    spec = trial.spec
    sections = {
        "data": spec.data.model_dump(),
        "model": spec.model,
        "train": spec.train.model_dump(),
        "resources": spec.resources.model_dump(),
    }
    row = TrialDirectory(store, trial.trial_id).row(sections)
    row["reused_from"] = None if row["first_study"] == spec.study else row["first_study"]
    row |= {
        **trial.identity,
        "study": spec.study,
        "variant": spec.variant,
        "seed": spec.seed,
        "baseline": spec.baseline,
    }
    if row["status"] in ("new", "started"):
        row["status"] = "missing"
    return row


def search_rows(plan: Plan, store: Store) -> list[Row]:
    """The rows of a search: what was selected, then every trial; writes ``search.parquet`` beside them."""
    chosen_rows: list[Row] = []
    others: dict[str, Row] = {}
    tried: list[Tried] = []
    for history in histories(plan, store):
        entries = state_of(history)
        best = history.best([entry for entry, _ in entries])
        chosen = history.selected(best) if best else []
        chosen_rows += [trial_row(trial, store) | {"searched": False, "number": best.number} for trial in chosen if best]
        if best is None:
            chosen_rows += [_nothing_selected(trial_row(branch.template, store)) for branch in history.branch.everywhere]
        selected = {trial.trial_id for trial in chosen}
        for entry, _ in entries:
            for trial in history.trials(entry.number, entry.params) if entry.trial_ids else ():
                if trial.trial_id not in selected:
                    row = trial_row(trial, store)
                    others.setdefault(trial.trial_id, row | {"searched": True, "number": entry.number})
        tried.append(Tried(history, entries, best.number if best else None))
    write_search(store, plan.study, tried)
    return [*chosen_rows, *others.values()]


def _nothing_selected(row: Row) -> Row:
    """The row of a branch without a finished trial: its labels and fixed parameters, and no figures."""
    kept = ("study", "trial_id", "variant", "seed", "baseline", "dataset", "synthetic", "leaks", "protocol", "data_sha256",
            "code_version", "weights", "information")  # fmt: skip
    known = {name: value for name, value in row.items() if name in kept or name.startswith("param.")}
    return known | {"status": "missing", "searched": False, "error": "no trial of the search finished"}
