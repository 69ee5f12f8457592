"""A search from the driver's side: it finds out what is left of a search, and runs that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stlab.execution.events import Event
from stlab.execution.supply import with_resources
from stlab.search.history import Entry, EntryOutcome, History, located, wall_seconds
from stlab.search.space import check_space, without_dead_fields
from stlab.storage import Store, TrialDirectory
from stlab.study.plan import Plan, PlannedTrial, SearchBranch
from stlab.study.source import StudySource
from stlab.study.spec import ResourcesSpec


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
    """Whether any branch has trials left to begin, to end, to tell the sampler of, or to measure."""
    wall = wall_seconds(store, plan.study.name)
    return any(not is_over(history, wall) for history in histories(plan, store))


def is_over(history: History, wall: float) -> bool:
    """Whether a branch has spent its budget and its selection is measured."""
    tried = state_of(history)
    if any(outcome is None or not entry.told for entry, outcome in tried):
        return False
    seconds = history.device_seconds({entry.key: o for entry, o in tried if entry.key and o is not None})
    if history.has_budget(len(tried), seconds, wall):
        return False
    return all(TrialDirectory(history.store, trial.trial_id).is_over() for trial in selected(history))


def state_of(history: History) -> list[tuple[Entry, EntryOutcome | None]]:
    """Every entry with its outcome, which is None as long as its trial is left to run."""
    return [(entry, history.outcome(entry)) for entry in history.entries()]


def selected(history: History) -> list[PlannedTrial]:
    """The best configuration so far, with each of the study's seeds; empty where no trial finished."""
    best = history.best(history.entries())
    return history.selected(best) if best else []


def run(
    plan: Plan, measured: Sequence[PlannedTrial], store: Store, begin: Callable[[int], None], listen: Callable[[Sequence[Event]], None]
) -> list[str]:
    """Search every branch, and measure what is selected, on the connected cluster.

    Args:
        measured: baselines that are left to do.
        begin: called with the number of worker groups.
        listen: called with events, in order.

    Returns:
        Errors outside of any trial.
    """
    from stlab.execution import ray as cluster
    from stlab.execution.search_supply import SearchWork
    from stlab.search.study import check_storage

    assert plan.study.search is not None
    search = plan.study.search.model_copy(update={"storage": located(plan.study.search.storage)})
    if search.storage is not None:
        check_storage(search.storage, [f"{plan.study.name}/{branch.folder}" for branch in plan.branches])
    study = plan.study.model_copy(update={"search": search})
    branches = tuple(_decided(branch, cluster.with_gpus(branch.template.spec.resources)) for branch in plan.branches)
    groups: list[ResourcesSpec] = []
    wanted = [branch.template.spec.resources for branch in branches] + [trial.spec.resources for trial in measured]
    for resources in dict.fromkeys(wanted):
        most = (search.max_trials or 10**6) * len(branches) + len(measured)
        groups += [resources] * min(cluster.slots(resources), most)
    begin(len(groups))
    return cluster.run_branches(SearchWork(study, branches, tuple(measured), tuple(groups)), store.location, listen)


def _decided(branch: SearchBranch, resources: ResourcesSpec) -> SearchBranch:
    beside = tuple(_decided(other, resources) for other in branch.beside)
    return replace(branch, template=with_resources(branch.template, resources), beside=beside)


def checked(plan: Plan, source: StudySource | None = None) -> Plan:
    """The plan of a search without the searched fields that change nothing; the plan of another study as it is.

    Raises:
        StudyError: all that is wrong with the space.
    """
    if not plan.branches:
        return plan
    check_space(plan.study, [branch for lead in plan.branches for branch in lead.everywhere], source)
    branches, notes = without_dead_fields(plan.study, plan.branches, source)
    return replace(plan, branches=branches, notes=(*plan.notes, *notes))
