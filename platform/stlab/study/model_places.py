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
    if isinstance(study.get("variants"), Mapping):
        found["variants"] = {
            name: _in_sections(own, renamed) if isinstance(own, Mapping) else own for name, own in study["variants"].items()
        }
    axes = study.get("axes")
    if isinstance(axes, Mapping) and isinstance(axes.get(_NAME), list):
        found["axes"] = {**axes, _NAME: [renamed(name) for name in axes[_NAME]]}
    if isinstance(study.get("search"), Mapping):
        found["search"] = _in_search(study["search"], renamed)
    return found


def _in_search(search: Mapping[str, Any], renamed: Callable[[Any], Any]) -> dict[str, Any]:
    space = search.get("space")
    field = space.get(_NAME) if isinstance(space, Mapping) else None
    if not isinstance(space, Mapping) or not isinstance(field, Mapping) or not isinstance(field.get("categorical"), list):
        return dict(search)
    choices = {**field, "categorical": [renamed(name) for name in field["categorical"]]}
    return {**search, "space": {**space, _NAME: choices}}


def _in_sections(sections: Mapping[str, Any], renamed: Callable[[Any], Any]) -> dict[str, Any]:
    """Sections, nested or dotted."""
    found = dict(sections)
    if _NAME in found:
        found[_NAME] = renamed(found[_NAME])
    model = found.get("model")
    if isinstance(model, Mapping) and "name" in model:
        found["model"] = {**model, "name": renamed(model["name"])}
    return found
