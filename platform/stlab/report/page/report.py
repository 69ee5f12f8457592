"""The report of a study: a page on its data set, or one over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stlab.report.page.across import across_figures, write_across_page
from stlab.report.page.study import study_figures, write_study_page
from stlab.storage import Store, StudyDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(store: Store, name: str, study: Mapping[str, Any] | None = None, notes: Sequence[str] = ()) -> str:
    """Write ``studies/<name>/report/`` (:func:`write_study_page`, or :func:`write_across_page` for a study on several data sets).

    Args:
        study: the resolved study as a mapping. Unset: read from the study's folder.
        notes: lines for the reader, such as which baselines the data do not allow.

    Returns:
        Full path (or URI) of ``index.html``.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: its trials on one data set were made by different protocols.
    """
    study = _study(store, name) if study is None else study
    if study.get("datasets"):
        return write_across_page(store, name, study, notes)
    return write_study_page(store, name, study or None, notes)


def report_figures(store: Store, name: str) -> dict[str, Figure]:
    """The figures of a study's report by name, drawn anew from its directories.

    Raises:
        UserError: the study has not been run.
        ProtocolMismatch: its trials on one data set were made by different protocols.
    """
    study = _study(store, name)
    return across_figures(store, name, study) if study.get("datasets") else study_figures(store, name)


def _study(store: Store, name: str) -> Mapping[str, Any]:
    import yaml

    return yaml.safe_load(StudyDirectory(store, name).read_study() or "{}") or {}
