"""Errors at chosen steps ahead, as papers on traffic print them: for the page, for LaTeX and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.report.page.text import number
from stlab.report.paper.data_facts import seen_data
from stlab.report.statistics.summary import Interval, Row, Summary
from stlab.report.tables.ablation import escape_latex
from stlab.report.tables.lines import has_mape, table_decimals
from stlab.storage import Store, TrialDirectory, outcome

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = 0
"""Stands for all steps together."""
_TITLES = {"mae": "MAE", "rmse": "RMSE", "mape": "MAPE, %"}


@dataclass(frozen=True)
class HorizonTable:
    """The errors of each line at some steps ahead, and over all steps."""

    steps: Mapping[int, str]
    """Step → its title, ``15 min`` or ``step 3``; ``AVERAGE`` → ``average``."""
    metrics: tuple[str, ...]
    """``mae``, ``rmse`` and, for sensors, ``mape``."""
    lines: Sequence[Summary]
    errors: Mapping[tuple[str, int, str], Interval]
    """(label, step, metric) → mean over seeds; without the lines that were not tested."""
    digits: int

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(_TITLES[metric] for metric in self.metrics)

    def text(self, label: str, step: int, metric: str) -> str:
        """``2.345 ± 0.012``, or a dash."""
        return number(self.errors.get((label, step, metric)), 2 if metric == "mape" else self.digits)

    def rows(self) -> list[dict[str, object]]:
        """For the page: label, whether it is a baseline, and all cells from left to right."""
        columns = [(step, metric) for step in self.steps for metric in self.metrics]
        return [
            {"label": line.label, "baseline": line.baseline, "cells": [self.text(line.label, *column) for column in columns]}
            for line in self.lines
        ]


def horizon_table(store: Store, rows: Sequence[Row], lines: Sequence[Summary], horizons: Sequence[int]) -> HorizonTable | None:
    """The table of a study's lines; None where no steps are asked for or nothing was tested."""
    metrics = ("mae", "rmse", *(("mape",) if has_mape(lines) else ()))
    errors: dict[tuple[str, int, str], Interval] = {}
    for line in lines if horizons else ():
        tables = [table for trial_id in line.trial_ids if (table := TrialDirectory(store, trial_id).read_horizon()) is not None]
        seeds = [{r["horizon"]: r for r in table.to_pylist() if r["segment"] == "test"} for table in tables]
        for metric in metrics:
            for step in horizons:
                values = [float(own[step][metric]) for own in seeds if step in own and own[step][metric] is not None]
                if interval := Interval.of(values):
                    errors[line.label, step, metric] = interval
            if (whole := getattr(line, f"test_{metric}")) is not None:
                errors[line.label, AVERAGE, metric] = whole
    if not any(step != AVERAGE for _, step, _ in errors):
        return None
    return HorizonTable({**_titles(store, rows, horizons), AVERAGE: "average"}, metrics, lines, errors, table_decimals(lines))


def _titles(store: Store, rows: Sequence[Row], horizons: Sequence[int]) -> dict[int, str]:
    """Step → how far ahead it is, by the timestamps of the forecasts."""
    tested = next((row for row in rows if outcome(row) == "finished" and row.get("test_rmse") is not None), None)
    seen = seen_data(store, tested) if tested else None
    if seen is None or seen.step_minutes is None:
        return {step: f"step {step}" for step in horizons}
    return {step: _duration(step * seen.step_minutes) for step in horizons}


def _duration(minutes: float) -> str:
    return f"{minutes / 60:g} h" if minutes >= 60 and minutes % 30 == 0 else f"{minutes:g} min"


def horizon_frame(table: HorizonTable) -> pd.DataFrame:
    """One row for each line; columns ``<metric>_<step>`` and ``<metric>_average``, each with ``_ci95``."""
    import pandas as pd

    records = []
    for line in table.lines:
        record: dict[str, object] = {"label": line.label, "baseline": line.baseline}
        for step in table.steps:
            for metric in table.metrics:
                interval, name = table.errors.get((line.label, step, metric)), f"{metric}_{step or 'average'}"
                record |= {name: interval and interval.mean, f"{name}_ci95": interval and interval.half_width}
        records.append(record)
    return pd.DataFrame(records)


def horizon_latex(table: HorizonTable) -> str:
    """A ``table*`` environment (needs booktabs and graphicx) with a group of columns for each step."""
    count = len(table.metrics)
    groups = " & ".join(["", *(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(title)}}}" for title in table.steps.values())]) + r" \\"
    rules = " ".join(rf"\cmidrule(lr){{{2 + count * i}-{1 + count * (i + 1)}}}" for i in range(len(table.steps)))
    header = " & ".join(["Model", *(escape_latex(title) for _ in table.steps for title in table.titles)]) + r" \\"
    body = [_latex_row(row) for row in table.rows() if not row["baseline"]]
    baselines = [_latex_row(row) for row in table.rows() if row["baseline"]]
    if body and baselines:
        body.append(r"\midrule")
    caption = r"Test errors by steps ahead, mean $\pm$ 95\,\% Student-$t$ interval over seeds."
    columns = rf"\begin{{tabular}}{{l{'c' * count * len(table.steps)}}}"
    opening = [r"\begin{table*}[t]", r"\centering", rf"\caption{{{caption}}}", r"\resizebox{\textwidth}{!}{%", columns, r"\toprule"]
    closing = [r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""]
    return "\n".join([*opening, groups, rules, header, r"\midrule", *body, *baselines, *closing])


def _latex_row(row: Mapping[str, object]) -> str:
    cells = row["cells"]
    assert isinstance(cells, list)
    shown = ["--" if cell == "–" else f"${cell}$".replace("±", r"\pm") for cell in cells]
    return " & ".join([escape_latex(str(row["label"])), *shown]) + r" \\"
