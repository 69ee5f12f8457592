"""From the base of a study and overrides of it to the validated sections of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from stlab.catalog import config_class, config_values
from stlab.errors import ModelError
from stlab.study.errors import Problem, explain, field_names, problem
from stlab.study.identity import absolute
from stlab.study.source import StudySource, flatten_overrides
from stlab.study.spec import FAMILY_DEFAULTS, DataSpec, ResourcesSpec, StudySpec, TrainSpec
from stmodels.config import ModelConfig


def resolve(
    study: StudySpec, overrides: Mapping[str, Any], variant: str, source: StudySource | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """The sections of the trial that overrides make of the base, and what is wrong with them.

    Args:
        overrides: dotted path → value.
        variant: the trial's variant, for messages.
        source: the text of the study, so that messages name its lines.

    Returns:
        Section → its specification (of the model: plain values, defaults filled in), and the problems. The sections are complete only
        where there is no problem.
    """
    values = merged(study, overrides)
    try:
        model = config_class(values["model"]["name"])
    except ModelError as error:
        return {}, [problem(str(error), ("name",), source, section="model", variant=variant)]
    if values["model"]["name"] != study.base.model["name"]:
        values["model"] = _known(values["model"], model, flatten_overrides(study.variants.get(variant, {})))
    owners: dict[str, Any] = {"data": DataSpec, "model": model, "train": TrainSpec, "resources": ResourcesSpec}
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    for section, owner in owners.items():
        try:
            sections[section] = _located(pydantic.TypeAdapter(owner).validate_python(values[section]))
        except pydantic.ValidationError as error:
            problems += explain(error, owner, source, section=section, variant=variant)
    return sections, problems


def merged(study: StudySpec, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The base with overrides applied, by section.

    A variant that names another model starts from that model's defaults, since the base's fields belong to the base's model. A variant
    that names another family of data gets that family's defaults in place of those that the base's family brought.
    """
    merged: dict[str, dict[str, Any]] = study.base.model_dump()
    model, data = merged["model"], merged["data"]
    if overrides.get("model.name", model["name"]) != model["name"]:
        merged["model"] = {}
    if overrides.get("data.family", data["family"]) != data["family"]:
        brought = FAMILY_DEFAULTS[data["family"]]
        merged["data"] = {name: value for name, value in data.items() if name not in brought or value != brought[name]}
    for path, value in overrides.items():
        section, _, name = path.partition(".")
        merged[section][name] = value
    return merged


def _known(values: Mapping[str, Any], model: type[ModelConfig], own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a variant's model without those of the base's model, which an axis or a search may set: they change nothing here.

    Args:
        own: what the variant itself sets, by dotted path. A wrong field there is an error.
    """
    declared = field_names(model)
    return {name: value for name, value in values.items() if name in declared or f"model.{name}" in own}


def _located(section: Any) -> Any:
    """A section whose paths are absolute, since workers have other working directories. A model's becomes plain values."""
    if isinstance(section, DataSpec):
        paths = {"path": section.path, "node_ids": section.node_ids, "distances": section.distances}
        update: dict[str, Any] = {name: absolute(path) for name, path in paths.items() if path is not None}
        return section.model_copy(update={**update, "pretrain": tuple(absolute(path) for path in section.pretrain)})
    if isinstance(section, pydantic.BaseModel):
        return section
    files = section.files()
    return {name: absolute(value) if value in files else value for name, value in config_values(section).items()}
