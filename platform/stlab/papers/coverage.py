"""The cells of a published table that a study fills, and what is missing for the other cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from stlab.papers.paper import Paper

State = Literal["here", "stand-in", "other data", "other study", "no model", "not printed"]
SYMBOLS: dict[State, str] = {
    "here": "●",
    "stand-in": "◐",
    "other data": "○",
    "other study": "·",
    "no model": "–",
    "not printed": "N/A",
}
MEANINGS: dict[State, str] = {
    "here": "filled by this study",
    "stand-in": "run by this study on other data than the paper's",
    "other data": "can be filled by this study on that data set",
    "other study": "can be filled by another study",
    "no model": "without a model here",
    "not printed": "not printed in the paper",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a published table: all metrics of a method on a data set."""

    method: str
    dataset: str
    train_ratio: float
    state: State
    why: str
    """The missing part; empty if nothing is missing."""


def coverage(
    paper: Paper,
    table: str,
    rows: Mapping[str, str],
    dataset: str | None,
    ratios: Collection[float] = (1.0,),
    is_paper_data: bool = True,
) -> list[Cell]:
    """Every cell of a table, row by row.

    Args:
        rows: variant → method, as the study maps them.
        dataset: the paper's name of the study's data set; None if it is not in the paper.
        ratios: shares of the train segment that the study runs.
        is_paper_data: False if the data of that name is known to differ from the paper's.

    Raises:
        StudyError: the paper has no such table.
    """
    run = set(rows.values())
    cells = [
        _cell(paper, table, method, name, ratio, run, dataset, ratios)
        for method in paper.methods(table)
        for ratio in paper.ratios(table)
        for name in paper.datasets(table)
    ]
    if is_paper_data:
        return cells
    missing = f"our data are not the paper's; {paper.facts.data_missing}"
    return [
        replace(cell, state="stand-in", why=missing.format(name=file_name(paper, cell.dataset))) if cell.state == "here" else cell
        for cell in cells
    ]


def _cell(
    paper: Paper, table: str, method: str, name: str, ratio: float, run: set[str], dataset: str | None, ratios: Collection[float]
) -> Cell:
    facts = paper.facts.methods.get(method)
    printed = paper.cell(table, method, name, ratio)
    if paper.has_numbers(table) and not any(_is_number(text) for text in printed.values()):
        return Cell(method, name, ratio, "not printed", "the paper has no value in this cell")
    if facts is not None and facts.missing:
        return Cell(method, name, ratio, "no model", facts.missing)
    if method not in run:
        return Cell(method, name, ratio, "other study", "no variant of this study is this method")
    if name != dataset:
        return Cell(method, name, ratio, "other data", paper.facts.data_missing.format(name=file_name(paper, name)))
    if ratio not in ratios:
        return Cell(method, name, ratio, "other study", f"this study does not train on {100 * ratio:g} % (data.train_ratio)")
    return Cell(method, name, ratio, "here", "")


def file_name(paper: Paper, dataset: str) -> str:
    """The name of a data set's public file, without its suffix."""
    facts = paper.facts.datasets.get(dataset)
    return facts.aliases[0] if facts is not None and facts.aliases else dataset


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
