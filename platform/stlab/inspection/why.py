"""Why a planned trial is not among those that a storage has: what differs from the most similar one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from stlab.catalog import create_config
from stlab.errors import ModelError, UserError
from stlab.model_files import short
from stlab.storage import Store, TrialDirectory
from stlab.study.aliases import trial_with_current_fields
from stlab.study.identity import document, recorded_parts
from stlab.study.plan import Plan, PlannedTrial
from stlab.study.spec import TrialSpec
from stmodels.config import PARTS
from stmodels.errors import ConfigError

_ABSENT = "absent"


@dataclass(frozen=True)
class Difference:
    """An entry of the document that a trial's id is the hash of."""

    what: str
    """A dotted field, ``seed``, ``content of the data``, ``network``, ``inputs``, ``code of <file>``, or ``code``."""
    there: str
    """In the trial that the storage has."""
    here: str


@dataclass(frozen=True)
class Why:
    """A planned trial beside the most similar one of a storage."""

    planned: PlannedTrial
    is_there: bool
    """Whether the storage has the trial itself."""
    nearest: Mapping[str, Any] | None = None
    """The content of the other's ``trial.json``; None if the storage has no trial of the model."""
    nearest_id: str = ""
    differences: Sequence[Difference] = ()


def why_new(plan: Plan, given: str, store: Store) -> Why:
    """Compare the planned trial whose id begins with ``given`` with the trials of a storage.

    Raises:
        UserError: the plan has no such trial, or several.
    """
    planned = _find(plan, given)
    if TrialDirectory(store, planned.trial_id).read("trial.json") is not None:
        return Why(planned, is_there=True)
    parts = recorded_parts(planned.identity)
    mine = document(planned.spec, create_config(planned.spec.model), planned.identity["data_sha256"], parts)
    best: Why | None = None
    for name in store.names("trials"):
        record = TrialDirectory(store, name).read("trial.json")
        if record is None or short(record.get("model", {}).get("name", "")) != short(planned.spec.model["name"]):
            continue
        if (other := _document_of(record)) is None:
            continue
        found = _differences(other, mine, str(record.get("code_version")))
        if best is None or len(found) < len(best.differences):
            best = Why(planned, False, record, name, found)
    return best or Why(planned, is_there=False)


def _find(plan: Plan, given: str) -> PlannedTrial:
    found = [trial for trial in plan.unique() if trial.trial_id.startswith(given)] if given else []
    if len(found) == 1:
        return found[0]
    name = plan.study.name
    problem = f"{len(found)} trials of {name} begin with it: write more of the id" if found else f"{name} has no such trial"
    raise UserError(f"--why {given}: {problem}. `stlab plan` without --why lists the ids.")


def _document_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a recorded trial's id was made of; None if it cannot be read any more."""
    try:
        current = trial_with_current_fields(record)
        spec = TrialSpec(**{name: value for name, value in current.items() if name in TrialSpec.model_fields})
        made = document(spec, create_config(spec.model), str(record.get("data_sha256")), recorded_parts(record))
    except (ValidationError, ConfigError, ModelError, TypeError, ValueError, KeyError):
        return None
    return {**made, "code": record.get("code")}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], version: str) -> list[Difference]:
    fields = _unequal(there["fields"], here["fields"])
    found = [Difference(name, *_both(there["fields"], here["fields"], name)) for name in fields]
    if there["seed"] != here["seed"]:
        found.append(Difference("seed", str(there["seed"]), str(here["seed"])))
    if there["data"] != here["data"]:
        found.append(Difference("content of the data", f"SHA-256 {there['data'][:12]}…", f"{here['data'][:12]}…"))
    for part in PARTS:
        if there.get(part) != here.get(part):
            found.append(Difference(part, *(f"SHA-256 {one.get(part) or 'none'}"[:20] for one in (there, here))))
    if there["code"] is None:
        found.append(Difference("code", f"stlab {version}, which kept no record of its files", "its files are known"))
        return found
    files = _unequal(there["code"], here["code"])
    return found + [Difference(f"code of {file}", *_both(there["code"], here["code"], file)) for file in files]


def _unequal(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted(there.keys() | here.keys()) if there.get(name, _ABSENT) != here.get(name, _ABSENT)]


def _both(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> tuple[str, str]:
    return str(there.get(name, _ABSENT)), str(here.get(name, _ABSENT))
