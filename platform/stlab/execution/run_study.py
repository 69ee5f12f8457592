"""A study from plan to report: plan, see what is there, run what is not, collect, report, track."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from stlab.errors import StudyError
from stlab.execution import run_search as searching
from stlab.execution.locks.file_lock import study_held
from stlab.execution.locks.owner import Holder
from stlab.execution.model_check import build_model
from stlab.execution.noop_variants import refuse_dead_switches
from stlab.execution.preflight import check_address, check_machine
from stlab.report import write_report
from stlab.storage import Store, StudyDirectory, TrialDirectory, single_protocol, table_rows
from stlab.storage.schema import flatten
from stlab.study.file import dump_study, parse
from stlab.study.plan import DataFacts, Plan, PlannedTrial, make_packs, make_plan
from stlab.study.source import StudySource
from stlab.study.spec import DataSpec, ResourcesSpec, StudySpec
from stlab.training.trial import dataset_for

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Somebody who wants to know how a study goes. Called from one thread; whoever is slow delays nobody's training."""

    def begin(self, plan: Plan, todo: Sequence[PlannedTrial], concurrency: int) -> None:
        """The plan is made; ``todo`` is what is not there yet."""

    def event(self, event: dict[str, Any]) -> None:
        """``started``, ``epochs`` (with rows) or ``ended`` (with status), of the trial ``trial_id``."""

    def end(self, outcome: Outcome) -> None:
        """All is done and written."""


@dataclass
class Outcome:
    """What a run left behind."""

    plan: Plan
    rows: list[dict[str, Any]]
    report: str
    kept: str | None = None
    """Where an earlier study of the same name was moved to."""
    troubles: list[str] = field(default_factory=list)
    """What went wrong outside of any trial."""

    def ended_as(self, *status: str) -> list[dict[str, Any]]:
        """Rows of the table that ended so. In a search, trials that fail are part of the search: only its selection counts."""
        return [row for row in table_rows(self.rows) if row["status"] in status]


def data_facts(spec: DataSpec) -> DataFacts:
    """What the plan needs to know of a data set.

    Raises:
        DataError: it cannot be used.
    """
    data = dataset_for(spec)
    return DataFacts(data.name, data.sha256, data.synthetic, data.leaks, data.protocol, data.info)


def plan_study(study: StudySpec, source: StudySource | None = None) -> Plan:
    """The trials of a study; reads its data, trains nothing."""
    return searching.checked(make_plan(study, data_facts, source), source)


