"""The report of a study: tables, figures, and one HTML page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stlab.report.figures.search import SearchResult, draw_search, read_search
from stlab.report.figures.study_figures import FigureSet, draw_figures
from stlab.report.figures.tradeoff import cost_lines, tradeoff_frame, tradeoffs
from stlab.report.page import text
from stlab.report.page.cost import estimated_and_actual_cost
from stlab.report.page.html import render_page, write_figures
from stlab.report.page.search_text import search_content
from stlab.report.paper.tables import coverage_frame, paper_content, paper_frame, paper_latex
from stlab.report.paper.verdicts import PaperComparison, compare_with_paper
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.days import OverDays, spread_over_days
from stlab.report.statistics.summary import Row, Summary, anchor, has_slot_of_week, summarise, symbols_text
from stlab.report.tables import comparison_text
from stlab.report.tables.ablation import ablation_table, to_latex
from stlab.report.tables.horizons import HorizonTable, horizon_frame, horizon_latex, horizon_table
from stlab.report.tables.lines import against_title, has_groups, has_mape, has_missing, table_decimals, table_lines
from stlab.storage import Store, StudyDirectory, TrialDirectory, outcome, single_protocol, table_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Results:
    """Everything that the report of a study is made from."""

    rows: list[Row]
    lines: list[Summary]
    axes: list[str] | None
    search: SearchResult | None
    study: Mapping[str, Any]
    study_yaml: str | None


def write_study_page(
    store: Store,
    name: str,
    study: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    *,
    directory: StudyDirectory | None = None,
    papers: Sequence[PaperComparison] | None = None,
    search: SearchResult | Literal["read"] | None = "read",
) -> str:
    """Write ``studies/<name>/report/``: ``index.html``, ``figures/*.png|pdf`` and ``tables/ablation.csv|tex``.

    For each published table that the study names, ``tables/paper_<table>.csv|tex`` and ``paper_<table>_coverage.csv`` are written too.
    A study that has not ended can be reported; the page then says what is missing.

    Args:
        study: the resolved study as a mapping. Unset: read from the study's folder.
        notes: lines for the reader, such as which baselines the data do not allow.
        directory: the folder that the results are read from and the report is written to. Unset: the study's own.
        papers: published tables compared with these rows. Unset: those that the study names.
        search: what its search found, if anything. Unset: read from the study's folder.

    Returns:
        Full path (or URI) of ``index.html``.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: its trials were made by different protocols.
    """
    directory = directory or StudyDirectory(store, name)
    found = _read_results(store, name, directory, study, search)
    figures = _draw(store, found)
    embedded = write_figures(directory, figures.figures)
    compared = compare(found.rows, found.axes, found.study, store)
    papers = compare_with_paper(store, found.rows, found.study, found.axes) if papers is None else papers
    over_days = spread_over_days(store, found.lines, single_protocol(found.rows).get("scale", 1.0))
    horizons = horizon_table(store, found.rows, found.lines, (found.study.get("report") or {}).get("horizons") or [])
    _write_tables(directory, found, compared, over_days, papers, horizons)
    content = _content(store, name, found, compared, figures, list(notes))
    content["horizons"] = horizons
    content["days"] = _days_text(found.lines, over_days)
    content["figures"] = embedded
    content |= {"papers": [paper_content(one) for one in papers], "search": found.search and search_content(found.search)}
    store.write(directory.report_path(), render_page("page.html.j2", content).encode())
    return store.address(directory.report_path())


def study_figures(store: Store, name: str) -> dict[str, Figure]:
    """The figures of a study's report by name, drawn anew from its directories.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: its trials were made by different protocols.
    """
    found = _read_results(store, name, StudyDirectory(store, name), None, "read")
    return {one.name: one.figure for one in _draw(store, found).figures}


def _read_results(
    store: Store, name: str, directory: StudyDirectory, study: Mapping[str, Any] | None, search: SearchResult | str | None
) -> _Results:
    rows = table_rows(directory.read_trials().to_pylist())
    search = read_search(store, name) if isinstance(search, str) else search
    study_yaml, study = _study(directory, study)
    axes = list(study["axes"]) if study.get("axes") is not None else None
    return _Results(rows, summarise(rows, axes), axes, search, study, study_yaml)


def _study(directory: StudyDirectory, study: Mapping[str, Any] | None) -> tuple[str | None, Mapping[str, Any]]:
    """The study as YAML and as a mapping; if only one of both exists, the other is made from it."""
    import yaml

    written = directory.read_study()
    if study is None:
        study = yaml.safe_load(written) if written else {}
    elif written is None:
        written = yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True)
    return written, study


def _draw(store: Store, found: _Results) -> FigureSet:
    figures = draw_figures(store, found.rows, found.lines)
    figures.figures += draw_search(found.search) if found.search else []
    return figures


def _write_tables(
    directory: StudyDirectory,
    found: _Results,
    compared: Sequence[Comparison],
    over_days: Mapping[str, OverDays],
    papers: Sequence[PaperComparison],
    horizons: HorizonTable | None,
) -> None:
    store, rows, axes = directory.store, found.rows, found.axes
    table = ablation_table(rows, axes, compared, over_days)
    store.write(directory.report_path("tables/ablation.csv"), table.to_csv(index=False).encode())
    store.write(directory.report_path("tables/ablation.tex"), to_latex(rows, axes, compared).encode())
    costs = tradeoff_frame(tradeoffs(rows, found.lines))
    store.write(directory.report_path("tables/tradeoff.csv"), costs.to_csv(index=False).encode())
    if horizons is not None:
        store.write(directory.report_path("tables/horizons.csv"), horizon_frame(horizons).to_csv(index=False).encode())
        store.write(directory.report_path("tables/horizons.tex"), horizon_latex(horizons).encode())
    for one in papers:
        stem = directory.report_path(f"tables/paper_{one.table}")
        store.write(f"{stem}.csv", paper_frame(one).to_csv(index=False).encode())
        store.write(f"{stem}.tex", paper_latex(one).encode())
        store.write(f"{stem}_coverage.csv", coverage_frame(one).to_csv(index=False).encode())


def _content(
    store: Store, name: str, found: _Results, compared: Sequence[Comparison], figures: FigureSet, notes: Sequence[str]
) -> dict[str, Any]:
    """Everything that the template prints; all numbers are text."""
    rows, lines, study = found.rows, found.lines, found.study
    protocol = single_protocol(rows)
    return {
        "name": name,
        "description": study.get("description") or "",
        "datasets": _distinct(rows, "dataset"),
        "protocol": text.protocol_text(protocol),
        "scale": f"{protocol.get('scale', 1.0):g}",
        "counts": _counts(rows),
        "caveats": text.caveats(rows, protocol),
        "headline": text.headline(lines),
        "table": _table(lines, compared),
        "versus": _versus(lines, compared),
        "extent": "horizons and nodes" if protocol.get("family") == "sensors" else "horizons, cells and channels",
        "has_mape": has_mape(lines),
        "has_missing": has_missing(lines),
        "has_groups": has_groups(lines),
        "against": against_title(lines),
        "anchor": _anchor_text(lines),
        "symbols": symbols_text(lines),
        "verdicts": text.verdicts(lines),
        "notes": [*notes, *figures.left_out, *_version_notes(rows)],
        "cost": cost_lines(tradeoffs(rows, lines), table_decimals(lines)),
        "cost_estimate": estimated_and_actual_cost(store, study.get("several") or [name], rows, lines),
        "devices": _distinct(rows, "device"),
        "precisions": _distinct(rows, "precision"),
        "lost": [_lost(store, row) for row in rows if outcome(row) != "finished"],
        "study_yaml": found.study_yaml,
        "several": study.get("several", []),
        "part_of": study.get("part_of", ""),
        "reused": any(row.get("reused_from") for row in rows),
        "trials": [_trial(row) for row in rows],
        "code_versions": _distinct(rows, "code_version"),
        "data_hashes": _distinct(rows, "data_sha256"),
        "started": _started(rows),
    }


def _anchor_text(lines: Sequence[Summary]) -> str:
    """The baseline that variants are compared with. An axis that changes the data gives several, one for each part."""
    held = anchor(lines)
    if held is None:
        return "the best baseline"
    own = {one.label for line in lines if not line.baseline and (one := anchor(lines, line))}
    return "the best baseline" if len(own) > 1 and not has_slot_of_week(lines) else text.anchor_text(held)


def _distinct(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(str(row[field]) for row in rows if row.get(field)))


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    trained = [row for row in rows if not row.get("baseline")]
    return {
        "variants": len({row["variant"] for row in trained}),
        "seeds": len({row["seed"] for row in trained}),
        "trials": len(trained),
        "baselines": len({row["variant"] for row in rows if row.get("baseline")}),
    }


def _started(rows: Sequence[Row]) -> str:
    days = sorted({f"{row['started_at']:%Y-%m-%d}" for row in rows if row.get("started_at")})
    return "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _version_notes(rows: Sequence[Row]) -> list[str]:
    versions = _distinct(rows, "code_version")
    return [f"These trials were made by {len(versions)} versions of the code."] if len(versions) > 1 else []


def _versus(lines: Sequence[Summary], compared: Sequence[Comparison]) -> dict[str, Any]:
    """The column of differences from the reference: name, legend and a sentence for each variant; empty without a reference."""
    name = comparison_text.reference_label(compared)
    legend = comparison_text.legend(compared, f"vs {name}", name)
    sentences = comparison_text.sentences(compared, table_decimals(lines), {line.label: line.information for line in lines})
    has_column = any(one.rmse is not None for one in compared)
    return {"name": name, "legend": legend, "sentences": sentences, "has_column": has_column} if legend else {}


def _days_text(lines: Sequence[Summary], over_days: Mapping[str, OverDays]) -> str:
    """What the intervals leave out, by the example of the best variant; a sentence without figures where nothing is dated."""
    best = min((line for line in lines if not line.baseline and line.label in over_days), key=_mean_rmse, default=None)
    if best is None:
        return "Intervals over seeds say nothing about other days."
    spread, digits = over_days[best.label], table_decimals(lines)
    return (
        f"Intervals over seeds say nothing about other days. The test segment has {spread.days} days; resampling them moves the RMSE of "
        f"{best.label} between {spread.low:.{digits}f} and {spread.high:.{digits}f} (95 %; every line's in tables/ablation.csv)."
    )


def _mean_rmse(line: Summary) -> float:
    return line.test_rmse.mean if line.test_rmse is not None else math.inf


def _table(lines: Sequence[Summary], compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    digits = table_decimals(lines)
    by_label = {one.label: one for one in compared}
    return [
        vars(line)
        | {
            "verdict": {"−": "better", "+": "worse"}.get(line.against_anchor[0], ""),
            "versus": comparison_text.parts(by_label.get(line.label), digits),
            "versus_verdict": comparison_text.verdict(by_label.get(line.label)),
        }
        for line in table_lines(lines)
    ]


def _lost(store: Store, row: Row) -> dict[str, Any]:
    """A trial without a result: the reason, and the tail of its log if one was kept."""
    failure = TrialDirectory(store, row["trial_id"]).read("failed.json") or {}
    status = outcome(row)
    diverged = status == "failed" and row.get("status") == "finished"
    unknown = "no reason was kept" if status == "failed" else "not run, or not to its end"
    if diverged:
        unknown = "its error is not a finite number"
    tail = failure.get("log_tail") or ""
    return {
        "variant": row["variant"],
        "seed": row["seed"],
        "trial_id": row["trial_id"],
        "status": status,
        "reason": row.get("error") or unknown,
        "epochs": row.get("epochs"),
        "tail": "\n".join(map(str, tail)) if isinstance(tail, list) else str(tail),
    }


def _trial(row: Row) -> dict[str, Any]:
    return {
        key: "–" if row.get(key) is None else row[key]
        for key in ("variant", "seed", "trial_id", "code_version", "reused_from")
    } | {"status": outcome(row)}
