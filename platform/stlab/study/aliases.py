"""Fields that have moved. Their old paths go on working in study files, on the command line and in records that were written before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {"train.flow_loss_weight": "model.flow_weight"}
"""Old dotted path → new one."""


def current(path: str) -> str:
    """The path by which a field is known now."""
    return MOVED.get(path, path)


def with_current_fields(study: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A study's plain values with every field under its current path, and the old paths that were found.

    A field that is written under both paths keeps both, so that validation reports the old one as unknown.
    """
    found: dict[str, None] = {}
    renamed = dict(study)
    if isinstance(study.get("base"), dict):
        renamed["base"] = _nested(study["base"], found)
    for group in ("variants", "datasets"):
        if isinstance(study.get(group), dict):
            renamed[group] = {name: _nested(own, found) if isinstance(own, dict) else own for name, own in study[group].items()}
    if isinstance(study.get("axes"), dict):
        renamed["axes"] = _dotted(study["axes"], found)
    if isinstance(study.get("search"), dict):
        renamed["search"] = _search(study["search"], found)
    return renamed, tuple(found)


def trial_with_current_fields(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``trial.json`` of any version with its fields where they are now.

    A moved field that this trial's model does not have is left out: it changed nothing.
    """
    from stlab.catalog import config_values, create_config  # it needs the models, which a study's text does not

    renamed = {**trial, "train": dict(trial["train"]), "model": dict(trial["model"])}
    for old, new in MOVED.items():
        section, _, name = old.partition(".")
        if name in renamed[section]:
            value = renamed[section].pop(name)
            owner, _, field = new.partition(".")
            known = config_values(create_config({"name": trial["model"]["name"]})) if owner == "model" else renamed[owner]
            if field in known:
                renamed[owner].setdefault(field, value)
    return renamed


def _nested(sections: Mapping[str, Any], found: dict[str, None]) -> dict[str, Any]:
    """Sections, nested or dotted or both, with every field under its current path. Sections are copied: YAML aliases share them."""
    renamed = _dotted(sections, found)
    for old, new in MOVED.items():
        section, _, name = old.partition(".")
        if not isinstance(renamed.get(section), dict) or name not in renamed[section]:
            continue
        owner, _, field = new.partition(".")
        target = renamed.get(owner, {})
        if isinstance(target, dict) and field not in target and new not in renamed:
            found[old] = None
            rest = {key: value for key, value in renamed[section].items() if key != name}
            renamed |= {section: rest, owner: {**target, field: renamed[section][name]}}
    return renamed


def _dotted(fields: Mapping[str, Any], found: dict[str, None]) -> dict[str, Any]:
    """The same entries, in their order, with current paths as keys."""
    found |= {path: None for path in fields if path in MOVED and MOVED[path] not in fields}
    return {current(path) if current(path) not in fields else path: value for path, value in fields.items()}


def _search(search: Mapping[str, Any], found: dict[str, None]) -> dict[str, Any]:
    renamed = dict(search)
    if isinstance(search.get("space"), dict):
        space = _dotted(search["space"], found)
        renamed["space"] = {path: _with_current_condition(field, found) for path, field in space.items()}
    if isinstance(search.get("points"), list):
        renamed["points"] = [_dotted(point, found) if isinstance(point, dict) else point for point in search["points"]]
    return renamed


def _with_current_condition(field: Any, found: dict[str, None]) -> Any:
    if isinstance(field, dict) and isinstance(field.get("when"), dict):
        return {**field, "when": _dotted(field["when"], found)}
    return field
