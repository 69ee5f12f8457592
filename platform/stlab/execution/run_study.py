"""A study from plan to report: plan, check, train what is left, collect."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stlab.errors import StudyError
from stlab.execution import run_search
from stlab.execution.collect import study_rows
from stlab.execution.events import Event, Observer
from stlab.execution.locks.file_lock import study_lock
from stlab.execution.locks.owner import LockOwner
from stlab.execution.preflight import check_address, check_before_training, check_protocol
from stlab.execution.supply import with_resources
from stlab.files import is_uri
from stlab.model_files import keep
from stlab.report import write_report
from stlab.storage import Store, StudyDirectory, TrialDirectory, table_rows
from stlab.study.file import dump_study, parse
from stlab.study.model_places import with_models
from stlab.study.packs import make_packs
from stlab.study.plan import DataFacts, Plan, PlannedTrial, make_plan
from stlab.study.source import StudySource
from stlab.study.spec import DataSpec, StudySpec
from stlab.training.trial import dataset_for

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The results of a run."""

    plan: Plan
    rows: list[dict[str, Any]]
    report: str
    kept: str | None = None
    """The folder that an earlier study of the same name was moved to."""
    troubles: list[str] = field(default_factory=list)
    """Errors outside of any trial, one a line."""

    def ended_as(self, *status: str) -> list[dict[str, Any]]:
        """Rows of the table that ended so. In a search, trials that fail are part of the search: only its selection counts."""
        return [row for row in table_rows(self.rows) if row["status"] in status]


