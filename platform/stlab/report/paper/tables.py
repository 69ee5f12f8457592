"""The comparison with a paper's table as a data frame, as LaTeX, for the page and for the terminal; and the coverage of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stlab.papers import Cell, Paper
from stlab.papers.coverage import MEANINGS, SYMBOLS, State, file_name
from stlab.report.page.text import decimals, number
from stlab.report.paper.verdicts import METRIC_NAMES, ComparedValue, Entry, PaperComparison, Reason
from stlab.report.tables.ablation import escape_latex

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

_VERDICTS = {
    "within": "within our interval",
    "better": "ours is better",
    "worse": "ours is worse",
    "no interval": "one seed, so no interval",
    "not measured": "not measured",
    "not printed": "",
}


def paper_frame(comparison: PaperComparison) -> pd.DataFrame:
    """A row for each value: the paper's as printed, ours in full precision, the verdict, its reasons and notes."""
    import pandas as pd

    records = [
        {
            "paper": comparison.paper.name, "table": comparison.table, "label": entry.label, "method": entry.method,
            "paper_dataset": comparison.dataset, "dataset": comparison.our_dataset, "train_ratio": entry.train_ratio,
            "metric": value.metric, "paper_value": value.paper, "seeds": entry.seeds,
            "ours_mean": value.ours.mean if value.ours else None,
            "ours_ci95": value.ours.half_width if value.ours else None,
            "verdict": value.verdict,
            "reasons": "; ".join(f"{reason.kind}: {reason.text}" for reason in value.reasons),
            "notes": " ".join([*entry.notes, *([comparison.paper.facts.caveat] if comparison.paper.facts.caveat else [])]),
        }
        for entry in comparison.entries
        for value in entry.compared
    ]  # fmt: skip
    return pd.DataFrame(records)


def coverage_frame(comparison: PaperComparison) -> pd.DataFrame:
    """A row for each cell of the paper's table: whether this study fills it, and what is missing if it does not."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"method": c.method, "dataset": c.dataset, "train_ratio": c.train_ratio, "state": c.state, "missing": c.why}
            for c in comparison.coverage
        ]
    )


def paper_latex(comparison: PaperComparison) -> str:
    """A ``table`` environment (booktabs, xcolor) of the paper's and our values by metric; grey if they are not comparable."""
    columns = "ll" + "rr" * len(comparison.metrics)
    names = [METRIC_NAMES.get(metric, metric) for metric in comparison.metrics]
    head = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape_latex(name)}}}" for name in names)
    lines = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{escape_latex(_caption(comparison))}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf" & & {head} \\",
        "Variant & The paper's" + " & paper & ours" * len(names) + r" \\", r"\midrule",
    ]  # fmt: skip
    for entry in comparison.entries:
        cells = [escape_latex(entry.label), escape_latex(entry.method)]
        for value in entry.compared:
            ours = number(value.ours, _digits(comparison, value.metric), r" \pm ")
            pair = [value.paper or "--", "--" if value.ours is None else f"${ours}${_MARKS.get(value.verdict, '')}"]
            grey = value.verdict in ("not comparable", "no interval")
            cells += [rf"\textcolor{{gray}}{{{text}}}" if grey else text for text in pair]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


_MARKS = {"within": r"$^{=}$", "better": r"$^{+}$", "worse": r"$^{-}$"}


def _caption(comparison: PaperComparison) -> str:
    facts = comparison.paper.table(comparison.table)
    where = f" on {comparison.dataset}" if comparison.dataset else ""
    facts_paper = comparison.paper.facts
    title = f"{facts.title} of {facts_paper.short} ({facts_paper.source}){where} and our mean ± 95 % Student-t interval."
    legend = "Marks: = the paper's value lies in our interval, + ours is better, - ours is worse. Grey values are not comparable."
    reasons = [f"Not comparable by {reason.kind}: {reason.text}." for reason in comparison.shared]
    return " ".join([title, legend, *reasons, *([comparison.paper.facts.caveat] if comparison.paper.facts.caveat else [])])


