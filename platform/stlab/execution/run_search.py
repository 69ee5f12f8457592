"""A search from the driver's side: what is left of it, running it, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from stlab.search.history import Entry, History, Outcome, located, wall_seconds
from stlab.search.space import Space, check_space, without_dead_fields
from stlab.search.table import Tried, write_search
from stlab.storage import Store, TrialDirectory
from stlab.study.plan import Plan, PlannedTrial, SearchBranch, plan_point
from stlab.study.source import StudySource
from stlab.study.spec import ResourcesSpec

Row = dict[str, Any]
RowOf = Callable[[PlannedTrial, Store], Row]


def histories(plan: Plan, store: Store) -> list[History]:
    """The history of every branch."""
    return [History(store, plan.study, branch) for branch in plan.branches]


def prepare(plan: Plan, store: Store, *, retry_failed: bool) -> str | None:
    """Set the entries of another search (a changed base, data or code) aside, and have failed trials run again if asked.

    Returns:
        The folder of entries that were set aside, if any were.
    """
    kept = None
    for history in histories(plan, store):
        kept = history.keep_or_move() or kept
        if retry_failed:
            history.retry_failed()
    return kept


def is_searching(plan: Plan, store: Store) -> bool:
    """Whether any branch has trials left to begin, to end, to tell or to measure."""
    wall = wall_seconds(store, plan.study.name)
    return any(not is_over(history, wall) for history in histories(plan, store))


def is_over(history: History, wall: float) -> bool:
    """Whether a branch has spent its budget and its selection is measured."""
    tried = state_of(history)
    if any(outcome is None or not entry.told for entry, outcome in tried):
        return False
    seconds = history.device_seconds({entry.trial_id: o for entry, o in tried if entry.trial_id and o is not None})
    if history.has_budget(len(tried), seconds, wall):
        return False
    return all(TrialDirectory(history.store, trial.trial_id).is_over() for trial in selected(history))


def state_of(history: History) -> list[tuple[Entry, Outcome | None]]:
    """Every entry with what became of it."""
    return [(entry, history.outcome(entry)) for entry in history.entries()]


def selected(history: History) -> list[PlannedTrial]:
    best = history.best(history.entries())
    return history.selected(best) if best else []


def corner_trials(plan: Plan) -> Iterator[PlannedTrial]:
    """Trials that between them hold every choice of a search, so that what cannot be built is said before anything trains."""
    assert plan.study.search is not None
    for branch in plan.branches:
        yield branch.template
        space = Space(plan.study.search, branch)
        for path, _, point in space.corners():
            if path.startswith("model.") and space.fields[path].categorical is not None:
                yield plan_point(plan.study, branch, point)


def run(
    plan: Plan, measured: Sequence[PlannedTrial], store: Store, ray: ModuleType, begin: Callable[[int], None], listen: Callable[..., None]
) -> list[str]:
    """Search every branch, and measure what is selected.

    Args:
        measured: baselines that are left to do.
        ray: ``stlab.execution.ray``, connected.
        begin: told of how many worker groups there are.

    Returns:
        What went wrong outside of any trial.
    """
    from stlab.execution.search_queue import SearchWork
    from stlab.search.study import check_storage

    assert plan.study.search is not None
    search = plan.study.search.model_copy(update={"storage": located(plan.study.search.storage)})
    if search.storage is not None:
        check_storage(search.storage, [f"{plan.study.name}/{branch.folder}" for branch in plan.branches])
    study = plan.study.model_copy(update={"search": search})
    branches = tuple(_with_gpus(branch, ray) for branch in plan.branches)
    groups: list[ResourcesSpec] = []
    wanted = [branch.template.spec.resources for branch in branches] + [trial.spec.resources for trial in measured]
    for resources in dict.fromkeys(wanted):
        most = (search.max_trials or 10**6) * len(branches) + len(measured)
        groups += [resources] * min(ray.slots(resources), most)
    begin(len(groups))
    work = SearchWork(study, branches, tuple(measured), tuple(groups))
    return list(ray.run_search(work, store.location, listen))


def collect(plan: Plan, store: Store, row_of: RowOf) -> list[Row]:
    """The rows of a search: what was selected, then every trial; writes ``search.parquet`` beside them."""
    chosen_rows: list[Row] = []
    others: dict[str, Row] = {}
    tried: list[Tried] = []
    for history in histories(plan, store):
        entries = state_of(history)
        best = history.best([entry for entry, _ in entries])
        chosen = history.selected(best) if best else []
        chosen_rows += [row_of(trial, store) | {"searched": False, "number": best.number} for trial in chosen if best]
        if best is None:
            chosen_rows.append(_nothing_selected(row_of(history.branch.template, store)))
        for entry, _ in entries:
            if entry.trial_id is not None and entry.trial_id not in {trial.trial_id for trial in chosen}:
                row = row_of(history.trial(entry.number, entry.params), store)
                others.setdefault(entry.trial_id, row | {"searched": True, "number": entry.number})
        tried.append(Tried(history, entries, best.number if best else None))
    write_search(store, plan.study, tried)
    return [*chosen_rows, *others.values()]


def _nothing_selected(row: Row) -> Row:
    """The row of a branch of which no trial finished: its labels and fixed parameters, and no figures."""
    kept = ("study", "trial_id", "variant", "seed", "baseline", "dataset", "synthetic", "leaks", "protocol", "data_sha256",
            "code_version", "weights")  # fmt: skip
    known = {name: value for name, value in row.items() if name in kept or name.startswith("param.")}
    return known | {"status": "missing", "searched": False, "error": "no trial of the search finished"}


def _with_gpus(branch: SearchBranch, ray: ModuleType) -> SearchBranch:
    template = branch.template
    spec = template.spec.model_copy(update={"resources": ray.with_gpus(template.spec.resources)})
    return replace(branch, template=replace(template, spec=spec))


def checked(plan: Plan, source: StudySource | None = None) -> Plan:
    """The plan of a search with fields that change nothing left out, where they do; another study's plan as it is.

    Raises:
        StudyError: all that is wrong with the space.
    """
    if not plan.branches:
        return plan
    check_space(plan.study, plan.branches, source)
    branches, notes = without_dead_fields(plan.study, plan.branches, source)
    return replace(plan, branches=branches, notes=(*plan.notes, *notes))
