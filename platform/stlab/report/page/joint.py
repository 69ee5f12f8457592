"""Several studies on one page: a table for each data set, shared trials once, and figures along an axis for all data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stlab.errors import UserError
from stlab.report.figures.search import read_search
from stlab.report.figures.study_figures import ReportFigure, axis_on_datasets, draw_figures
from stlab.report.page.html import main_of, render_page, write_figures
from stlab.report.page.search_text import search_content
from stlab.report.page.study import write_study_page
from stlab.report.paper.verdicts import PaperComparison, compare_with_paper
from stlab.report.statistics.axis_curves import panels_by_axis
from stlab.report.statistics.summary import Row, summarise
from stlab.report.tables.joint import Section, sections
from stlab.storage import Store, StudyDirectory, table_rows
from stlab.storage.schema import trials_table
from stlab.study.paper import paper_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = re.compile(r"<h1>.*?</h1>", re.DOTALL)


@dataclass(frozen=True)
class JointSection:
    """One data set's part of a joint page."""

    dataset: str
    folder: str
    study: Mapping[str, Any]
    """All the studies in the form of one: their axes together, and the base fields and the reference that they agree on."""
    rows: list[Row]
    notes: list[str]
    papers: list[PaperComparison]


class JointDirectory(StudyDirectory):
    """``<storage>/reports/<A+B>/``: the trials of several studies, and their page."""

    def __init__(self, store: Store, studies: Sequence[str], section: str = "") -> None:
        super().__init__(store, " + ".join(studies))
        self.prefix = "/".join(part for part in ("reports", "+".join(studies), section) if part)


def read_sections(store: Store, names: Sequence[str]) -> list[JointSection]:
    """All trials of several studies, in a section for each data set.

    Raises:
        UserError: a study was not run, or is named twice.
        ProtocolMismatch: trials on the same data were made by different protocols; names the field.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the study {twice[0]} is named twice. Name each once.")
    rows = {name: table_rows(StudyDirectory(store, name).read_trials().to_pylist()) for name in names}
    found = []
    parts = sections(rows)
    for part in parts:
        studies = {name: _read_study(store, name) for name in part.own}
        study = _joint_study(studies, part.dataset if len(parts) > 1 else "")
        notes = [*part.notes, *(sentence for name in part.own for sentence in _searched(store, name))]
        folder = part.folder if len(parts) > 1 else ""
        found.append(JointSection(part.dataset, folder, study, part.rows, notes, _papers(store, part, studies)))
    return found


def write_joint_report(store: Store, names: Sequence[str]) -> tuple[str, list[JointSection]]:
    """Write ``reports/<A+B>/report/``: a table, figures and comparisons of all the studies' trials.

    Each data set has a section and a folder of its own, since errors in different units are not compared. A figure along an axis shows
    all data sets, one panel each.

    Returns:
        Full path (or URI) of ``index.html``, and the sections.

    Raises:
        UserError: a study was not run, or is named twice.
        ProtocolMismatch: trials on the same data were made by different protocols; names the field.
    """
    parts = read_sections(store, names)  # before anything is written
    paths = []
    for part in parts:
        directory = JointDirectory(store, names, part.folder)
        directory.store.write_table(f"{directory.prefix}/results/trials.parquet", trials_table(part.rows))
        title = str(part.study["name"])
        paths.append(write_study_page(store, title, part.study, part.notes, directory=directory, papers=part.papers))
    return (paths[0] if len(parts) == 1 else _write_together(store, names, parts)), parts


def joint_figures(store: Store, names: Sequence[str]) -> dict[str, Figure]:
    """The figures of a joint page by name. With several data sets, a section's figures are named ``<data set>/<name>``.

    Raises:
        UserError, ProtocolMismatch: as ``write_joint_report``.
    """
    parts = read_sections(store, names)
    found = {one.name: one.figure for one in _axis_figures(store, parts)}
    for part in parts:
        prefix = f"{part.folder}/" if part.folder else ""
        for one in draw_figures(store, part.rows, summarise(part.rows, list(part.study["axes"]))).figures:
            found[f"{prefix}{one.name}"] = one.figure
    return found


def _read_study(store: Store, name: str) -> Mapping[str, Any]:
    import yaml

    return yaml.safe_load(StudyDirectory(store, name).read_study() or "{}") or {}


def _joint_study(studies: Mapping[str, Mapping[str, Any]], dataset: str) -> dict[str, Any]:
    """The studies in the form of one."""
    axes: dict[str, list[Any]] = {}
    for study in studies.values():
        for path, values in (study.get("axes") or {}).items():
            axes[path] = list(dict.fromkeys([*axes.get(path, []), *values]))
    descriptions = dict.fromkeys(str(study["description"]).strip() for study in studies.values() if study.get("description"))
    references = {study.get("reference") for study in studies.values()}
    return {
        "name": " + ".join(studies) + (f": {dataset}" if dataset else ""),
        "description": " ".join(descriptions),
        "axes": axes,
        "several": list(studies),
        "base": _agreed([study.get("base") or {} for study in studies.values()]),
        "reference": references.pop() if len(references) == 1 else None,
    }


def _agreed(bases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Section → the fields that all bases set to the same value."""
    first, *others = bases
    return {
        section: {
            field: value
            for field, value in (fields or {}).items()
            if all((other.get(section) or {}).get(field) == value for other in others)
        }
        for section, fields in first.items()
    }


