"""The report of a study: tables, figures, and one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stlab.report.figures.choice import Picture, Pictures, draw
from stlab.report.figures.search import draw_search, read_search
from stlab.report.figures.style import render
from stlab.report.figures.tradeoff import cost_lines, tradeoff_frame, tradeoffs
from stlab.report.page import text
from stlab.report.page.cost import beside_forecast
from stlab.report.page.search_text import search_content
from stlab.report.paper.tables import coverage_frame, paper_content, paper_frame, paper_latex
from stlab.report.paper.verdicts import Beside, beside_paper
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.summary import (
    Row,
    Summary,
    anchor,
    best_variant,
    has_slot_of_week,
    lowest_mae,
    outcome,
    summarise,
    symbols_words,
)
from stlab.report.tables import comparison_text
from stlab.report.tables.ablation import (
    ablation_table,
    against_anchor,
    against_title,
    has_mape,
    has_missing,
    reference_label,
    table_decimals,
    to_latex,
)
from stlab.storage import Store, StudyDirectory, TrialDirectory, single_protocol, table_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FULL_WIDTH = 7.2  # inches of a figure that fills the page; narrower ones are not blown up, so that all have one size of type
_MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


def write_report(
    store: Store,
    name: str,
    study: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    *,
    directory: StudyDirectory | None = None,
    papers: Sequence[Beside] | None = None,
) -> str:
    """Write ``studies/<name>/report/``: ``index.html``, ``figures/*.png|pdf``, ``tables/ablation.csv|tex``; where the
    study names a published table, ``tables/paper_<table>.csv|tex`` and ``paper_<table>_coverage.csv``.

    Partial results will do: what is missing is said on the page.

    Args:
        study: the resolved study as a mapping. Unset: read from the study's folder.
        notes: lines for the reader, such as which baselines the data do not allow.
        directory: where results are read and the report goes. Unset: the study's own.
        papers: published tables beside these rows. Unset: those that the study names.

    Returns:
        Full path (or URI) of ``index.html``.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: its trials were made by different protocols.
    """
    directory = directory or StudyDirectory(store, name)
    rows = table_rows(directory.read_trials().to_pylist())
    search = read_search(store, name)
    study_yaml, study = _study(directory, study)
    axes = list(study["axes"]) if study.get("axes") is not None else None
    lines = summarise(rows, axes)
    pictures = draw(store, rows, lines)
    pictures.made += draw_search(search) if search else []
    store.delete_folder(directory.report_path("figures"))
    for picture in pictures.made:
        for kind in ("png", "pdf"):
            store.write(directory.report_path(f"figures/{picture.name}.{kind}"), render(picture.figure, kind))
    compared = compare(rows, axes, study, store)
    table = ablation_table(rows, axes, compared)
    store.write(directory.report_path("tables/ablation.csv"), table.to_csv(index=False).encode())
    store.write(directory.report_path("tables/ablation.tex"), to_latex(rows, axes, compared).encode())
    costs = tradeoff_frame(tradeoffs(rows, lines))
    store.write(directory.report_path("tables/tradeoff.csv"), costs.to_csv(index=False).encode())
    papers = beside_paper(store, rows, study, axes) if papers is None else papers
    for one in papers:
        stem = directory.report_path(f"tables/paper_{one.table}")
        store.write(f"{stem}.csv", paper_frame(one).to_csv(index=False).encode())
        store.write(f"{stem}.tex", paper_latex(one).encode())
        store.write(f"{stem}_coverage.csv", coverage_frame(one).to_csv(index=False).encode())
    content = _content(store, name, rows, lines, compared, pictures, {"text": study_yaml, **study}, list(notes))
    content |= {"papers": [paper_content(one) for one in papers], "search": search and search_content(search)}
    page = render_page("page.html.j2", content)
    store.write(directory.report_path(), page.encode())
    return store.address(directory.report_path())


def report_figures(store: Store, name: str) -> dict[str, Figure]:
    """The figures of a study's report by name, drawn afresh from its directories.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: its trials were made by different protocols.
    """
    directory = StudyDirectory(store, name)
    rows = table_rows(directory.read_trials().to_pylist())
    search = read_search(store, name)
    study = _study(directory, None)[1]
    axes = list(study["axes"]) if study.get("axes") is not None else None
    made = draw(store, rows, summarise(rows, axes)).made + (draw_search(search) if search else [])
    return {picture.name: picture.figure for picture in made}


def _study(directory: StudyDirectory, study: Mapping[str, Any] | None) -> tuple[str | None, Mapping[str, Any]]:
    """The study's YAML and the study itself, each from the other where only one is there."""
    import yaml

    written = directory.read_study()
    if study is None:
        study = yaml.safe_load(written) if written else {}
    elif written is None:
        written = yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True)
    return written, study


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """A template of this package with its content; a name that the content lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("stlab", "report/page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)


def _content(
    store: Store,
    name: str,
    rows: Sequence[Row],
    lines: Sequence[Summary],
    compared: Sequence[Comparison],
    pictures: Pictures,
    study: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything the template prints; all numbers are text by now."""
    protocol = single_protocol(rows)
    return {
        "name": name,
        "description": study.get("description") or "",
        "datasets": _distinct(rows, "dataset"),
        "protocol": text.protocol_words(protocol),
        "scale": f"{protocol.get('scale', 1.0):g}",
        "counts": _counts(rows),
        "caveats": text.caveats(rows, protocol),
        "headline": text.headline(lines),
        "table": _table(lines, compared),
        "versus": _versus(lines, compared),
        "extent": "horizons and nodes" if protocol.get("family") == "sensors" else "horizons, cells and channels",
        "has_mape": has_mape(lines),
        "has_missing": has_missing(lines),
        "against": against_title(lines),
        "anchor": _anchor_words(lines),
        "symbols": symbols_words(lines),
        "verdicts": text.verdicts(lines),
        "notes": [*notes, *pictures.left_out, *_version_notes(rows)],
        "pictures": [inline(picture) for picture in pictures.made],
        "cost": cost_lines(tradeoffs(rows, lines), table_decimals(lines)),
        "devices": _distinct(rows, "device"),
        "precisions": _distinct(rows, "precision"),
        "lost": [_lost(store, row) for row in rows if outcome(row) != "finished"],
        "study_yaml": study.get("text"),
        "several": study.get("several", []),
        "reused": any(row.get("reused_from") for row in rows),
        "forecast": beside_forecast(store, study.get("several") or [name], rows, lines),
        "trials": [_trial(row) for row in rows],
        "code_versions": _distinct(rows, "code_version"),
        "data_hashes": _distinct(rows, "data_sha256"),
        "started": _started(rows),
    }


def _anchor_words(lines: Sequence[Summary]) -> str:
    """What the variants stand against; where an axis changes the data, each has its own."""
    held = anchor(lines)
    if held is None:
        return "the best baseline"
    own = {one.label for line in lines if not line.baseline and (one := anchor(lines, line))}
    return "the best baseline" if len(own) > 1 and not has_slot_of_week(lines) else text.anchor_words(held)


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
    """The column of differences from the reference: its title, its legend, and a sentence a variant; empty without one."""
    name = reference_label(compared)
    legend = comparison_text.legend(compared, f"vs {name}", name)
    told = comparison_text.tell(compared, table_decimals(lines))
    return {"name": name, "legend": legend, "told": told} if legend else {}


def _table(lines: Sequence[Summary], compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    digits, best, best_mae = table_decimals(lines), best_variant(lines), lowest_mae(lines)
    held = {one.label: one for one in compared}
    return [
        {
            "label": line.label,
            "baseline": line.baseline,
            "best": line is best and line.test_rmse is not None,
            "best_mae": line is best_mae,
            "seeds": text.seeds(line),
            "incomplete": bool(line.failed or line.missing),
            "rmse": text.number(line.test_rmse, digits),
            "mae": text.number(line.test_mae, digits),
            "mape": text.number(line.test_mape, 2),
            "unmasked": f"{text.number(line.test_rmse_unmasked, digits)} / {text.number(line.test_mae_unmasked, digits)}",
            "val_rmse": text.number(line.val_rmse, digits),
            "trainable": text.count(line.trainable_params),
            "against": (against := against_anchor(line, lines)),
            "versus": comparison_text.parts(held.get(line.label), digits),
            "versus_verdict": comparison_text.verdict(held.get(line.label)),
            "verdict": {"−": "better", "+": "worse"}.get(against[0], ""),
        }
        for line in lines
    ]


def _lost(store: Store, row: Row) -> dict[str, Any]:
    """A trial without a result: why, and the tail of its log where one was kept."""
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


def inline(picture: Picture) -> dict[str, str]:
    """A picture as a data URI: as an image, its ids and styles cannot meet another's."""
    content = base64.b64encode(render(picture.figure, picture.inline)).decode()
    return {
        "name": picture.name,
        "title": picture.title,
        "caption": picture.caption,
        "share": f"{min(1.0, picture.figure.get_figwidth() / _FULL_WIDTH):.2f}",
        "source": f"data:{_MEDIA[picture.inline]};base64,{content}",
    }
