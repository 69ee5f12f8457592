"""The search of one branch: an Optuna study that is rebuilt from disk, asked for points and told their outcomes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from stlab.errors import StudyError, first_line
from stlab.files import secrets_of, shown
from stlab.search.history import Entry, EntryOutcome, History, State
from stlab.search.samplers import create_pruner, create_sampler, settle
from stlab.search.space import as_params
from stlab.storage import Store
from stlab.study.plan import PlannedTrial, SearchBranch
from stlab.study.spec import StudySpec

logger = logging.getLogger(__name__)

_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAIL: TrialState.FAIL}
_OURS = "stlab"
_REPEATS = 100  # after so many repeated points in a row, the space counts as exhausted


class BranchSearch:
    """Asks Optuna for points and tells it their outcomes; every step is on disk before the next one.

    Raises:
        StudyError: ``search.storage`` cannot be opened, or holds a study of this name that stlab did not make.
    """

    def __init__(self, store: Store, study: StudySpec, branch: SearchBranch) -> None:
        self.history = History(store, study, branch)
        self.search = self.history.search
        self.name = f"{study.name}/{branch.folder}"
        self.entries: list[Entry] = self.history.entries()
        self.outcomes: dict[str, EntryOutcome] = {}
        """Key of an entry → its outcome."""
        self._trials: dict[int, optuna.Trial] = {}
        self._repeats = 0
        self.study = self._create(branch.template.spec.train.max_epochs)
        for entry in self.entries:
            self.study.add_trial(self._frozen(entry))
        for point in self.search.points[len(self.entries) :]:
            searched = {path: value for path, value in point.items() if path in self.history.space.fields}
            self.study.enqueue_trial(as_params(searched))

    def _create(self, max_epochs: int) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.search.storage is not None:
            check_storage(self.search.storage, [self.name])
            if self.name in optuna.get_all_study_names(self.search.storage):
                optuna.delete_study(storage=self.search.storage, study_name=self.name)  # otherwise its trials would be duplicated
        study = optuna.create_study(
            storage=self.search.storage, study_name=self.name, directions=["minimize"] * len(self.search.objectives),
            pruner=create_pruner(self.search, max_epochs),
        )  # fmt: skip
        study.set_user_attr(_OURS, True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(self.search.objectives))
        return study

    def _frozen(self, entry: Entry) -> FrozenTrial:
        """An entry as Optuna's trial: with its outcome if the sampler knows it, else waiting, so that it comes next."""
        outcome = self.history.outcome(entry)
        params = as_params(entry.params)
        if outcome is None or not entry.told:
            return create_trial(state=TrialState.WAITING, system_attrs={**entry.system_attrs, "fixed_params": params})
        if entry.key is not None:
            self.outcomes[entry.key] = outcome
        intermediate = self.history.intermediate(entry)
        values = list(outcome.values) if outcome.values is not None else None
        if outcome.state is State.PRUNED and intermediate:
            values = [intermediate[max(intermediate)]]
        return create_trial(
            state=_STATES[outcome.state], values=values, params=params, distributions=self.history.space.distributions(entry.params),
            system_attrs=entry.system_attrs, intermediate_values=intermediate, user_attrs={"trial_id": entry.trial_id},
        )  # fmt: skip

    def next(self, wall_seconds: float) -> tuple[Entry, list[PlannedTrial]] | None:
        """The next point, already written to its file, and its trials (none if the point gives no valid trial).

        Points that have not ended, or whose outcome the sampler does not know, come first, under their numbers.

        Returns:
            None if the budget is spent.
        """
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else len(self.study.get_trials(deepcopy=False))
        is_new = number >= len(self.entries)
        seconds = self.history.device_seconds(self.outcomes)
        if is_new and (self._repeats >= _REPEATS or not self.history.has_budget(len(self.entries), seconds, wall_seconds)):
            return None
        self.study.sampler = create_sampler(self.search, self.name, number)
        settle(self.study.sampler, self.study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask()
            point = self.history.space.suggest(trial)
        assert trial.number == number
        self._trials[number] = trial
        entry, planned = self.history.new_entry(number, point, self._system_attrs(number))
        trial.set_user_attr("trial_id", entry.trial_id)
        if is_new:
            known = {other.key for other in self.entries}
            self._repeats = self._repeats + 1 if entry.key in known else 0
            self.entries.append(entry)
            self.history.write(entry)
        return self.entries[number], planned

    def hear(self, number: int, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Record epochs.

        Returns:
            The reason to stop the trial now, or None.
        """
        if self.history.branch.beside:
            return None  # epochs on one of several data sets are not the point's
        trial, stop = self._trials[number], False
        known = self._frozen_of(number).intermediate_values
        for row in rows:
            if int(row["epoch"]) not in known and len(self.search.objectives) == 1:
                trial.report(float(row[self.search.objectives[0]]), int(row["epoch"]))
                # The pruner counts rungs at every epoch, so it is asked at each one; only the last answer counts.
                stop = trial.should_prune()
        return f"{self.search.pruner} pruner: worse than other trials after {rows[-1]['epoch']} epochs" if stop else None

    def tell(self, number: int) -> EntryOutcome:
        """Tell the sampler the outcome from the trial's directory, and record that it knows."""
        entry = self.entries[number]
        outcome = self.history.outcome(entry)
        if outcome is None:
            raise ValueError(f"trial {number} of {self.name} has no outcome yet")
        trial, known = self._trials[number], self._frozen_of(number).intermediate_values
        for epoch, error in self.history.intermediate(entry).items():
            if epoch not in known:
                trial.report(error, epoch)
        self.study.sampler = create_sampler(self.search, self.name, number)
        values = list(outcome.values) if outcome.values is not None else None
        self.study.tell(trial, values, state=_STATES[outcome.state])
        if entry.key is not None:
            self.outcomes[entry.key] = outcome
        self.entries[number] = replace(entry, told=True, system_attrs=self._system_attrs(number))
        self.history.write(self.entries[number])
        return outcome

    def selected(self) -> list[PlannedTrial]:
        """The best configuration so far by the first objective, with each of the study's seeds; empty if none finished."""
        best = self.history.best(self.entries)
        return self.history.selected(best) if best else []

    def _frozen_of(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _system_attrs(self, number: int) -> dict[str, Any]:
        return {name: value for name, value in self._frozen_of(number).system_attrs.items() if name != "fixed_params"}


def check_storage(url: str, names: Sequence[str]) -> None:
    """Refuse an Optuna storage that cannot be used.

    Raises:
        StudyError: it cannot be opened, or holds studies of these names that stlab did not make.
    """
    try:
        there = set(names) & set(optuna.get_all_study_names(url))
        foreign = [name for name in there if not optuna.load_study(storage=url, study_name=name).user_attrs.get(_OURS)]
    except Exception as error:  # of SQLAlchemy, a driver or Optuna; in each case the user can correct the URL
        reason = first_line(error)
        for secret in secrets_of(url):
            reason = reason.replace(secret, "***")
        what_to_do = "Give an Optuna URL such as sqlite:///search.db, or leave it out."
        if "password" in reason.lower():
            what_to_do = "Give the password to the database's client: for PostgreSQL in PGPASSWORD or ~/.pgpass."
        raise StudyError(f"search.storage={shown(url)} cannot be used ({reason}). {what_to_do}") from error
    if foreign:
        raise StudyError(
            f"search.storage={shown(url)} holds a study '{foreign[0]}' that stlab did not make. Rename this study, or give another URL."
        )