def _searched(store: Store, name: str) -> list[str]:
    """How a study's search went; the joint table lists only the configuration that it selected."""
    found = read_search(store, name)
    return [] if found is None else [f"{name}, {sentence}" for sentence in search_content(found)["sentences"]]


def _papers(store: Store, part: Section, studies: Mapping[str, Mapping[str, Any]]) -> list[PaperComparison]:
    """The published tables that the studies name, each compared with the rows of the studies that name it."""
    from stlab.papers import load_paper
    from stlab.study.spec import PaperSpec

    named: dict[tuple[str, str, str | None], list[str]] = {}
    specs = {name: PaperSpec.model_validate(study["paper"]) for name, study in studies.items() if study.get("paper")}
    for name, spec in specs.items():
        for table in spec.tables:
            named.setdefault((spec.file, table, spec.dataset), []).append(name)
    here = {str(row["trial_id"]): row for row in part.rows}
    found = []
    for (file, table, dataset), naming in named.items():
        rows: dict[str, Row] = {}
        methods: dict[str, str] = {}
        axes: dict[str, None] = {}
        for name in naming:
            own = part.own[name]
            mapped = paper_rows(specs[name], load_paper(file), table, dict.fromkeys(own.values()))
            # The study's own names are used, since on the page a shared trial bears the other study's name.
            rows |= {trial_id: {**here[trial_id], "variant": variant} for trial_id, variant in own.items()}
            methods |= mapped
            axes |= dict.fromkeys(studies[name].get("axes") or {})
        paper = {"file": file, "table": table, "dataset": dataset, "rows": methods}
        found += compare_with_paper(store, list(rows.values()), {"paper": paper}, list(axes))
    return found


def _axis_figures(store: Store, parts: Sequence[JointSection]) -> list[ReportFigure]:
    """One figure for each axis that several data sets have, with a panel for each data set."""
    tables = [(part.rows, summarise(part.rows, list(part.study["axes"]))) for part in parts] if len(parts) > 1 else []
    panels = panels_by_axis(store, tables)
    return [axis_on_datasets(path, several) for path, several in panels.items() if len(several) > 1]


def _write_together(store: Store, names: Sequence[str], parts: Sequence[JointSection]) -> str:
    """The page over all data sets: their common figures, then the sections' pages one after the other."""
    directory = JointDirectory(store, names)
    figures = _axis_figures(store, parts)
    embedded = write_figures(directory, figures)
    sections_html = []
    for part in parts:
        page = store.read(JointDirectory(store, names, part.folder).report_path()).decode()
        body = _TITLE.sub(f"<h1>{part.folder}</h1>", main_of(page, part.folder), count=1)
        sections_html.append({"id": part.folder, "main": body})
    content = {"name": " + ".join(names), "parts": sections_html, "figures": embedded}
    store.write(directory.report_path(), render_page("joint.html.j2", content).encode())
    return store.address(directory.report_path())
