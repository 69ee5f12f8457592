"""The report of a study on several data sets: one table over all of them, ranks, and a section for each."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from stlab.report.figures.axis import axis_name
from stlab.report.figures.axis_relative import relative_axis_caption, relative_axis_figure
from stlab.report.figures.ranks import critical_difference_figure
from stlab.report.figures.search import SearchResult, draw_search, read_search
from stlab.report.figures.study_figures import ReportFigure, axis_on_datasets, draw_figures
from stlab.report.page import across_text, text
from stlab.report.page.html import main_of, render_page, write_figures
from stlab.report.page.search_text import search_content
from stlab.report.page.study import write_study_page
from stlab.report.paper.verdicts import PaperComparison, compare_with_paper
from stlab.report.statistics.across import ERRORS, Across, across_datasets, parts_of
from stlab.report.statistics.axis_curves import panels_by_axis
from stlab.report.statistics.summary import symbols_text
from stlab.report.tables.across import across_frame, across_latex, across_lines, cells_frame, pairs_frame
from stlab.storage import Store, StudyDirectory, single_protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = re.compile(r"<header>.*?</header>", re.DOTALL)


class DatasetDirectory(StudyDirectory):
    """The part of a study's directory that is about one of its data sets; its report is in ``report/datasets/<data set>/``."""

    def __init__(self, store: Store, name: str, dataset: str) -> None:
        super().__init__(store, name)
        self.dataset = dataset

    def read_study(self) -> str | None:
        """None: the file holds all data sets, and the part is made from the study on this one alone."""
        return None

    def read_trials(self) -> pa.Table:
        """The trials on this data set."""
        whole = super().read_trials()
        return whole.filter(pc.equal(whole["dataset"], self.dataset))

    def report_path(self, name: str = "index.html") -> str:
        """Path of a file of this part's report, relative to the store."""
        return super().report_path(f"datasets/{self.dataset}/{name}")


