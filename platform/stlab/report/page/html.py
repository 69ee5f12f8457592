"""Parts that every HTML page of a report uses: the templates, and figures inside the page and beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

from stlab.report.figures.study_figures import ReportFigure
from stlab.report.figures.style import render
from stlab.storage import StudyDirectory

_FULL_WIDTH = 7.2
"""Inches of a figure that fills the page. A narrower figure keeps its size, so that the type is equally large in all."""
_MAIN = re.compile(r"<main>(.*)</main>", re.DOTALL)
_MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """Fill a template of this package; a name that the content lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("stlab", "report/page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)


def main_of(page: str, part: str) -> str:
    """The content of a page without its head, to stand in another page; ids of figures begin with the name of the part."""
    main = _MAIN.search(page)
    assert main is not None
    return main[1].replace('<figure id="', f'<figure id="{part}-')


def write_figures(directory: StudyDirectory, figures: Iterable[ReportFigure]) -> list[dict[str, str]]:
    """Write ``figures/*.png|pdf`` of a report; earlier figures are deleted.

    Returns:
        The figures for the template, as data URIs. An image keeps its ids and styles apart from those of other figures.
    """
    directory.store.delete_folder(directory.report_path("figures"))
    embedded = []
    for one in figures:
        content = {kind: render(one.figure, kind) for kind in dict.fromkeys(("png", "pdf", one.page_format))}
        for kind in ("png", "pdf"):
            directory.store.write(directory.report_path(f"figures/{one.name}.{kind}"), content[kind])
        embedded.append(_embedded(one, content[one.page_format]))
    return embedded


def _embedded(one: ReportFigure, content: bytes) -> dict[str, str]:
    return {
        "name": one.name,
        "title": one.title,
        "caption": one.caption,
        "share": f"{min(1.0, one.figure.get_figwidth() / _FULL_WIDTH):.2f}",
        "source": f"data:{_MEDIA[one.page_format]};base64,{base64.b64encode(content).decode()}",
    }