def paper_content(comparison: PaperComparison) -> dict[str, Any]:
    """Everything that the page's template prints."""
    facts = comparison.paper.table(comparison.table)
    return {
        "title": facts.title,
        "what": facts.what,
        "says": facts.says,
        "short": comparison.paper.facts.short,
        "source": comparison.paper.facts.source,
        "caveat": comparison.paper.facts.caveat,
        "dataset": comparison.dataset,
        "data_text": data_text(comparison),
        "not_printed": ", ".join(comparison.paper.facts.not_printed),
        "metrics": [METRIC_NAMES.get(metric, metric) for metric in comparison.metrics],
        "rows": [_row(comparison, entry) for entry in comparison.entries] if has_values(comparison) else [],
        "shared": [{"kind": kind.capitalize(), "text": "; ".join(texts)} for kind, texts in by_kind(comparison.shared).items()],
        "notes": _notes(comparison),
        "coverage": _matrix(comparison.paper, comparison.coverage),
        "coverage_text": coverage_text(comparison.coverage),
        "symbols": [(SYMBOLS[state], MEANINGS[state]) for state in _states(comparison.coverage)],
        "missing": _missing(comparison.paper, comparison.coverage),
    }


def has_values(comparison: PaperComparison) -> bool:
    """Whether the paper prints a value for any of these rows on this data set."""
    return any(value.paper is not None for entry in comparison.entries for value in entry.compared)


def data_text(comparison: PaperComparison) -> str:
    """The sentence that names the column of the paper's table that our data set is compared with."""
    ours = comparison.our_dataset or "our data"
    if comparison.dataset is None:
        columns = ", ".join(comparison.paper.datasets(comparison.table))
        return f"Our data set, {ours}, is not among its columns ({columns}), so its values are not compared with ours"
    return f"The paper's {comparison.dataset} is compared with our {ours}"


def by_kind(reasons: Sequence[Reason]) -> dict[str, list[str]]:
    """The texts of the reasons by kind, in their order."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        found.setdefault(reason.kind, []).append(reason.text)
    return found


def verdict_text(value: ComparedValue) -> str:
    """A verdict as text; for values that are not comparable, with the kinds of reasons."""
    if value.verdict == "not comparable":
        return f"not comparable: {', '.join(by_kind(value.reasons))}"
    return _VERDICTS[value.verdict]


def _row(comparison: PaperComparison, entry: Entry) -> dict[str, Any]:
    return {
        "label": entry.label,
        "method": entry.method,
        "seeds": entry.seeds,
        "compared": [
            {
                "paper": value.paper or "–",
                "ours": number(value.ours, _digits(comparison, value.metric)),
                "grey": value.verdict in ("not comparable", "not printed", "no interval", "not measured"),
                "kind": value.verdict if value.verdict in ("better", "worse") else "",
            }
            for value in entry.compared
        ],
        "verdict": _row_verdict(entry),
        "own": _own(comparison, entry),
    }


def _row_verdict(entry: Entry) -> str:
    """One verdict if all metrics agree, else each verdict with its metrics."""
    by_verdict: dict[str, list[str]] = {}
    for value in entry.compared:
        if value.verdict != "not printed":
            by_verdict.setdefault(verdict_text(value), []).append(METRIC_NAMES.get(value.metric, value.metric))
    if not by_verdict:
        return "not printed"
    if len(by_verdict) == 1:
        return next(iter(by_verdict))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in by_verdict.items())


def _own(comparison: PaperComparison, entry: Entry) -> list[str]:
    """The reasons of this row that not all rows share."""
    reasons = dict.fromkeys(reason for value in entry.compared if value.paper for reason in value.reasons)
    return [f"{reason.kind}: {reason.text}" for reason in reasons if reason not in comparison.shared]


def _digits(comparison: PaperComparison, metric: str) -> int:
    if metric not in ("rmse", "mae"):
        return 2
    return decimals(f.ours.mean for e in comparison.entries for f in e.compared if f.metric == metric and f.ours)


def _notes(comparison: PaperComparison) -> list[str]:
    if not has_values(comparison):
        return []
    notes = list(dict.fromkeys(note for entry in comparison.entries for note in entry.notes))
    return notes + ([comparison.paper.facts.facts_from] if comparison.paper.facts.facts_from else [])


def _states(cells: Sequence[Cell]) -> list[State]:
    there = {cell.state for cell in cells}
    return [state for state in SYMBOLS if state in there]


def coverage_text(cells: Sequence[Cell]) -> str:
    """The number of cells by state: ``5 of its 30 cells are filled by this study; 5 have no model here``."""
    counts = {state: sum(cell.state == state for cell in cells) for state in _states(cells)}
    rest = [f"{count} {MEANINGS[state]}" for state, count in counts.items() if state != "here"]
    return "; ".join([f"{counts.get('here', 0)} of its {len(cells)} cells are filled by this study", *rest])


def _matrix(paper: Paper, cells: Sequence[Cell]) -> dict[str, Any]:
    """The paper's table with a symbol in each cell; its tooltip says what is missing."""
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    few_shot = len({cell.train_ratio for cell in cells}) > 1
    rows: dict[str, list[dict[str, str]]] = {}
    for cell in cells:
        label = f"{cell.method}, {100 * cell.train_ratio:g} %" if few_shot else cell.method
        rows.setdefault(label, []).append({"symbol": SYMBOLS[cell.state], "why": cell.why or MEANINGS[cell.state]})
    return {"datasets": datasets, "rows": [{"label": label, "cells": line} for label, line in rows.items()]}