def write_across_page(store: Store, name: str, study: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Write ``studies/<name>/report/``: ``index.html`` over all data sets, ``tables/``, ``figures/``, and a folder for each data set.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: trials on one data set were made by different protocols.
    """
    directory = StudyDirectory(store, name)
    found = _read(store, directory, study)
    by_part = {part: own | {"part_of": name} for part, own in parts_of(study, found.datasets).items()}
    papers = {part: compare_with_paper(store, found.rows[part], own, list(own["axes"])) for part, own in by_part.items()}
    search = read_search(store, name)
    sections = []
    for part, own in by_part.items():
        place = DatasetDirectory(store, name, part)
        mine = None if search is None or search.over else search.on(part)
        write_study_page(store, name, own, directory=place, papers=papers[part], search=mine)
        page = store.read(place.report_path()).decode()
        sections.append({"id": part, "main": _HEADER.sub("", main_of(page, part), count=1)})
    _write_tables(directory, found, papers)
    embedded = write_figures(directory, _figures(store, found, search))
    content = _content(found, study, papers, notes)
    content["left_out"] = directory.read_left_out()
    content |= {"figures": embedded, "sections": sections, "search": search and search_content(search)}
    content["study_yaml"] = directory.read_study()
    store.write(directory.report_path(), render_page("across.html.j2", content).encode())
    return store.address(directory.report_path())


def across_figures(store: Store, name: str, study: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of the page by name; those of a data set are named ``<data set>/<name>``."""
    found = _read(store, StudyDirectory(store, name), study)
    drawn = {one.name: one.figure for one in _figures(store, found, read_search(store, name))}
    for part in found.datasets:
        drawn |= {f"{part}/{one.name}": one.figure for one in draw_figures(store, found.rows[part], found.lines[part]).figures}
    return drawn


def _read(store: Store, directory: StudyDirectory, study: Mapping[str, Any]) -> Across:
    axes = list(study["axes"]) if study.get("axes") is not None else None
    return across_datasets(directory.read_trials().to_pylist(), axes, study, store)


def _figures(store: Store, found: Across, search: SearchResult | None) -> list[ReportFigure]:
    figures = []
    if (diagram := critical_difference_figure(found)) is not None:
        caption = (
            "Mean ranks over the data sets; 1 is the lowest error. A bar joins models whose mean ranks are closer than Nemenyi's critical "
            "difference, so that they cannot be told apart."
        )
        figures.append(ReportFigure("critical_difference", "Mean ranks", caption, diagram))
    tables = [(found.rows[part], found.lines[part]) for part in found.datasets]
    for path, several in panels_by_axis(store, tables).items():
        absolute = axis_on_datasets(path, several)
        if len(several) > 1:
            title, caption = f"Along {axis_name(path)}, relative to each lowest", relative_axis_caption(path, several)
            figures.append(ReportFigure(f"{absolute.name}_relative", title, caption, relative_axis_figure(path, several)))
        figures.append(absolute)
    # Where each data set has a search of its own, its figures are in its section, since their errors share no axis.
    return figures + (draw_search(search) if search is not None and search.over else [])


def _write_tables(directory: StudyDirectory, found: Across, papers: Mapping[str, Sequence[PaperComparison]]) -> None:
    store = directory.store
    cells = cells_frame(found, papers)
    buffer = io.BytesIO()
    cells.to_parquet(buffer, index=False)
    store.write(directory.report_path("tables/cells.parquet"), buffer.getvalue())
    store.write(directory.report_path("tables/cells.csv"), cells.to_csv(index=False).encode())
    store.write(directory.report_path("tables/datasets.csv"), across_frame(found).to_csv(index=False).encode())
    store.write(directory.report_path("tables/pairs.csv"), pairs_frame(found).to_csv(index=False).encode())
    for error in ERRORS:
        caption = f"Test {error.upper()}, mean ± 95 % Student-t interval over seeds. {across_text.marks_sentence(found)}"
        store.write(directory.report_path(f"tables/datasets_{error}.tex"), across_latex(found, error, caption).encode())


def _content(
    found: Across, study: Mapping[str, Any], papers: Mapping[str, Sequence[PaperComparison]], notes: Sequence[str]
) -> dict[str, Any]:
    lines = across_lines(found, papers)
    every = [row for rows in found.rows.values() for row in rows]
    trained = [row for row in every if not row.get("baseline")]
    return {
        "name": study["name"],
        "description": study.get("description") or "",
        "caveats": across_text.caveats_of(found),
        "notes": list(notes),
        "parts": list(found.datasets),
        "datasets": _datasets(found),
        "counts": {
            "variants": len({row["variant"] for row in trained}),
            "seeds": len({row["seed"] for row in trained}),
            "trials": len(trained),
        },
        "lines": lines,
        "missing": [(line.label, part, cell.reason) for line in lines for part, cell in zip(found.datasets, line.cells, strict=True)
                    if cell.reason and not line.baseline],
        "has_ranks": found.ranks.get("rmse") is not None,
        "has_printed": any(any(cell.printed.values()) for line in lines for cell in line.cells),
        "ranking": _ranking(found),
        "reference": across_text.reference_name(found) if len(set(found.references.values())) == 1 else "the reference",
        "marks": across_text.marks_sentence(found),
        "relative": across_text.relative_sentence(found),
        "sentences": [sentence for error in ERRORS for sentence in across_text.rank_sentences(found, error)],
        "limits": across_text.limits(found),
        "symbols": symbols_text([line for own in found.lines.values() for line in own]),
    }  # fmt: skip


def _datasets(found: Across) -> list[dict[str, Any]]:
    """The data sets by protocol, so that a protocol which all share is said once."""
    groups: dict[str, list[str]] = {}
    for part in found.datasets:
        groups.setdefault(text.protocol_text(single_protocol(found.rows[part])), []).append(part)
    return [{"protocol": protocol, "names": names} for protocol, names in groups.items()]


def _ranking(found: Across) -> list[dict[str, str]]:
    """The ranked models from the best mean rank by RMSE on."""
    by_rmse = found.ranks.get("rmse")
    if by_rmse is None:
        return []
    rows = []
    for label, mean in sorted(by_rmse.mean.items(), key=lambda item: item[1]):
        row = {"label": label, "rank_rmse": f"{mean:.2f}", "rank_mae": "–", "record": "–", "relative_rmse": "–", "relative_mae": "–"}
        if (by_mae := found.ranks.get("mae")) is not None and label in by_mae.labels:
            row["rank_mae"] = f"{by_mae.mean[label]:.2f}"
        for error in ERRORS:
            if (own := found.relative.get(error, {}).get(label)) is not None:
                interval = "" if own.low is None or own.high is None else f" [{own.low:.3f}, {own.high:.3f}]"
                row[f"relative_{error}"] = f"{own.ratio:.3f}{interval}"
                if error == "rmse":
                    row["record"] = f"{own.wins} / {own.ties} / {own.losses}"
        rows.append(row)
    return rows
