"""Several studies on one page: comparable rows only, and what they share once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stlab.errors import UserError
from stlab.report.page import write_report
from stlab.report.statistics import Row
from stlab.results import Store, StudyDirectory, single_protocol, table_rows
from stlab.results.schema import trials_table

_NOT_COMPARED = ("param.resources.", "param.data.path", "param.train.checkpoint_seconds")
_MAIN = re.compile(r"<main>(.*)</main>", re.DOTALL)


class JointDirectory(StudyDirectory):
    """``<storage>/reports/<A+B>/``: the trials of several studies together, and their page."""

    def __init__(self, store: Store, studies: Sequence[str], section: str = "") -> None:
        super().__init__(store, " + ".join(studies))
        self.prefix = "/".join(part for part in ("reports", "+".join(studies), section) if part)


def write_joint_report(store: Store, names: Sequence[str]) -> tuple[str, list[tuple[dict[str, Any], list[Row]]]]:
    """Write ``reports/<A+B>/report/``: a table, figures and comparisons of all the studies' trials; a section a data set.

    Trials that studies share stand once, under the first one's name for them.

    Returns:
        Full path (or URI) of ``index.html``; and for each section the study it stands for (as a mapping) and its rows.

    Raises:
        UserError: a study was not run, or is named twice.
        ProtocolMismatch: trials on the same data were made by different protocols; names the field.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the study {twice[0]} is named twice. Name each once.")
    rows = {name: table_rows(StudyDirectory(store, name).read_trials().to_pylist()) for name in names}
    datasets = _by_data(rows)
    sections = []
    for section, of in datasets.items():
        merged, notes = _merged(of)
        single_protocol(merged)  # before anything is written
        sections.append((section if len(datasets) > 1 else "", _study(store, list(of)), merged, notes))
    paths = []
    for section, study, merged, notes in sections:
        directory = JointDirectory(store, names, section)
        directory.store.write_table(f"{directory.prefix}/results/trials.parquet", trials_table(merged))
        paths.append((directory, write_report(store, str(study["name"]), study, notes, directory=directory)))
    written = [(study, merged) for _, study, merged, _ in sections]
    return (paths[0][1] if len(paths) == 1 else _one_page(store, names, [d for d, _ in paths])), written


def _by_data(rows: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, list[Row]]]:
    """Data set (as a folder's name) → study → its rows on that data; data sets of one name are told apart by their content's hash."""
    kinds: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for study, own in rows.items():
        for row in own:
            key = (str(row.get("dataset") or "data"), str(row.get("data_sha256") or ""))
            kinds.setdefault(key, {}).setdefault(study, []).append(row)
    names = [name for name, _ in kinds]
    return {
        re.sub(r"[^A-Za-z0-9_.-]+", "_", name if names.count(name) == 1 else f"{name}-{sha[:8]}"): of
        for (name, sha), of in kinds.items()
    }


def _merged(rows: Mapping[str, Sequence[Row]]) -> tuple[list[Row], list[str]]:
    """All rows, each trial once, and notes on what was shared or renamed."""
    seen: dict[str, str] = {}
    merged: list[Row] = []
    shared: dict[tuple[str, str], int] = {}
    labels = _labels(rows)
    for study, own in rows.items():
        for row in own:
            first = seen.setdefault(row["trial_id"], study)
            if first != study:
                if not row.get("baseline"):
                    shared[first, study] = shared.get((first, study), 0) + 1
                continue
            merged.append({**row, "variant": labels[study, str(row["variant"])]})
    notes = [
        f"{count} trial{' is' if count == 1 else 's are'} of both {one} and {other}, and stand{'s' if count == 1 else ''} here once, "
        f"under the names of {one}."
        for (one, other), count in shared.items()
    ]
    return merged, notes


def _labels(rows: Mapping[str, Sequence[Row]]) -> dict[tuple[str, str], str]:
    """(study, variant) → its name here: the study's is added where another has a variant of the name that is something else."""
    settings: dict[str, dict[str, set[str]]] = {}
    for study, own in rows.items():
        for row in own:
            of = settings.setdefault(str(row["variant"]), {}).setdefault(study, set())
            of.add(str(row["trial_id"]) if row.get("baseline") else _settings(row))
    labels = {}
    for variant, by_study in settings.items():
        first: set[str] = set()
        for study, own_settings in by_study.items():
            is_other = bool(first) and not first & own_settings
            labels[study, variant] = f"{variant} ({study})" if is_other else variant
            first |= own_settings
    return labels


def _settings(row: Row) -> str:
    kept = {k: v for k, v in row.items() if k.startswith("param.") and v is not None and not k.startswith(_NOT_COMPARED)}
    return json.dumps(kept, sort_keys=True, default=str)


def _study(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """What the page is told of the studies, in the form of one: the axes of all, the base and the reference where they agree."""
    import yaml

    studies = [yaml.safe_load(StudyDirectory(store, name).read_study() or "{}") for name in names]
    axes: dict[str, list[Any]] = {}
    for study in studies:
        for path, values in (study.get("axes") or {}).items():
            axes[path] = list(dict.fromkeys([*axes.get(path, []), *values]))
    shared = {
        field: studies[0].get(field) for field in ("base", "reference") if all(s.get(field) == studies[0].get(field) for s in studies)
    }
    told = [study["description"].strip() for study in studies if study.get("description")]
    return {"name": " + ".join(names), "description": " ".join(told), "axes": axes, "several": list(names), **shared}


def _one_page(store: Store, names: Sequence[str], directories: Sequence[StudyDirectory]) -> str:
    """The sections' pages one after the other; each is a whole page of its own, too."""
    pages = [store.read(directory.report_path()).decode() for directory in directories]
    mains = [found.group(1) for page in pages if (found := _MAIN.search(page))]
    together = _MAIN.sub(lambda _: f"<main>{'<hr>'.join(mains)}</main>", pages[0])
    target = JointDirectory(store, names).report_path()
    store.write(target, together.encode())
    return store.path(target) if store.is_local else f"{store.location}/{target}"
