"""Where a study names models: in its base, in variants, on an axis and in a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_NAME = "model.name"


def with_models(study: Mapping[str, Any], renamed: Callable[[Any], Any]) -> dict[str, Any]:
    """A study's plain values with ``renamed(name)`` in place of each model's name."""
    found = dict(study)
    if isinstance(study.get("base"), Mapping):
        found["base"] = _in_sections(study["base"], renamed)
    for group in ("variants", "datasets"):
        if isinstance(study.get(group), Mapping):
            found[group] = {name: _in_sections(own, renamed) if isinstance(own, Mapping) else own for name, own in study[group].items()}
    axes = study.get("axes")
    if isinstance(axes, Mapping) and isinstance(axes.get(_NAME), list):
        found["axes"] = {**axes, _NAME: [renamed(name) for name in axes[_NAME]]}
    if isinstance(study.get("search"), Mapping):
        found["search"] = _in_search(study["search"], renamed)
    return found


def _in_search(search: Mapping[str, Any], renamed: Callable[[Any], Any]) -> dict[str, Any]:
    found = dict(search)
    if isinstance(search.get("points"), list):
        found["points"] = [_in_sections(point, renamed) if isinstance(point, Mapping) else point for point in search["points"]]
    if isinstance(search.get("space"), Mapping):
        found["space"] = {path: _in_field(path, field, renamed) for path, field in search["space"].items()}
    return found


def _in_field(path: str, field: Any, renamed: Callable[[Any], Any]) -> Any:
    """A searched field: the choices if it is the model's name, and the models on which it depends."""
    if not isinstance(field, Mapping):
        return field
    found = dict(field)
    if path == _NAME and isinstance(field.get("categorical"), list):
        found["categorical"] = [renamed(name) for name in field["categorical"]]
    when = field.get("when")
    if isinstance(when, Mapping) and _NAME in when:
        names = when[_NAME]
        found["when"] = {**when, _NAME: [renamed(name) for name in names] if isinstance(names, list) else renamed(names)}
    return found


def models_of(study: Mapping[str, Any]) -> list[str]:
    """The models that a study's plain values name."""
    names: dict[str, None] = {}

    def collect(name: Any) -> Any:
        if isinstance(name, str):
            names[name] = None
        return name

    with_models(study, collect)
    return list(names)


def _in_sections(sections: Mapping[str, Any], renamed: Callable[[Any], Any]) -> dict[str, Any]:
    """Sections, nested or dotted."""
    found = dict(sections)
    if _NAME in found:
        found[_NAME] = renamed(found[_NAME])
    model = found.get("model")
    if isinstance(model, Mapping) and "name" in model:
        found["model"] = {**model, "name": renamed(model["name"])}
    return found
