"""A study's errors with models down and data sets across, as papers print them: for the page, for LaTeX, as CSV and as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.report.page.text import number
from stlab.report.paper.verdicts import PaperComparison
from stlab.report.statistics.across import ERRORS, Across, Error, error_of
from stlab.report.statistics.summary import Row, Summary
from stlab.report.tables.ablation import escape_latex
from stlab.report.tables.lines import table_decimals
from stlab.storage import outcome

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table as RichTable

Papers = Mapping[str, Sequence[PaperComparison]]
"""Data set → the published tables that its rows are compared with."""
_WIDEST_NAME = 24


@dataclass(frozen=True)
class Cell:
    """One model on one data set."""

    text: Mapping[Error, str]
    """``6.702 ± 0.297``; empty without a result."""
    mark: Mapping[Error, str]
    """``best``, ``second`` or empty."""
    printed: Mapping[Error, str]
    """The figure of the paper, as printed; empty where there is none."""
    seeds: str
    """``2 of 3`` where seeds are missing, else empty."""
    reason: str
    """Why there is no result; empty where there is one."""


@dataclass(frozen=True)
class AcrossLine:
    """A model's cells, one for each data set."""

    label: str
    baseline: bool
    cells: tuple[Cell, ...]
    mean_rank: Mapping[Error, str]


def across_lines(found: Across, papers: Papers | None = None) -> list[AcrossLine]:
    """All lines of the table, models first."""
    digits = {name: table_decimals(found.lines[name]) for name in found.datasets}
    printed = _printed(papers or {})
    lines = []
    for label in found.labels:
        own = [found.line(name, label) for name in found.datasets]
        cells = tuple(_cell(found, name, label, line, digits[name], printed) for name, line in zip(found.datasets, own, strict=True))
        ranks = {error: _mean_rank(found, label, error) for error in ERRORS}
        lines.append(AcrossLine(label, any(line.baseline for line in own if line), cells, ranks))
    return lines


def _cell(found: Across, name: str, label: str, line: Summary | None, digits: int, printed: Mapping[tuple[str, str, str], str]) -> Cell:
    errors = {error: error_of(line, error) for error in ERRORS}
    has_result = errors["rmse"] is not None
    return Cell(
        text={error: number(value, digits) if value else "" for error, value in errors.items()},
        mark={error: found.marks.get((name, label, error), "") for error in ERRORS},
        printed={error: printed.get((name, label, error), "") for error in ERRORS},
        seeds=f"{line.n} of {line.planned}" if line is not None and has_result and line.n < line.planned else "",
        reason="" if has_result else why_missing(found, name, label),
    )


def why_missing(found: Across, name: str, label: str) -> str:
    """Why a model or a baseline has no result on a data set."""
    line = found.line(name, label)
    if line is None:
        is_baseline = any(own.label == label and own.baseline for part in found.datasets for own in found.lines[part])
        return "these data do not allow it" if is_baseline else "not run on this data set, as the study says"
    own = [row for row in found.rows[name] if str(row.get("variant")) == line.variant and _is_at(row, line)]
    errors = [str(row["error"]) for row in own if outcome(row) == "failed" and row.get("error")]
    if errors:
        return f"failed: {errors[0]}"
    return "failed" if line.failed else "not run, or not to its end"


def _is_at(row: Row, line: Summary) -> bool:
    """Whether a row is at the line's point of the axes."""
    return all(row.get(f"param.{path}") == value for path, value in line.axis_values.items())


def cells_frame(found: Across, papers: Papers | None = None) -> pd.DataFrame:
    """All cells, one a row: data set, model, its errors with their intervals, rank, mark, the printed figure, the reason for a dash."""
    import pandas as pd

    records = []
    lines = across_lines(found, papers)
    for line in lines:
        for name, cell in zip(found.datasets, line.cells, strict=True):
            own = found.line(name, line.label)
            record: dict[str, object] = {"dataset": name, "model": line.label, "baseline": line.baseline}
            record |= {"information": own and own.information, "seeds": own.n if own else 0, "reason": cell.reason or None}
            for error in ERRORS:
                interval = error_of(own, error)
                record |= {f"test_{error}_mean": interval and interval.mean, f"test_{error}_ci95": interval and interval.half_width}
                record |= {f"rank_{error}": _rank_of(found, name, line.label, error), f"mark_{error}": cell.mark[error] or None}
                record[f"paper_{error}"] = cell.printed[error] or None
            records.append(record)
    return pd.DataFrame(records)


def across_frame(found: Across) -> pd.DataFrame:
    """The table as CSV: a row for each model, and for each data set its mean errors, with the mean ranks at the end."""
    import pandas as pd

    records = []
    for label in found.labels:
        lines = {name: found.line(name, label) for name in found.datasets}
        record: dict[str, object] = {"model": label}
        for name, line in lines.items():
            for error in ERRORS:
                interval = error_of(line, error)
                record |= {f"{name}_{error}": interval and interval.mean, f"{name}_{error}_ci95": interval and interval.half_width}
        for error in ERRORS:
            ranks, relative = found.ranks.get(error), found.relative.get(error, {}).get(label)
            record[f"mean_rank_{error}"] = ranks.mean.get(label) if ranks else None
            for part in ("ratio", "low", "high", "wins", "ties", "losses"):
                record[f"relative_{error}_{part}"] = relative and getattr(relative, part)
        records.append(record)
    return pd.DataFrame(records)


