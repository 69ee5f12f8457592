"""The history of a search: a file for each point, and its outcome from the trial directory. This module does not import Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from stlab.errors import StudyError
from stlab.search.space import Point, Space
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.plan import PlannedTrial, SearchBranch, plan_point
from stlab.study.spec import SearchSpec, StudySpec


class State(StrEnum):
    """The outcome of a point; the names are Optuna's."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"


@dataclass(frozen=True)
class Entry:
    """A point that the sampler chose, as ``studies/<study>/search/<branch>/<number>.json`` holds it."""

    number: int
    params: Point
    trial_id: str | None
    """None if the point gives no valid trial; ``reason`` says why."""
    told: bool = False
    """Whether the sampler knows the outcome; from then on ``system_attrs`` are final."""
    system_attrs: dict[str, Any] = field(default_factory=dict)
    """Data that Optuna's sampler and pruner keep with the trial."""
    distributions: dict[str, Any] = field(default_factory=dict)
    """The distributions of the fields as the study gives them, for the reader."""
    reason: str | None = None
    beside: list[str] = field(default_factory=list)
    """The trials on the other data sets, where one configuration is searched for all of them."""

    @property
    def trial_ids(self) -> list[str]:
        """All trials of the point; empty if it gives no valid trial."""
        return [] if self.trial_id is None else [self.trial_id, *self.beside]

    @property
    def key(self) -> str | None:
        """The same for two points that make the same trials."""
        return "+".join(self.trial_ids) or None


@dataclass(frozen=True)
class EntryOutcome:
    """The outcome of an entry according to its trial directories."""

    state: State
    values: tuple[float, ...] | None = None
    """By objective; None unless complete."""
    device_seconds: float = 0.0


