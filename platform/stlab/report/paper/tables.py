"""A paper's table beside ours: for the page, a spreadsheet, a paper of one's own and a terminal; and its coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stlab.papers import Cell, Paper
from stlab.papers.coverage import MEANINGS, SYMBOLS, State, file_name
from stlab.report.page.text import decimals, number
from stlab.report.paper.verdicts import METRIC_NAMES, Beside, Entry, Figure, Reason
from stlab.report.tables.ablation import escape_latex

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

_VERDICTS = {
    "within": "within our interval",
    "better": "ours is better",
    "worse": "ours is worse",
    "no interval": "one seed, no interval",
    "not measured": "not measured",
    "not printed": "",
}


def paper_frame(beside: Beside) -> pd.DataFrame:
    """A line a figure: the paper's as printed, ours in full precision, the verdict, its reasons and notes."""
    import pandas as pd

    records = [
        {
            "paper": beside.paper.name, "table": beside.table, "label": entry.label, "method": entry.method,
            "paper_dataset": beside.dataset, "dataset": beside.our_dataset, "train_ratio": entry.train_ratio,
            "metric": figure.metric, "paper_value": figure.paper, "seeds": entry.seeds,
            "ours_mean": figure.ours.mean if figure.ours else None,
            "ours_ci95": figure.ours.half_width if figure.ours else None,
            "verdict": figure.verdict,
            "reasons": "; ".join(f"{reason.kind}: {reason.text}" for reason in figure.reasons),
            "notes": " ".join([*entry.notes, *([beside.paper.facts.caveat] if beside.paper.facts.caveat else [])]),
        }
        for entry in beside.entries
        for figure in entry.figures
    ]  # fmt: skip
    return pd.DataFrame(records)


def coverage_frame(beside: Beside) -> pd.DataFrame:
    """A line a cell of the paper's table: whether this study fills it, and what is missing where it does not."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"method": c.method, "dataset": c.dataset, "train_ratio": c.train_ratio, "state": c.state, "missing": c.why}
            for c in beside.coverage
        ]
    )


def paper_latex(beside: Beside) -> str:
    """A ``table`` environment (booktabs, xcolor): theirs and ours by metric; grey where they do not compare."""
    columns = "ll" + "rr" * len(beside.metrics)
    names = [METRIC_NAMES.get(metric, metric) for metric in beside.metrics]
    head = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape_latex(name)}}}" for name in names)
    lines = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{escape_latex(_caption(beside))}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf" & & {head} \\",
        "Variant & The paper's" + " & paper & ours" * len(names) + r" \\", r"\midrule",
    ]  # fmt: skip
    for entry in beside.entries:
        cells = [escape_latex(entry.label), escape_latex(entry.method)]
        for figure in entry.figures:
            ours = number(figure.ours, _digits(beside, figure.metric), r" \pm ")
            pair = [figure.paper or "--", "--" if figure.ours is None else f"${ours}${_MARKS.get(figure.verdict, '')}"]
            grey = figure.verdict in ("not comparable", "no interval")
            cells += [rf"\textcolor{{gray}}{{{text}}}" if grey else text for text in pair]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


_MARKS = {"within": r"$^{=}$", "better": r"$^{+}$", "worse": r"$^{-}$"}


def _caption(beside: Beside) -> str:
    facts = beside.paper.table(beside.table)
    where = f" on {beside.dataset}" if beside.dataset else ""
    told = f"{facts.title} of {beside.paper.facts.short} ({beside.paper.facts.source}){where} beside ours: mean ± 95 % Student-t interval."
    legend = "Marks: = the paper's value lies in our interval, + ours is better, - ours is worse; grey: they do not compare."
    reasons = [f"Not comparable by {reason.kind}: {reason.text}." for reason in beside.shared]
    return " ".join([told, legend, *reasons, *([beside.paper.facts.caveat] if beside.paper.facts.caveat else [])])


def paper_content(beside: Beside) -> dict[str, Any]:
    """What the page's template prints."""
    facts = beside.paper.table(beside.table)
    return {
        "title": facts.title,
        "what": facts.what,
        "says": facts.says,
        "short": beside.paper.facts.short,
        "source": beside.paper.facts.source,
        "caveat": beside.paper.facts.caveat,
        "dataset": beside.dataset,
        "data_words": data_words(beside),
        "not_printed": ", ".join(beside.paper.facts.not_printed),
        "metrics": [METRIC_NAMES.get(metric, metric) for metric in beside.metrics],
        "rows": [_row(beside, entry) for entry in beside.entries] if has_figures(beside) else [],
        "shared": [{"kind": kind.capitalize(), "text": "; ".join(texts)} for kind, texts in by_kind(beside.shared).items()],
        "notes": _notes(beside),
        "coverage": _matrix(beside.paper, beside.coverage),
        "coverage_words": coverage_words(beside.coverage),
        "symbols": [(SYMBOLS[state], MEANINGS[state]) for state in _states(beside.coverage)],
        "missing": _missing(beside.paper, beside.coverage),
    }


