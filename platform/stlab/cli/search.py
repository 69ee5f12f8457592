"""A search on the terminal: its space, its budget, and what is done of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.search.history import History
    from stlab.storage import Store
    from stlab.study.plan import Plan
    from stlab.study.spec import Distribution, SearchSpec


def say_search(console: Console, plan: Plan, store: Store) -> None:
    """The space, the budget and what is done, of a study that has a search."""
    from rich.table import Table

    from stlab.execution.run_search import histories

    search = plan.study.search
    if search is None:
        return
    space = Table("searched field", "distribution", "where", title="space", title_justify="left")
    for path, found in search.space.items():
        where = ", ".join(f"{other} is {value}" for other, value in found.when.items())
        space.add_row(path, distribution(found), where)
    console.print(space)
    points = f"{len(search.points)} point{'s' if len(search.points) != 1 else ''} to try first"
    told = f"{search.sampler}, pruner {search.pruner}, minimises {' and '.join(search.objectives)}; {points}."
    console.print(told, highlight=False)
    branches = Table("search", "begun", "finished", "pruned", "failed", "device-hours", "state", title="budget of each: " + budget(search),
                 title_justify="left")  # fmt: skip
    for history in histories(plan, store):
        branches.add_row(history.branch.label, *_done(history, store))
    console.print(branches)
    seeds = ", ".join(map(str, plan.study.seeds))
    console.print(f"Then each search's best by validation is measured on the test segment, once (seeds {seeds}).", highlight=False)


def say_found(console: Console, store: Store, study: str) -> None:
    """How a study's search went, and what of it has seen the test segment; nothing where there is none."""
    from stlab.report.figures.search import read_search
    from stlab.report.page.search_text import sentence, test_use

    found = read_search(store, study)
    if found is None:
        return
    for branch in found.branches:
        console.print(sentence(found, branch), highlight=False, soft_wrap=True)
    console.print(test_use(found), highlight=False, soft_wrap=True, style="dim")


def budget(search: SearchSpec) -> str:
    limits = [f"{search.max_trials} trials"] if search.max_trials else []
    limits += [f"{search.max_gpu_hours:g} device-hours"] if search.max_gpu_hours else []
    limits += [f"{search.max_wall:g} hours"] if search.max_wall else []
    return ", ".join(limits)


def distribution(found: Distribution) -> str:
    """A distribution in one line: ``1e-4 … 1e-2, log``."""
    if found.categorical is not None:
        return ", ".join(map(str, found.categorical))
    low, high = found.float or found.int or (0, 0)
    kind = "whole numbers " if found.int else ""
    return f"{kind}{low:g} … {high:g}" + (", log" if found.log else "") + (f", step {found.step:g}" if found.step else "")


def _done(history: History, store: Store) -> list[str]:
    from stlab.execution.run_search import is_over, state_of
    from stlab.search.history import State, wall_seconds

    tried = state_of(history)
    counts = [sum(o is not None and o.state is state for _, o in tried) for state in (State.COMPLETE, State.PRUNED, State.FAIL)]
    spent = history.device_seconds({e.trial_id: o for e, o in tried if e.trial_id and o is not None})
    over = is_over(history, wall_seconds(store, history.study.name))
    return [str(len(tried)), *map(str, counts), f"{spent / 3600:.2f}", "done" if over else "to do"]
