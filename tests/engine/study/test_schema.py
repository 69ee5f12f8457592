"""The JSON schema of study files, held against the jsonschema library and against what the specification accepts."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jsonschema
import pytest
import yaml
from pydantic import TypeAdapter

from stlab.study.file import dump_study
from stlab.study.schema import study_schema
from stlab.study.spec import DataSpec, ResourcesSpec, StudySpec, TrainSpec


@dataclasses.dataclass(frozen=True)
class Adapter:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    width: int = 64


@dataclasses.dataclass(frozen=True)
class Small:
    """A small model."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    rank: int = 8
    peft: Literal["none", "lora"] = "none"
    adapter: Adapter = Adapter()
    options: dict[str, float] = dataclasses.field(default_factory=dict)


_FORBID = {"__pydantic_config__": {"extra": "forbid"}}
# Another class of the same name, so that two definitions ask for one place.
OtherAdapter = dataclasses.make_dataclass(
    "Adapter", [("layers", list[int], dataclasses.field(default_factory=list))], frozen=True, namespace=_FORBID
)
Large = dataclasses.make_dataclass(
    "Large",
    [("depth", int), ("rank", Literal["full"], "full"), ("adapter", OtherAdapter, OtherAdapter())],
    frozen=True,
    namespace=_FORBID,
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return study_schema({"small": TypeAdapter(Small).json_schema(), "large": TypeAdapter(Large).json_schema()})


def _study(**changes: Any) -> dict[str, Any]:
    base = {"data": {"path": "synthetic:city"}, "model": {"name": "small"}}
    return {"name": "demo", "base": base, **changes}


def _is_valid(schema: dict[str, Any], study: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(study)


def test_is_a_schema_of_its_draft(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [found for item in value.values() for found in references(item)]
        return [found for item in value for found in references(item)] if isinstance(value, list) else []

    assert {reference.removeprefix("#/$defs/") for reference in references(schema)} <= set(schema["$defs"])


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("the least", _study()),
    ("variants", _study(variants={"full": {}, "no #1 λ": {"model.rank": 4, "train": {"lr": 1e-3}}})),
    ("nested overrides", _study(variants={"nested": {"model": {"adapter": {"width": 3}}, "data": {"null": "none"}}})),
    ("dotted and nested", _study(variants={"x": {"model.adapter.width": 3, "model": {"adapter.layers": [1]}}})),
    ("another model's fields", _study(variants={"x": {"model.name": "large", "model.depth": 3, "model.rank": "full"}})),
    ("an open field", _study(variants={"open": {"model.options.temperature": 0.5}})),
    ("axes", _study(axes={"train.lr": [1e-4, 3e-4], "model.peft": ["none", "lora"], "model.options.t": [1, 2]})),
    ("the other fields", _study(seeds=[0, 1, 2], baselines=["persistence"], description="What for")),
    (
        "a nested model field",
        _study(base={"data": {"path": "a"}, "model": {"name": "large", "depth": 2, "adapter": {"layers": [1]}}}),
    ),
]

BAD: list[tuple[str, dict[str, Any]]] = [
    ("no base", {"name": "demo"}),
    ("no path", _study(base={"data": {}, "model": {"name": "small"}})),
    ("no model name", _study(base={"data": {"path": "a"}, "model": {"rank": 3}})),
    ("an unknown model", _study(base={"data": {"path": "a"}, "model": {"name": "smal"}})),
    ("a field of another model", _study(base={"data": {"path": "a"}, "model": {"name": "small", "depth": 3}})),
    ("a model's required field", _study(base={"data": {"path": "a"}, "model": {"name": "large"}})),
    ("a wrong choice", _study(base={"data": {"path": "a"}, "model": {"name": "small", "peft": "lorra"}})),
    (
        "the other model's definition",
        _study(base={"data": {"path": "a"}, "model": {"name": "small", "adapter": {"layers": []}}}),
    ),
    ("a field no section has", _study(variants={"x": {"train.lrr": 3}})),
    ("a field no model has", _study(variants={"x": {"model": {"rnak": 3}}})),
    ("a path without a section", _study(variants={"x": {"lr": 3}})),
    ("a value out of bounds", _study(variants={"x": {"train.lr": -1}})),
    ("an axis of one value", _study(axes={"train.lr": 3e-4})),
    ("an axis with a wrong value", _study(axes={"train.lr": ["fast"]})),
    ("an unknown axis", _study(axes={"train.lrr": [1]})),
    ("no variant at all", _study(variants={})),
    ("an unknown field", _study(sedes=[0])),
    ("a bad name", _study(name="a/b")),
]


@pytest.mark.parametrize(("what", "study"), GOOD, ids=[what for what, _ in GOOD])
def test_good_studies_pass(schema: dict[str, Any], what: str, study: dict[str, Any]) -> None:
    StudySpec.model_validate(study)
    jsonschema.Draft202012Validator(schema).validate(study)


@pytest.mark.parametrize(("what", "study"), BAD, ids=[what for what, _ in BAD])
def test_bad_studies_fail(schema: dict[str, Any], what: str, study: dict[str, Any]) -> None:
    assert not _is_valid(schema, study)


def test_a_resolved_study_passes(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(dump_study(StudySpec.model_validate(_study()))))


def test_every_public_name_is_completed_with_its_meaning(schema: dict[str, Any]) -> None:
    completed = schema["$defs"]["Overrides"]["properties"]
    axes = schema["properties"]["axes"]["properties"]
    for section, spec in (("data", DataSpec), ("train", TrainSpec), ("resources", ResourcesSpec)):
        for name, field in spec.model_fields.items():
            assert completed[f"{section}.{name}"]["description"] == field.description
            assert axes[f"{section}.{name}"]["description"] == field.description
    assert {"model.name", "model.rank", "model.depth", "model.adapter.width", "model.adapter.layers"} <= axes.keys()
    assert completed["model.name"]["enum"] == ["small", "large"]
    assert schema["$defs"]["model.small"]["description"] == "A small model."


def test_without_models_any_model_passes() -> None:
    schema = study_schema({})
    jsonschema.Draft202012Validator.check_schema(schema)
    study = _study(base={"data": {"path": "a"}, "model": {"name": "x", "y": 1}}, variants={"v": {"model.z.w": 3}})
    assert _is_valid(schema, study)
    assert _is_valid(schema, _study(axes={"model.z": [1, 2]}))
    assert not _is_valid(schema, _study(variants={"v": {"train.z": 3}}))


def test_the_given_schemas_are_left_alone() -> None:
    given = TypeAdapter(Small).json_schema()
    before = repr(given)
    study_schema({"small": given})
    assert repr(given) == before