def has_figures(beside: Beside) -> bool:
    """Whether the paper prints a figure for any of these rows on this data set."""
    return any(figure.paper is not None for entry in beside.entries for figure in entry.figures)


def data_words(beside: Beside) -> str:
    """Which column of the paper's table stands beside ours."""
    ours = beside.our_dataset or "our data"
    if beside.dataset is None:
        columns = ", ".join(beside.paper.datasets(beside.table))
        return f"Our data set, {ours}, is no column of it ({columns}): its figures are not set beside ours"
    return f"{beside.dataset} of the paper beside ours on {ours}"


def by_kind(reasons: Sequence[Reason]) -> dict[str, list[str]]:
    """Reasons' texts by kind, in their order."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        found.setdefault(reason.kind, []).append(reason.text)
    return found


def verdict_words(figure: Figure) -> str:
    """A verdict in words; of figures that do not compare, by what."""
    if figure.verdict == "not comparable":
        return f"not comparable: {', '.join(by_kind(figure.reasons))}"
    return _VERDICTS[figure.verdict]


def _row(beside: Beside, entry: Entry) -> dict[str, Any]:
    return {
        "label": entry.label,
        "method": entry.method,
        "seeds": entry.seeds,
        "figures": [
            {
                "paper": figure.paper or "–",
                "ours": number(figure.ours, _digits(beside, figure.metric)),
                "grey": figure.verdict in ("not comparable", "not printed", "no interval", "not measured"),
                "kind": figure.verdict if figure.verdict in ("better", "worse") else "",
            }
            for figure in entry.figures
        ],
        "verdict": _row_verdict(entry),
        "own": _own(beside, entry),
    }


def _row_verdict(entry: Entry) -> str:
    """One verdict where all metrics agree, else each with the metrics that share it."""
    told: dict[str, list[str]] = {}
    for figure in entry.figures:
        if figure.verdict != "not printed":
            told.setdefault(verdict_words(figure), []).append(METRIC_NAMES.get(figure.metric, figure.metric))
    if not told:
        return "not printed"
    if len(told) == 1:
        return next(iter(told))
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in told.items())


def _own(beside: Beside, entry: Entry) -> list[str]:
    """Reasons of this row that not all rows share."""
    reasons = dict.fromkeys(reason for figure in entry.figures if figure.paper for reason in figure.reasons)
    return [f"{reason.kind}: {reason.text}" for reason in reasons if reason not in beside.shared]


def _digits(beside: Beside, metric: str) -> int:
    if metric not in ("rmse", "mae"):
        return 2
    return decimals(f.ours.mean for e in beside.entries for f in e.figures if f.metric == metric and f.ours)


def _notes(beside: Beside) -> list[str]:
    if not has_figures(beside):
        return []
    told = list(dict.fromkeys(note for entry in beside.entries for note in entry.notes))
    return told + ([beside.paper.facts.facts_from] if beside.paper.facts.facts_from else [])


def _states(cells: Sequence[Cell]) -> list[State]:
    there = {cell.state for cell in cells}
    return [state for state in SYMBOLS if state in there]


def coverage_words(cells: Sequence[Cell]) -> str:
    """``5 of its 30 cells are filled by this study; 20 for this study to fill, run on that data set; 5 no such model here``."""
    counts = {state: sum(cell.state == state for cell in cells) for state in _states(cells)}
    rest = [f"{count} {MEANINGS[state]}" for state, count in counts.items() if state != "here"]
    return "; ".join([f"{counts.get('here', 0)} of its {len(cells)} cells are filled by this study", *rest])


def _matrix(paper: Paper, cells: Sequence[Cell]) -> dict[str, Any]:
    """Rows of the paper's table, columns its data sets: a symbol a cell, with what is missing as its tooltip."""
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    few_shot = len({cell.train_ratio for cell in cells}) > 1
    rows: dict[str, list[dict[str, str]]] = {}
    for cell in cells:
        label = f"{cell.method}, {100 * cell.train_ratio:g} %" if few_shot else cell.method
        rows.setdefault(label, []).append({"symbol": SYMBOLS[cell.state], "why": cell.why or MEANINGS[cell.state]})
    return {"datasets": datasets, "rows": [{"label": label, "cells": line} for label, line in rows.items()]}


