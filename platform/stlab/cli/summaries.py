"""Parts of a study's output on the terminal: its search, its published tables, and several studies together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.papers import Cell, Paper
    from stlab.search.history import History
    from stlab.storage import Store
    from stlab.study.plan import Plan, PlannedTrial
    from stlab.study.spec import Distribution, PaperSpec, SearchSpec


def say_search(console: Console, plan: Plan, store: Store) -> None:
    """Print the space, the budget and the progress of a study's search, if it has one."""
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
    method = f"{search.sampler}, pruner {search.pruner}, minimises {' and '.join(search.objectives)}; {points}."
    console.print(method, highlight=False)
    branches = Table("search", "begun", "finished", "pruned", "failed", "device-hours", "state", title="budget of each: " + budget(search),
                 title_justify="left")  # fmt: skip
    for history in histories(plan, store):
        branches.add_row(history.branch.label, *_done(history, store))
    console.print(branches)
    seeds = ", ".join(map(str, plan.study.seeds))
    end = f"Then the best trial of each search by validation is measured on the test segment, once (seeds {seeds})."
    console.print(end, highlight=False)


def say_found(console: Console, store: Store, study: str) -> None:
    """Print how a study's search went, and which of its trials were measured on the test segment."""
    from stlab.report.figures.search import read_search
    from stlab.report.page.search_text import sentence, test_use

    found = read_search(store, study)
    if found is None:
        return
    for branch in found.branches:
        console.print(sentence(found, branch), highlight=False, soft_wrap=True)
    console.print(test_use(found), highlight=False, soft_wrap=True, style="dim")


def budget(search: SearchSpec) -> str:
    """The limits of a search on one line."""
    limits = [f"{search.max_trials} trials"] if search.max_trials else []
    limits += [f"{search.max_gpu_hours:g} device-hours"] if search.max_gpu_hours else []
    limits += [f"{search.max_wall:g} hours"] if search.max_wall else []
    return ", ".join(limits)


def distribution(found: Distribution) -> str:
    """A distribution on one line: ``1e-4 … 1e-2, log``."""
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
    spent = history.device_seconds({e.key: o for e, o in tried if e.key and o is not None})
    over = is_over(history, wall_seconds(store, history.study.name))
    return [str(len(tried)), *map(str, counts), f"{spent / 3600:.2f}", "done" if over else "to do"]


def say_results(
    console: Console, store: Store, rows: Sequence[Mapping[str, Any]], study: Mapping[str, Any], axes: list[str] | None
) -> None:
    """Print the table of a study, or the one over its data sets, its search, and its published tables."""
    from stlab.report import across_datasets, compare, terminal_across, terminal_table
    from stlab.report.page.across_text import caveat_sentences, limits, marks_sentence, rank_sentences

    if not study.get("datasets"):
        console.print(terminal_table(rows, axes, console.width, compare(rows, axes, study, store)))
        say_found(console, store, str(study.get("name", "")))
        say_paper(console, store, rows, study, axes)
        return
    found = across_datasets(rows, axes, study, store)
    console.print(terminal_across(found, console.width))
    ranks = rank_sentences(found, "rmse") if len(found.datasets) > 1 else []
    for sentence in [marks_sentence(found), *limits(found), *ranks, *caveat_sentences(found)]:
        console.print(sentence, highlight=False)
    say_found(console, store, str(study["name"]))


def say_paper(
    console: Console, store: Store, rows: Sequence[Mapping[str, Any]], study: Mapping[str, Any], axes: Sequence[str] | None = None
) -> None:
    """Print the paper's results beside ours, if the study names a paper."""
    from stlab.report.paper.tables import terminal_paper
    from stlab.report.paper.verdicts import compare_with_paper

    for part in terminal_paper(compare_with_paper(store, rows, study, axes)):
        console.print()
        console.print(part)


def say_coverage(console: Console, plan: Plan) -> None:
    """Print which cells of the paper's tables the planned trials fill, on all data sets together, and what the others lack."""
    spec = plan.study.paper
    if spec is None:
        return
    from stlab.papers import load_paper
    from stlab.report.paper.tables import terminal_coverage

    paper = load_paper(spec.file)
    parts: dict[str, list[PlannedTrial]] = {}
    for trial in plan.trials:
        if not trial.spec.baseline:
            parts.setdefault(str(trial.identity["dataset"]), []).append(trial)
    held = {name: spec.dataset or paper.find_dataset(name) for name in parts}
    differs = {name: _differences(paper, held[name], trials[0]) for name, trials in parts.items()}
    for table in spec.tables:
        cells: dict[tuple[str, str, float], Cell] = {}
        for name, trials in parts.items():
            for cell in _coverage(paper, spec, table, trials, held[name], is_paper_data=not differs[name]):
                key = (cell.method, cell.dataset, cell.train_ratio)
                if key not in cells or cell.dataset == held[name]:
                    cells[key] = cell
        console.print()
        console.print(terminal_coverage(paper, table, list(cells.values())))
    for name, found in differs.items():
        if found:
            console.print(f"{name} is not the data that the paper calls {held[name]}: {'; '.join(found)}.", highlight=False, soft_wrap=True)
    if unknown := [name for name in parts if held[name] is None]:
        remedy = "If it is one of them, name it: --set paper.dataset=…"
        if plan.study.datasets:
            remedy = "If one of them is, name its entry in datasets as the paper does."
        console.print(
            f"The name {', '.join(unknown)} is that of none of the paper's data sets, so no cell is filled. {remedy}",
            highlight=False,
            soft_wrap=True,
        )


def _coverage(
    paper: Paper, spec: PaperSpec, table: str, trials: Sequence[PlannedTrial], dataset: str | None, is_paper_data: bool
) -> list[Cell]:
    """The cells of a table, as the trials on one data set fill them."""
    from stlab.papers import coverage
    from stlab.study.paper import paper_rows

    rows = paper_rows(spec, paper, table, dict.fromkeys(trial.spec.variant for trial in trials))
    return coverage(paper, table, rows, dataset, {trial.spec.data.train_ratio for trial in trials}, is_paper_data=is_paper_data)


def _differences(paper: Paper, dataset: str | None, trial: PlannedTrial) -> list[str]:
    """In what the data of a trial differ from the paper's data set."""
    from stlab.report.paper.data_facts import differences, planned_data
    from stlab.training.trial import dataset_for

    facts = paper.facts.datasets.get(dataset or "")
    return differences(facts, planned_data(dataset_for(trial.spec.data)))[0] if facts else []


def say_joint(console: Console, store: Store, names: Sequence[str]) -> None:
    """Write the page of several studies together (``stlab report A B …``), and print a table for each data set."""
    from stlab.report import compare, terminal_table
    from stlab.report.page.joint import write_joint_report
    from stlab.report.paper.tables import terminal_paper

    path, sections = write_joint_report(store, names)
    for part in sections:
        axes = list(part.study["axes"])
        if part.folder:
            console.print(part.folder, style="bold", highlight=False)
        console.print(terminal_table(part.rows, axes, console.width, compare(part.rows, axes, part.study, store)))
        for block in terminal_paper(part.papers):
            console.print()
            console.print(block)
    console.print(f"report   {path}", highlight=False, soft_wrap=True)
