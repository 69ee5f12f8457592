"""How far a study is, by its directories alone: no cluster and no data are needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from stlab.errors import UserError
from stlab.execution.locks.file_lock import study_owner
from stlab.execution.locks.owner import LockOwner
from stlab.storage import Store, StudyDirectory, TrialDirectory, TrialStatus

QUIET_SECONDS = 600.0
"""A trial that has written nothing for so long is called stopped, though its study runs; it may also be in a very long epoch."""

_READERS = 16  # at once: what waits for an object store does not wait for its other answers
STATES = ("finished", "running", "stopped", "pruned", "failed", "to do")


@dataclass(frozen=True)
class TrialState:
    """One trial of a study, now."""

    trial_id: str
    label: str
    state: str
    """One of ``STATES``. ``running``: begun, something was written lately, and somebody runs the study; ``stopped``: begun, and not so."""
    epoch: int | None = None
    """Epochs done, of those that are written."""
    max_epochs: int | None = None
    quiet_seconds: float | None = None
    """Since its last file was written."""
    reason: str | None = None


@dataclass(frozen=True)
class StudyState:
    """A study, now."""

    name: str
    trials: list[TrialState]
    to_come: int = 0
    """Trials of a search that have not been chosen yet, at the most."""
    run_by: LockOwner | None = None
    """Who runs the study now."""

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials) + (self.to_come if state == "to do" else 0)

    def in_state(self, *states: str) -> list[TrialState]:
        return [trial for trial in self.trials if trial.state in states]


def study_state(store: Store, name: str) -> StudyState:
    """Read how far a study is.

    Raises:
        UserError: nothing of a study of that name lies here.
    """
    directory = StudyDirectory(store, name)
    text = directory.read_study()
    if text is None:
        known = ", ".join(store.names("studies")) or "none"
        raise UserError(f"no study '{name}' was begun in {store.location} (there: {known}).")
    study = yaml.safe_load(text)
    listed = _listed(directory)
    tried, branches = _tried(store, name)
    known_ids = {trial["trial_id"] for trial in listed}
    listed += [trial for trial in tried if trial["trial_id"] not in known_ids]
    run_by = study_owner(store, name)
    with ThreadPoolExecutor(_READERS) as pool:
        trials = list(pool.map(lambda trial: trial_state(store, trial, is_run=run_by is not None), listed))
    budget = (study.get("search") or {}).get("max_trials") or 0
    return StudyState(name, trials, max(0, budget * max(1, branches) - len(tried)), run_by)


def trial_state(store: Store, listed: dict[str, Any], *, is_run: bool = True) -> TrialState:
    """What one trial's directory says; ``is_run``: whether anybody may be training it."""
    directory = TrialDirectory(store, listed["trial_id"])
    status = directory.status()
    about = {"trial_id": listed["trial_id"], "label": listed["label"], "max_epochs": listed.get("max_epochs")}
    if status is TrialStatus.NEW:
        return TrialState(**about, state="to do")
    if status is TrialStatus.FINISHED:
        at_test = None if directory.is_tested() else directory.read("failed.json")
        if at_test is not None:
            return TrialState(**about, state="failed", epoch=at_test.get("epoch"), reason=at_test.get("reason"))
        return TrialState(**about, state="finished")
    if status in (TrialStatus.FAILED, TrialStatus.PRUNED):
        end = directory.read(f"{status.value}.json") or {}
        return TrialState(**about, state=status.value, epoch=end.get("epoch"), reason=end.get("reason"))
    written = store.last_written(directory.prefix)
    quiet = None if written is None else max(0.0, (datetime.now(UTC) - written).total_seconds())
    rows = directory.read_epochs()
    state = "running" if is_run and (quiet is None or quiet <= QUIET_SECONDS) else "stopped"
    return TrialState(**about, state=state, epoch=int(rows[-1]["epoch"]) if rows else 0, quiet_seconds=quiet)


def find_trial(store: Store, prefix: str) -> str | None:
    """The id of the trial that begins so; None where none does.

    Raises:
        UserError: several do.
    """
    found = [name for name in store.names("trials") if name.startswith(prefix)]
    if len(found) > 1 and prefix not in found:
        shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise UserError(f"{len(found)} trials begin with '{prefix}': {shown}. Give more of the id.")
    return prefix if prefix in found else next(iter(found), None)


def _listed(directory: StudyDirectory) -> list[dict[str, Any]]:
    """The study's trials, each once: as they were planned, or, of an older run, as they stand in its table."""
    plan: Sequence[dict[str, Any]] | None = directory.read_plan()
    if plan is None and directory.store.exists(f"{directory.prefix}/results/trials.parquet"):
        plan = [
            {
                "trial_id": row["trial_id"],
                "label": f"{row['variant']}, seed {row['seed']}",
                "max_epochs": row.get("param.train.max_epochs"),
            }
            for row in directory.read_trials().to_pylist()
        ]
    return list({trial["trial_id"]: trial for trial in plan or ()}.values())


def _tried(store: Store, name: str) -> tuple[list[dict[str, Any]], int]:
    """The points that a search has chosen so far, and how many branches it has."""
    folder = f"studies/{name}/search"
    tried = []
    branches = [branch for branch in store.names(folder) if not branch.endswith(".json")]  # beside them lie the search's own files
    for branch in branches:
        for number in (name for name in store.names(f"{folder}/{branch}") if name.removesuffix(".json").isdigit()):
            entry = store.read_json(f"{folder}/{branch}/{number}")
            if entry.get("trial_id"):
                tried.append({"trial_id": entry["trial_id"], "label": f"{branch} #{entry['number']}"})
    return tried, len(branches)
