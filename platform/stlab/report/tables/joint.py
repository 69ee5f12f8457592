"""Trials of several studies as the rows of one table for each data set; each trial appears once, under a unique name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stlab.report.statistics.summary import Row
from stlab.storage import single_protocol

_NOT_COMPARED = ("param.resources.", "param.data.path", "param.train.checkpoint_seconds", "param.train.step_timeout")


@dataclass(frozen=True)
class Section:
    """The trials of several studies on one data set."""

    folder: str
    """The data set as a folder's name."""
    rows: list[Row]
    own: Mapping[str, Mapping[str, str]]
    """Study → trial id → the name of its variant in that study."""
    notes: list[str]

    @property
    def dataset(self) -> str:
        return next((str(row["dataset"]) for row in self.rows if row.get("dataset")), self.folder)


def sections(rows: Mapping[str, Sequence[Row]]) -> list[Section]:
    """One table for each data set, from a mapping study → rows.

    Data sets of the same name get the hash of their content as a suffix. A trial that studies share appears once, under the first
    study's name for it.

    Raises:
        ProtocolMismatch: trials on the same data were made by different protocols; names the field.
    """
    found = []
    for folder, by_study in _by_data(rows).items():
        merged, notes = _merged(by_study)
        single_protocol(merged)
        own = {study: {str(row["trial_id"]): str(row["variant"]) for row in mine} for study, mine in by_study.items()}
        found.append(Section(folder, merged, own, notes))
    return found


def _by_data(rows: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, list[Row]]]:
    kinds: dict[tuple[str, str], dict[str, list[Row]]] = {}
    unnamed: dict[str, list[Row]] = {}
    named: dict[str, str] = {}  # two studies may have two names for the same data; the first one stands
    for study, own in rows.items():
        for row in own:
            if row.get("dataset") or row.get("data_sha256"):
                name, sha = str(row.get("dataset") or "data"), str(row.get("data_sha256") or "")
                key = (named.setdefault(sha, name) if sha else name, sha)
                kinds.setdefault(key, {}).setdefault(study, []).append(row)
            else:
                unnamed.setdefault(study, []).append(row)
    for study, own in unnamed.items():  # trials that never began belong to the data set of their study's other trials
        key = next((key for key, by_study in kinds.items() if study in by_study), next(iter(kinds), ("data", "")))
        kinds.setdefault(key, {}).setdefault(study, []).extend(own)
    names = [name for name, _ in kinds]
    return {
        re.sub(r"[^A-Za-z0-9_.-]+", "_", name if names.count(name) == 1 else f"{name}-{sha[:8]}"): by_study
        for (name, sha), by_study in kinds.items()
    }


def _merged(rows: Mapping[str, Sequence[Row]]) -> tuple[list[Row], list[str]]:
    """All rows, each trial once, and notes on shared trials."""
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
        f"{one} and {other} share {count} trial{'' if count == 1 else 's'}, which {'is' if count == 1 else 'are'} listed once, under the "
        f"name{'' if count == 1 else 's'} that {one} gives."
        for (one, other), count in shared.items()
    ]
    return merged, notes


def _labels(rows: Mapping[str, Sequence[Row]]) -> dict[tuple[str, str], str]:
    """(study, variant) → its name here. The study's name is added if an earlier study has a different variant of the same name."""
    settings: dict[str, dict[str, set[str]]] = {}
    for study, own in rows.items():
        for row in own:
            known = settings.setdefault(str(row["variant"]), {}).setdefault(study, set())
            known.add(str(row["trial_id"]) if row.get("baseline") else _settings(row))
    labels = {}
    for variant, by_study in settings.items():
        first: set[str] = set()
        for study, own_settings in by_study.items():
            is_other = bool(first) and not first & own_settings
            labels[study, variant] = f"{variant} ({study})" if is_other else variant
            first |= own_settings
    return labels


def _settings(row: Row) -> str:
    kept: dict[str, Any] = {
        k: v for k, v in row.items() if k.startswith("param.") and v is not None and not k.startswith(_NOT_COMPARED)
    }
    return json.dumps(kept, sort_keys=True, default=str)