class History:
    """The entries of one branch."""

    def __init__(self, store: Store, study: StudySpec, branch: SearchBranch) -> None:
        assert study.search is not None
        self.store, self.study, self.branch = store, study, branch
        self.search: SearchSpec = study.search
        self.space = Space(study.search, branch)
        self.folder = f"studies/{study.name}/search/{branch.folder}"

    def entries(self) -> list[Entry]:
        """All entries, by number."""
        names = [name for name in self.store.names(self.folder) if name.removesuffix(".json").isdigit()]
        found = [Entry(**self.store.read_json(f"{self.folder}/{name}")) for name in names]
        return sorted(found, key=lambda entry: entry.number)

    def write(self, entry: Entry) -> None:
        self.store.write_json(f"{self.folder}/{entry.number:04d}.json", vars(entry))

    def new_entry(self, number: int, point: Point, system_attrs: Mapping[str, Any]) -> tuple[Entry, list[PlannedTrial]]:
        """The entry of a new point, not yet written, and its trials; none if the point gives no valid trial."""
        distributions = {path: self.space.fields[path].model_dump(mode="json") for path in point}
        try:
            trials = self.trials(number, point)
        except StudyError as error:
            return Entry(number, point, None, False, dict(system_attrs), distributions, str(error)), []
        first, *others = (trial.trial_id for trial in trials)
        return Entry(number, point, first, False, dict(system_attrs), distributions, beside=others), trials

    def trials(self, number: int, point: Mapping[str, Any], seed: int | None = None) -> list[PlannedTrial]:
        """The trials at a point, labelled by its number: one, or one for each data set where they are searched together.

        Raises:
            StudyError: the point gives no valid trial.
        """
        note = f"#{number}" if seed is None else f"selected, seed {seed}"
        return [plan_point(self.study, branch, point, seed, note) for branch in self.branch.everywhere]

    def directories(self, entry: Entry) -> list[TrialDirectory]:
        """The directories of the point's trials; none if it gives no valid trial."""
        return [TrialDirectory(self.store, trial_id) for trial_id in entry.trial_ids]

    def outcome(self, entry: Entry) -> EntryOutcome | None:
        """The outcome of an entry, or None if a trial of it has still to run."""
        found = [self.trial_outcome(directory) for directory in self.directories(entry)]
        outcomes = [one for one in found if one is not None]
        if not found:
            return EntryOutcome(State.FAIL)
        if len(outcomes) < len(found):
            return None
        return outcomes[0] if len(outcomes) == 1 else self._together(outcomes)

    def _together(self, outcomes: Sequence[EntryOutcome]) -> EntryOutcome:
        """The outcome of a point on several data sets: the geometric mean of each error, the sum of anything else."""
        seconds = math.fsum(outcome.device_seconds for outcome in outcomes)
        values = [outcome.values for outcome in outcomes if outcome.values is not None]
        if len(values) < len(outcomes):
            return EntryOutcome(State.FAIL, None, seconds)
        means = []
        for name, own in zip(self.search.objectives, zip(*values, strict=True), strict=True):
            is_error = name.startswith("val_") and min(own) > 0
            means.append(math.exp(math.fsum(map(math.log, own)) / len(own)) if is_error else math.fsum(own))
        return EntryOutcome(State.COMPLETE, tuple(means), seconds)

    def trial_outcome(self, directory: TrialDirectory) -> EntryOutcome | None:
        """The outcome of a trial, or None if it has still to run. A trial that another study pruned is continued."""
        status = directory.status()
        if status is TrialStatus.FINISHED:
            result = directory.read("result.json") or {}
            values = tuple(float(result.get(name, math.nan)) for name in self.search.objectives)
            seconds = float(result.get("device_seconds", 0.0))
            if all(math.isfinite(value) for value in values):
                return EntryOutcome(State.COMPLETE, values, seconds)
            return EntryOutcome(State.FAIL, None, seconds)
        if status is TrialStatus.FAILED or (status is TrialStatus.PRUNED and self.search.pruner != "none"):
            workers = self.branch.template.spec.resources.workers
            seconds = sum(row["seconds"] for row in directory.read_epochs()) * workers
            return EntryOutcome(State.FAIL if status is TrialStatus.FAILED else State.PRUNED, None, seconds)
        return None

    def intermediate(self, entry: Entry) -> dict[int, float]:
        """Epoch → validation error; empty with two objectives, for which Optuna accepts none, and on several data sets."""
        directories = self.directories(entry)
        if len(directories) != 1 or len(self.search.objectives) > 1:
            return {}
        return {int(row["epoch"]): float(row[self.search.objectives[0]]) for row in directories[0].read_epochs()}

    def keep_or_move(self) -> str | None:
        """Move the entries away if they belong to another search: to another base, data, code, or a space that does not contain them.

        Returns:
            The folder that they were moved to, or None if they stay.
        """
        if all(self._is_ours(entry) for entry in self.entries()):
            return None
        kept = f"studies/{self.study.name}/earlier/{datetime.now(UTC):%Y%m%dT%H%M%S%f}/search/{self.branch.folder}"
        self.store.move(self.folder, kept)
        return kept

    def _is_ours(self, entry: Entry) -> bool:
        if not self.space.holds(entry.params):
            return False
        try:
            return [trial.trial_id for trial in self.trials(entry.number, entry.params)] == entry.trial_ids
        except StudyError:
            return entry.trial_id is None

    def retry_failed(self) -> None:
        """Have failed trials run again under their numbers, and failed trainings or tests of the selected configuration as well."""
        for entry in self.entries():
            failed = [directory for directory in self.directories(entry) if directory.status() is TrialStatus.FAILED]
            for directory in failed:
                directory.clear_failure()
            if failed:
                self.write(replace(entry, told=False))
        best = self.best(self.entries())
        for trial in self.selected(best) if best else ():
            TrialDirectory(self.store, trial.trial_id).clear_failure()

    def has_budget(self, begun: int, device_seconds: float, wall_seconds: float) -> bool:
        """Whether one more trial may begin."""
        search = self.search
        return (
            (search.max_trials is None or begun < search.max_trials)
            and (search.max_gpu_hours is None or device_seconds < search.max_gpu_hours * 3600)
            and (search.max_wall is None or wall_seconds < search.max_wall * 3600)
        )

    def device_seconds(self, outcomes: Mapping[str, EntryOutcome]) -> float:
        """Seconds of all trials times the GPUs of a worker (or its share of one). A trial that was chosen repeatedly counts once."""
        return sum(outcome.device_seconds for outcome in outcomes.values()) * (self.branch.template.spec.resources.gpus or 1.0)

    def best(self, entries: Sequence[Entry]) -> Entry | None:
        """The finished entry with the least first objective (the earliest one of several), or None if none finished."""
        finished = [(o.values[0], e) for e in entries if (o := self.outcome(e)) is not None and o.values is not None]
        return min(finished, key=lambda pair: (pair[0], pair[1].number))[1] if finished else None

    def selected(self, entry: Entry) -> list[PlannedTrial]:
        """The selected configuration with each of the study's seeds, on each of its data sets."""
        return [trial for seed in self.study.seeds for trial in self.trials(entry.number, entry.params, seed)]


WALL = "wall.json"


def wall_seconds(store: Store, study: str) -> float:
    """Seconds that a study has searched so far, without interruptions."""
    try:
        return float(store.read_json(f"studies/{study}/search/{WALL}")["seconds"])
    except FileNotFoundError:
        return 0.0


def located(url: str | None) -> str | None:
    """A storage URL that is valid in every process, since it names SQLite files by their absolute path."""
    if url is None or not url.startswith("sqlite:///") or url.startswith("sqlite:////"):
        return url
    return f"sqlite:///{Path(url.removeprefix('sqlite:///')).absolute()}"