def run_study(
    study: StudySpec,
    storage: str,
    *,
    source: StudySource | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    skip_bad_datasets: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Run what is left of a study, and write its results and report.

    Args:
        skip_bad_datasets: leave out the data sets of ``datasets`` that cannot be used, which the report then names.

    Raises:
        UserError: the study, its data, its weights or its resources cannot be used, or it is being run already; nothing was trained.
        StorageError: the storage is full or away; what is trained stays, and the same call goes on from there.
        KeyboardInterrupt: Ctrl-C; what is trained stays, and the same call goes on from there.
    """
    plan = plan_study(study, source, skip_bad=skip_bad_datasets)
    check_protocol(plan)
    store = Store(storage)
    store.make()
    if (kept_study := _with_kept_models(study, store)) != study:
        plan = plan_study(kept_study, source, skip_bad=skip_bad_datasets)
    address = address or os.environ.get("RAY_ADDRESS") or None
    check_address(address)
    with _locked(plan, store, address, retry_failed):
        set_aside = _prepare(plan, store, retry_failed)
        trials, is_searching = _left(plan, store), run_search.is_searching(plan, store)
        check_before_training(plan, trials, is_searching, address)
        if trials or is_searching:
            kept, troubles = _train(plan, trials, store, address, is_searching, observers)
        else:
            kept, troubles = write_study(plan, store), []
            for observer in observers:
                observer.begin(plan, [], 0)
        outcome = _collect(plan, store, kept or set_aside, troubles)
        for observer in observers:
            observer.end(outcome)
    return outcome


def _with_kept_models(study: StudySpec, store: Store) -> StudySpec:
    """The study with the files of its models in the storage, where every node finds them."""
    return StudySpec.model_validate(with_models(study.model_dump(), lambda name: keep(name, store)))


def plan_study(study: StudySpec, source: StudySource | None = None, *, skip_bad: bool = False) -> Plan:
    """The trials of a study; reads its data, trains nothing. ``skip_bad``: see ``make_plan``."""
    return run_search.checked(make_plan(study, data_facts, source, skip_bad=skip_bad), source)


def data_facts(spec: DataSpec) -> DataFacts:
    """The facts about a data set that the plan needs.

    Raises:
        DataError: it cannot be used.
    """
    data = dataset_for(spec)
    leaks = {"inputs": data.inputs is not None and data.inputs.leaks, "pretrain": any(other.leaks for other in data.pretrain)}
    leaking = frozenset(part for part, tells in leaks.items() if tells)
    others = {path: other.info for path, other in zip(spec.pretrain, data.pretrain, strict=True)}
    return DataFacts(data.name, data.sha256, data.synthetic, data.leaks, data.protocol, data.info, data.parts, leaking, others)


@contextlib.contextmanager
def _locked(plan: Plan, store: Store, address: str | None, retry_failed: bool) -> Iterator[None]:
    """Lock the study for the block, on its storage and on the cluster at ``address``, which is connected where it may be needed."""
    name, owner = plan.study.name, LockOwner.this_process()
    with contextlib.ExitStack() as stack:
        stack.enter_context(study_lock(store, name, owner))
        # What a search has left is known only after `_prepare`, so assume that it trains.
        may_train = bool(plan.branches) or retry_failed or bool(_left(plan, store))
        if address is not None and may_train:
            from stlab.execution import ray as cluster

            stack.enter_context(cluster.connection(address))
            stack.enter_context(cluster.study_actor_lock(store, name, owner))
        yield


def _prepare(plan: Plan, store: Store, retry_failed: bool) -> str | None:
    """Forget failures if asked, and set the entries of another search aside.

    Returns:
        The folder of the entries that were set aside, if any were.
    """
    if retry_failed:
        for trial in plan.unique():
            TrialDirectory(store, trial.trial_id).clear_failure()
    return run_search.prepare(plan, store, retry_failed=retry_failed)


def _left(plan: Plan, store: Store) -> list[PlannedTrial]:
    """The planned trials that are left to train; those of a search are not among them."""
    return [trial for trial in plan.unique() if not TrialDirectory(store, trial.trial_id).is_over()]


def _train(
    plan: Plan, trials: Sequence[PlannedTrial], store: Store, address: str | None, is_searching: bool, observers: Sequence[Observer]
) -> tuple[str | None, list[str]]:
    """Train on the cluster at ``address``, which is connected, or on this machine.

    Returns:
        The folder that an earlier study of this name was moved to, and errors outside of trials.
    """
    from stlab.execution import ray as cluster  # takes seconds, so the study is checked before

    with cluster.connection(None) if address is None else contextlib.nullcontext():
        decided = {resources: cluster.with_gpus(resources) for resources in {trial.spec.resources for trial in trials}}
        trials = [with_resources(trial, decided[trial.spec.resources]) for trial in trials]
        packs = make_packs(trials, {resources: cluster.slots(resources) for resources in set(decided.values())})
        kept = write_study(plan, store)
        begin, listen = _callbacks(plan, trials, cluster.autoscaling_note(), observers)
        if is_searching:
            return kept, run_search.run(plan, trials, store, begin, listen)
        begin(len(packs))
        return kept, cluster.run_packs(packs, store.location, plan.study.name, listen)


def _callbacks(
    plan: Plan, trials: Sequence[PlannedTrial], note: str | None, observers: Sequence[Observer]
) -> tuple[Callable[[int], None], Callable[[Sequence[Event]], None]]:
    """The functions that tell all observers of the beginning and of events; ``note`` is added to the plan they are shown."""
    shown = plan if note is None else replace(plan, notes=(*plan.notes, note))

    def begin(concurrency: int) -> None:
        for observer in observers:
            observer.begin(shown, trials, concurrency)

    def listen(events: Sequence[Event]) -> None:
        for event in events:
            for observer in observers:
                try:
                    observer.event(event)
                except Exception:  # an error in the display of a study must not end the study
                    logger.exception("%s missed an event: %s", type(observer).__name__, type(event).__name__)

    return begin, listen


def write_study(plan: Plan, store: Store) -> str | None:
    """Write the resolved study and the list of its trials.

    Returns:
        The folder that an earlier study of its name was moved to; None if there was none, or if this one only has more seeds or data sets.
    """
    study = plan.study
    directory = StudyDirectory(store, study.name)
    text = directory.read_study()
    try:
        place = store.address(f"studies/{study.name}")  # from there a kept model's file is found after the storage was moved, too
        before = None if text is None else parse(StudySource.from_text(text, folder=None if is_uri(place) else Path(place)))
    except StudyError:
        before = None  # another version of stlab wrote it, so it is another study
    extends = (
        before is not None
        and set(before.seeds) <= set(study.seeds)
        and {name: own for name, own in before.datasets.items() if name not in plan.left_out}.items() <= study.datasets.items()
        and bool(before.datasets) == bool(study.datasets)
        and before.model_copy(update={"seeds": study.seeds, "datasets": study.datasets, "report": study.report}) == study
    )
    kept = directory.write_study(dump_study(study), extends=extends)
    trials = [{"trial_id": t.trial_id, "label": t.label, "max_epochs": t.spec.train.most_epochs} for t in plan.trials]
    directory.write_plan(trials, plan.left_out)
    return kept


def _collect(plan: Plan, store: Store, kept: str | None, troubles: list[str]) -> Outcome:
    """Write ``trials.parquet`` and the report."""
    rows = study_rows(plan, store)
    StudyDirectory(store, plan.study.name).write_trials(rows)
    report = write_report(store, plan.study.name, plan.study.model_dump(mode="json"), list(plan.notes))
    return Outcome(plan, rows, report, kept, troubles)
