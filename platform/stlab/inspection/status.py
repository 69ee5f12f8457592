"""The progress of a study, read from its directories alone. It needs neither the cluster nor the data."""

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
"""A trial that has written nothing for this time counts as stopped, although it may be in a very long epoch."""

_READERS = 16  # threads, so that the requests to an object store run at the same time
STATES = ("finished", "running", "stopped", "pruned", "failed", "to do")


@dataclass(frozen=True)
class TrialState:
    """The current state of one trial of a study."""

    trial_id: str
    label: str
    state: str
    """One of ``STATES``. ``running``: the trial has written something recently, and a process runs the study; ``stopped``: it was started
    but is not running."""
    epoch: int | None = None
    """The epochs that have ended, as far as something of them has been written."""
    max_epochs: int | None = None
    quiet_seconds: float | None = None
    """Seconds since the trial wrote its last file."""
    reason: str | None = None


@dataclass(frozen=True)
class StudyState:
    """The current state of a study."""

    name: str
    trials: list[TrialState]
    to_come: int = 0
    """Maximum number of trials that a search has yet to choose."""
    run_by: LockOwner | None = None
    """The process that runs the study now."""

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials) + (self.to_come if state == "to do" else 0)

    def in_state(self, *states: str) -> list[TrialState]:
        return [trial for trial in self.trials if trial.state in states]


def study_state(store: Store, name: str) -> StudyState:
    """Read the state of a study.

    Raises:
        UserError: the storage has no study of that name.
    """
    directory = StudyDirectory(store, name)
    text = directory.read_study()
    if text is None:
        known = ", ".join(store.names("studies")) or "none"
        raise UserError(f"there is no study '{name}' in {store.location} (known: {known}).")
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
    """Read the state of one trial from its directory. ``is_run``: whether a process may be training it."""
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
    # The table of the epochs is written when the trial ends; until then its checkpoints say how far it is.
    rows = directory.read_epochs()
    epoch = int(rows[-1]["epoch"]) if rows else directory.checkpoint_epoch()
    state = "running" if is_run and (quiet is None or quiet <= QUIET_SECONDS) else "stopped"
    return TrialState(**about, state=state, epoch=epoch, quiet_seconds=quiet)


def find_trial(store: Store, prefix: str) -> str | None:
    """The id of the trial that begins with ``prefix``, or None.

    Raises:
        UserError: several ids begin with it.
    """
    found = [name for name in store.names("trials") if name.startswith(prefix)]
    if len(found) > 1 and prefix not in found:
        shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise UserError(f"{len(found)} trials begin with '{prefix}': {shown}. Give more of the id.")
    return prefix if prefix in found else next(iter(found), None)


def _listed(directory: StudyDirectory) -> list[dict[str, Any]]:
    """The trials of the study, each once: as they were planned or, for older runs, as its table lists them."""
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
    branches = [branch for branch in store.names(folder) if not branch.endswith(".json")]  # the folder also holds files of the search
    for branch in branches:
        for number in (name for name in store.names(f"{folder}/{branch}") if name.removesuffix(".json").isdigit()):
            entry = store.read_json(f"{folder}/{branch}/{number}")
            if entry.get("trial_id"):
                label = f"{branch} #{entry['number']}"
                ids = [entry["trial_id"], *entry.get("beside", [])]  # several where one configuration is searched for all data sets
                tried += [{"trial_id": one, "label": label if at == 0 else f"{label}, data set {at + 1}"} for at, one in enumerate(ids)]
    return tried, len(branches)