def _missing(paper: Paper, cells: Sequence[Cell]) -> list[dict[str, str]]:
    """What is missing, said once: models by reason, data sets together with the names of their files."""
    models: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.state == "no model":
            models.setdefault(cell.why, {})[cell.method] = None
    found = [{"what": ", ".join(names), "why": why} for why, names in models.items()]
    data = list(dict.fromkeys(cell.dataset for cell in cells if cell.state in ("other data", "stand-in")))
    if data:
        files = ", ".join(file_name(paper, name) for name in data)
        found.append({"what": ", ".join(data), "why": f"{paper.facts.data_missing.format(name='NAME')}; NAME is {files}"})
    return found


def terminal_paper(beside: Sequence[Beside]) -> list[RenderableType]:
    """What a terminal shows after a run or a report: a table a published one, its reasons and its caveat; coverage in a line."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = []
    for one in beside:
        title = f"{one.paper.facts.short}, {one.paper.table(one.table).title}"
        told = [f"Not comparable by {reason.kind}: {reason.text}." for reason in one.shared]
        told += [one.paper.facts.caveat_short or one.paper.facts.caveat] if one.paper.facts.caveat else []
        told.append(f"{title}: {coverage_words(one.coverage)}.")
        if not has_figures(one):
            says = one.paper.table(one.table).says
            shown.append(Text("\n".join([f"{title}. {data_words(one)}.", *([says] if says else []), *told])))
            continue
        table = Table(title=f"{title}: paper | ours", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("variant", overflow="fold")
        for metric in one.metrics:
            table.add_column(METRIC_NAMES.get(metric, metric), justify="right", no_wrap=True)
        table.add_column("verdict", overflow="fold")
        for entry in one.entries:
            cells = [f"{f.paper or '–'} | {number(f.ours, _digits(one, f.metric))}" for f in entry.figures]
            grey = all(figure.verdict in ("not comparable", "not printed") for figure in entry.figures)
            table.add_row(*map(Text, (entry.label, *cells, _row_verdict(entry))), style="dim" if grey else None)
        shown.append(Group(table, Text("\n".join(told))))
    return shown


def terminal_coverage(paper: Paper, table: str, cells: Sequence[Cell]) -> RenderableType:
    """The coverage matrix for ``stlab plan``: a symbol a cell, and what is missing."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    matrix = _matrix(paper, cells)
    title = f"{paper.facts.short}, {paper.table(table).title}: {coverage_words(cells)}"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for name in matrix["datasets"]:
        shown.add_column(name, justify="center", overflow="fold")
    for row in matrix["rows"]:
        shown.add_row(row["label"], *(cell["symbol"] for cell in row["cells"]))
    told = [", ".join(f"{SYMBOLS[state]} {MEANINGS[state]}" for state in _states(cells))]
    told += [f"{missing['what']}: {missing['why']}" for missing in _missing(paper, cells)]
    told += [paper.facts.caveat_short] if paper.facts.caveat_short else []
    return Group(Text(title), shown, Text("\n".join(told)))