def run_study(
    study: StudySpec,
    storage: str,
    *,
    source: StudySource | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Run what is left of a study, and write its results and report.

    Raises:
        UserError: the study, its data, its weights or its resources cannot be used, or it is being run already; nothing was trained.
        KeyboardInterrupt: Ctrl-C; what is trained stays, and the same call goes on from there.
    """
    plan = plan_study(study, source)
    check_protocol(plan)
    store = Store(storage)
    store.make()
    address = address or os.environ.get("RAY_ADDRESS") or None
    check_address(address)
    with contextlib.ExitStack() as held:
        held.enter_context(study_held(store, study.name, Holder.myself()))
        if address is not None and _may_train(plan, store, retry_failed):
            from stlab.execution import ray

            held.enter_context(ray.connection(address))
            held.enter_context(ray.study_held(store, study.name, Holder.myself()))
        return _run_alone(plan, store, address, retry_failed, observers)


def _may_train(plan: Plan, store: Store, retry_failed: bool) -> bool:
    """Whether anything may be left to do; what a search has left shows only once the entries of another are out of the way."""
    return bool(plan.branches) or retry_failed or any(not TrialDirectory(store, trial.trial_id).is_over() for trial in plan.unique())


def _run_alone(plan: Plan, store: Store, address: str | None, retry_failed: bool, observers: Sequence[Observer]) -> Outcome:
    """A study that nobody else runs at this moment; where there is an ``address``, its cluster is connected already."""
    if retry_failed:
        for trial in plan.unique():
            TrialDirectory(store, trial.trial_id).clear_failure()
    set_aside = searching.prepare(plan, store, retry_failed=retry_failed)
    is_searching = searching.is_searching(plan, store)
    todo = [trial for trial in plan.unique() if not TrialDirectory(store, trial.trial_id).is_over()]
    if address is None:
        searched = {branch.template.spec.resources for branch in plan.branches} if is_searching else set()
        check_machine({trial.spec.resources for trial in todo} | searched)
    _check_models([*todo, *(searching.corner_trials(plan) if is_searching else ())])
    if any(not trial.spec.baseline for trial in todo):
        refuse_dead_switches(plan)
    troubles: list[str] = []
    kept = None
    if todo or is_searching:
        from stlab.execution import ray  # seconds: what is wrong with the study is said before

        with ray.connection(None) if address is None else contextlib.nullcontext():
            kept, troubles = _train(plan, todo, store, is_searching, observers)
    else:
        kept = _write_study(store, plan.study, plan)
        for observer in observers:
            observer.begin(plan, [], 0)
    outcome = Outcome(plan, *_collect(plan, store), kept=kept or set_aside, troubles=troubles)
    for observer in observers:
        observer.end(outcome)
    return outcome


def _train(
    plan: Plan, todo: Sequence[PlannedTrial], store: Store, is_searching: bool, observers: Sequence[Observer]
) -> tuple[str | None, list[str]]:
    """Run trials on the connected cluster: where an earlier study of this name was moved to, and what went wrong outside of trials."""
    from stlab.execution import ray

    decided = {resources: ray.with_gpus(resources) for resources in {trial.spec.resources for trial in todo}}
    todo = [_with_resources(trial, decided[trial.spec.resources]) for trial in todo]
    slots = {resources: ray.slots(resources) for resources in set(decided.values())}
    packs = make_packs(todo, slots)
    kept = _write_study(store, plan.study, plan)

    note = ray.growth_note()
    told = plan if note is None else replace(plan, notes=(*plan.notes, note))

    def begin(concurrency: int) -> None:
        for observer in observers:
            observer.begin(told, todo, concurrency)

    def listen(events: list[dict[str, Any]]) -> None:
        for event in events:
            for observer in observers:
                try:
                    observer.event(event)
                except Exception:  # what is shown of a study must not end it
                    logger.exception("%s missed an event: %s", type(observer).__name__, event["kind"])

    if is_searching:
        return kept, searching.run(plan, todo, store, ray, begin, listen)
    begin(len(packs))
    return kept, ray.run_packs(packs, store.location, plan.study.name, test=True, listen=listen)


def _write_study(store: Store, study: StudySpec, plan: Plan) -> str | None:
    """Write the resolved study and the list of its trials.

    Returns:
        Where an earlier study of its name was moved to, unless this one only has more seeds.
    """
    directory = StudyDirectory(store, study.name)
    text = directory.read_study()
    try:
        before = None if text is None else parse(StudySource.from_text(text))
    except StudyError:
        before = None  # of another version of stlab: another study
    extends = (
        before is not None
        and set(before.seeds) < set(study.seeds)
        and before.model_copy(update={"seeds": study.seeds}) == study
    )
    kept = directory.write_study(dump_study(study), extends=extends)
    directory.write_plan([{"trial_id": t.trial_id, "label": t.label, "max_epochs": t.spec.train.max_epochs} for t in plan.trials])
    return kept


def check_protocol(plan: Plan) -> None:
    """Refuse, before anything trains, a study whose table would mix protocols.

    Raises:
        ProtocolMismatch: names the field that differs.
    """
    trials = [*plan.trials, *(branch.template for branch in plan.branches)]
    single_protocol({**t.identity, "variant": t.spec.variant, "trial_id": t.trial_id} for t in trials)


def _with_resources(trial: PlannedTrial, resources: ResourcesSpec) -> PlannedTrial:
    spec = trial.spec.model_copy(update={"resources": resources})
    return replace(trial, spec=spec)


def _check_models(todo: Sequence[PlannedTrial]) -> None:
    """Build each distinct model once, so that weights that cannot be had are said before anything trains."""
    seen = set()
    for trial in todo:
        key = (json.dumps(trial.spec.model, sort_keys=True), trial.spec.data)
        if key not in seen:
            seen.add(key)
            build_model(trial.spec)


def trial_row(trial: PlannedTrial, store: Store) -> dict[str, Any]:
    """A trial as its study's row: the directory's figures under this study's labels and parameters."""
    row = TrialDirectory(store, trial.trial_id).row()
    spec = trial.spec
    row["reused_from"] = None if row["first_study"] == spec.study else row["first_study"]
    sections = {
        "data": spec.data.model_dump(),
        "model": spec.model,
        "train": spec.train.model_dump(),
        "resources": spec.resources.model_dump(),
    }
    row |= {f"param.{name}": value for name, value in flatten(sections).items()}
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


def _collect(plan: Plan, store: Store) -> tuple[list[dict[str, Any]], str]:
    """Write ``trials.parquet`` and the report; the rows and the report's path."""
    rows = [trial_row(trial, store) for trial in plan.trials]
    if plan.branches:
        rows += searching.collect(plan, store, trial_row)
    StudyDirectory(store, plan.study.name).write_trials(rows)
    report = write_report(store, plan.study.name, plan.study.model_dump(mode="json"), list(plan.notes))
    return rows, report
