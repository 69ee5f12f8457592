"""The field ``paper`` of a study: which row of a published table each variant is, and whether all the names exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stlab.errors import StudyError
from stlab.papers import Paper, load_paper
from stlab.study.errors import Problem, problem
from stlab.study.source import StudySource, did_you_mean
from stlab.study.spec import PaperSpec, StudySpec


def paper_rows(spec: PaperSpec, paper: Paper, table: str, variants: Iterable[str]) -> dict[str, str]:
    """Variant → the paper's method, by equal name or by ``paper.rows``, for the methods that this table has."""
    methods = paper.methods(table)
    same = {variant: variant for variant in variants if variant in methods}
    return {variant: method for variant, method in {**same, **spec.rows}.items() if method in methods}


def paper_problems(study: StudySpec, source: StudySource | None = None) -> list[Problem]:
    """The problems of the study's ``paper``: its table, data set and methods must be in the paper, and its variants in the study."""
    spec = study.paper
    if spec is None:
        return []
    try:
        paper = load_paper(spec.file)
    except StudyError as error:
        return [problem(str(error), ("paper", "file"), source)]
    problems = [
        problem(f"there is no table {table!r} in {spec.file}.{_listed(table, paper.facts.tables)}", ("paper", "table"), source)
        for table in spec.tables
        if table not in paper.facts.tables
    ]
    if problems:
        return problems
    datasets = list(dict.fromkeys(name for table in spec.tables for name in paper.datasets(table)))
    if spec.dataset is not None and spec.dataset not in datasets:
        message = f"there is no data set {spec.dataset!r} in {', '.join(spec.tables)}.{_listed(spec.dataset, datasets)}"
        problems.append(problem(message, ("paper", "dataset"), source))
    if spec.dataset is not None and study.datasets:
        message = "this study has several data sets, each of which is found by its name in datasets. Leave it out."
        problems.append(problem(message, ("paper", "dataset"), source))
    methods = dict.fromkeys(name for table in spec.tables for name in paper.methods(table))
    for variant, method in spec.rows.items():
        if variant not in study.variants:
            message = f"there is no variant {variant!r} in this study.{_listed(variant, study.variants)}"
            problems.append(problem(message, ("paper", "rows", variant), source))
        if method not in methods:
            message = f"there is no row {method!r} in {', '.join(spec.tables)}.{_listed(method, methods)}"
            problems.append(problem(message, ("paper", "rows", variant), source))
    return problems


def _listed(name: str, known: Iterable[str] | Mapping[str, object]) -> str:
    names = list(known)
    return f"{did_you_mean(name, names)} Known: {', '.join(names)}."
