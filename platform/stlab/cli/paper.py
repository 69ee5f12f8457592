"""What the terminal says of a published table that a study names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.storage import Store
    from stlab.study.plan import Plan


def say_paper(
    console: Console, store: Store, rows: Sequence[Mapping[str, Any]], study: Mapping[str, Any], axes: Sequence[str] | None = None
) -> None:
    """The paper's figures beside ours, after a run or a report; nothing where the study names no paper."""
    from stlab.report.paper.tables import terminal_paper
    from stlab.report.paper.verdicts import compare_with_paper

    for part in terminal_paper(compare_with_paper(store, rows, study, axes)):
        console.print()
        console.print(part)


def say_coverage(console: Console, plan: Plan) -> None:
    """Which cells of the paper's tables the planned trials fill, and what is missing for the others."""
    spec = plan.study.paper
    if spec is None:
        return
    from stlab.papers import coverage, load_paper
    from stlab.report.paper.data_facts import differences, planned_data
    from stlab.report.paper.tables import terminal_coverage
    from stlab.study.paper import paper_rows
    from stlab.training.trial import dataset_for

    paper = load_paper(spec.file)
    trained = [trial for trial in plan.trials if not trial.spec.baseline]
    name = str(trained[0].identity["dataset"]) if trained else ""
    dataset = spec.dataset or paper.find_dataset(name)
    ratios = {trial.spec.data.train_ratio for trial in trained}
    facts = paper.facts.datasets.get(dataset or "")
    differs = differences(facts, planned_data(dataset_for(trained[0].spec.data)))[0] if facts and trained else []
    for table in spec.tables:
        rows = paper_rows(spec, paper, table, plan.study.variants)
        console.print()
        console.print(terminal_coverage(paper, table, coverage(paper, table, rows, dataset, ratios, is_paper_data=not differs)))
    if differs:
        console.print(f"{name} is not the data the paper names {dataset}: {'; '.join(differs)}.", highlight=False, soft_wrap=True)
    if dataset is None:
        console.print(
            f"{name} is none of the paper's data sets by its name: no cell is filled. If it is one of them, say which: "
            "--set paper.dataset=…",
            highlight=False,
            soft_wrap=True,
        )