def _missing(paper: Paper, cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The missing parts: models by reason, and data sets with the names of their files."""
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


def terminal_paper(comparisons: Sequence[PaperComparison]) -> list[RenderableType]:
    """The terminal's output after a run or a report: a table for each published one, with reasons, caveat and coverage."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = []
    for one in comparisons:
        title = f"{one.paper.facts.short}, {one.paper.table(one.table).title}"
        notes = [f"Not comparable by {reason.kind}: {reason.text}." for reason in one.shared]
        notes += [one.paper.facts.caveat_short or one.paper.facts.caveat] if one.paper.facts.caveat else []
        notes.append(f"{title}: {coverage_text(one.coverage)}.")
        if not has_values(one):
            says = one.paper.table(one.table).says
            shown.append(Text("\n".join([f"{title}. {data_text(one)}.", *([says] if says else []), *notes])))
            continue
        table = Table(title=f"{title}: paper | ours", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("variant", overflow="fold")
        for metric in one.metrics:
            table.add_column(METRIC_NAMES.get(metric, metric), justify="right", no_wrap=True)
        table.add_column("verdict", overflow="fold")
        for entry in one.entries:
            cells = [f"{f.paper or '–'} | {number(f.ours, _digits(one, f.metric))}" for f in entry.compared]
            grey = all(value.verdict in ("not comparable", "not printed") for value in entry.compared)
            table.add_row(*map(Text, (entry.label, *cells, _row_verdict(entry))), style="dim" if grey else None)
        shown.append(Group(table, Text("\n".join(notes))))
    return shown


def terminal_coverage(paper: Paper, table: str, cells: Sequence[Cell]) -> RenderableType:
    """The coverage matrix for ``stlab plan``: a symbol for each cell, and what is missing."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    matrix = _matrix(paper, cells)
    title = f"{paper.facts.short}, {paper.table(table).title}: {coverage_text(cells)}"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for name in matrix["datasets"]:
        shown.add_column(name, justify="center", overflow="fold")
    for row in matrix["rows"]:
        shown.add_row(row["label"], *(cell["symbol"] for cell in row["cells"]))
    notes = [", ".join(f"{SYMBOLS[state]} {MEANINGS[state]}" for state in _states(cells))]
    notes += [f"{missing['what']}: {missing['why']}" for missing in _missing(paper, cells)]
    notes += [paper.facts.caveat_short] if paper.facts.caveat_short else []
    return Group(Text(title), shown, Text("\n".join(notes)))