def pairs_frame(found: Across) -> pd.DataFrame:
    """Every pair of ranked models: their mean ranks, whether these differ (Nemenyi), and p of Wilcoxon's test after Holm's correction."""
    import pandas as pd

    columns = ["error", "model", "other", "mean_rank", "other_mean_rank", "ranks_differ", "wilcoxon_p_holm"]
    records = []
    for error, ranks in found.ranks.items():
        if ranks is not None:
            means = ranks.mean
            for (one, other), p in ranks.wilcoxon.items():
                records.append((error, one, other, means[one], means[other], ranks.differ(one, other), p))
    return pd.DataFrame(records, columns=columns)


def across_latex(found: Across, error: Error, caption: str) -> str:
    """A ``table*`` environment (needs booktabs and graphicx) with one error: models down, data sets across.

    Bold: the best model, underlined: the second, each where it can be told from the next one.
    """
    lines = across_lines(found)
    ranked = found.ranks.get(error) is not None
    header = " & ".join(["Model", *map(escape_latex, found.datasets), *(["Mean rank"] if ranked else [])]) + r" \\"
    body = [_latex_line(line, error, ranked) for line in lines if not line.baseline]
    baselines = [_latex_line(line, error, ranked) for line in lines if line.baseline]
    if body and baselines:
        body.append(r"\midrule")
    columns = rf"\begin{{tabular}}{{l{'c' * len(found.datasets)}{'c' * ranked}}}"
    opening = [r"\begin{table*}[t]", r"\centering", rf"\caption{{{escape_latex(caption)}}}", r"\resizebox{\textwidth}{!}{%", columns]
    closing = [r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""]
    return "\n".join([*opening, r"\toprule", header, r"\midrule", *body, *baselines, *closing])


def _latex_line(line: AcrossLine, error: Error, ranked: bool) -> str:
    cells = [escape_latex(line.label)]
    for cell in line.cells:
        text = cell.text[error].replace("±", r"\pm")
        shown = rf"$\mathbf{{{text}}}$" if cell.mark[error] == "best" else rf"$\underline{{{text}}}$" if cell.mark[error] else f"${text}$"
        cells.append(shown if text else "--")
    if ranked:
        cells.append(line.mean_rank[error].replace("–", "--"))
    return " & ".join(cells) + r" \\"


def _printed(papers: Papers) -> dict[tuple[str, str, str], str]:
    """(data set, label, error) → the paper's figure, as printed in the first of its tables that has one."""
    found: dict[tuple[str, str, str], str] = {}
    for name, compared in papers.items():
        for one in compared:
            for entry in one.entries:
                for value in entry.compared:
                    if value.metric in ERRORS and value.paper is not None:
                        found.setdefault((name, entry.label, value.metric), value.paper)
    return found


def _mean_rank(found: Across, label: str, error: Error) -> str:
    ranks = found.ranks.get(error)
    return f"{ranks.mean[label]:.2f}" if ranks and label in ranks.labels else "–"


def _rank_of(found: Across, name: str, label: str, error: Error) -> float | None:
    ranks = found.ranks.get(error)
    if ranks is None or label not in ranks.labels:
        return None
    return float(ranks.by_dataset[found.datasets.index(name), ranks.labels.index(label)])


def terminal_across(found: Across, width: int = 100) -> RichTable:
    """The table for a terminal of ``width`` columns: RMSE alone, models down, data sets across. Without intervals if they do not fit.

    Bold: marked as the best, underlined: as the second.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    lines = across_lines(found)
    names = max((len(line.label) for line in lines), default=0)
    columns = [max(len(name), *(len(line.cells[at].text["rmse"]) for line in lines)) for at, name in enumerate(found.datasets)]
    fits = min(names, _WIDEST_NAME) + sum(columns) + 2 * len(columns) + 9 <= width
    table.add_column("test RMSE", overflow="fold", min_width=min(names, _WIDEST_NAME if fits else _WIDEST_NAME // 2))
    for name in [*found.datasets, *(["rank"] if found.ranks.get("rmse") else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    styles = {"best": "bold", "second": "underline"}
    for index, line in enumerate(lines):
        texts = [cell.text["rmse"] if fits else cell.text["rmse"].partition(" ±")[0] for cell in line.cells]
        cells = [Text(text or "–", style=styles.get(cell.mark["rmse"], "")) for text, cell in zip(texts, line.cells, strict=True)]
        ranks = [Text(line.mean_rank["rmse"])] if found.ranks.get("rmse") else []
        ends = index + 1 < len(lines) and lines[index + 1].baseline and not line.baseline
        table.add_row(Text(line.label), *cells, *ranks, style="dim" if line.baseline else None, end_section=ends)
    return table
