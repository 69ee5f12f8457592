"""The JSON schema of a study file, with which editors complete and check it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stlab.study.spec import BaseConfig, StudySpec

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/"
_MODEL = "model"
_FROM_OUTSIDE: Schema = {
    "type": "object",
    "description": "A model from outside, by its place: ./mine.py:MyConfig or my_package.mine:MyConfig.",
    "properties": {"name": {"type": "string", "pattern": ":"}},
    "required": ["name"],
}


def study_schema(model_schemas: Mapping[str, Schema]) -> Schema:
    """The JSON schema (draft 2020-12) of a study file.

    Args:
        model_schemas: Model name → the JSON schema of its configuration, from ``TypeAdapter(config).json_schema()``.
            The field ``name`` always has the model's name as its only value. If empty, the schema accepts any model.
    """
    schema = StudySpec.model_json_schema()
    defs: dict[str, Schema] = schema["$defs"]
    models = [_model_schema(name, config, defs) for name, config in model_schemas.items()]
    base = defs["BaseConfig"]["properties"]
    if models:
        base[_MODEL] = {"description": base[_MODEL]["description"], "oneOf": models}
    # The specification accepts `null: none` as null.
    null = defs["DataSpec"]["properties"]["null"]
    null["anyOf"] = [*null["anyOf"], {"const": "none"}]

    sections = {name: base[name] for name in BaseConfig.model_fields}
    overrides: Schema = {"type": "object", "properties": {}, "patternProperties": {}, "additionalProperties": False}
    fields: dict[str, Schema] = {}
    open_paths: list[str] = []
    for name, section in sections.items():
        inside = _overrides_of(section, defs)
        overrides["properties"][name] = inside
        fields |= {f"{name}.{path}": field for path, field in inside["properties"].items()}
        open_paths += _open_paths(name, inside)
    overrides["properties"] |= fields
    overrides["patternProperties"] = {pattern: {} for pattern in open_paths}
    if models:  # only here: elsewhere a model whose fields are unknown would let every wrong field pass
        models.append(_FROM_OUTSIDE)
    defs["Overrides"] = overrides | {"description": "Fields of the base and their new values, dotted or nested."}

    properties = schema["properties"]
    properties["variants"] |= {"additionalProperties": {"$ref": f"{_REF}Overrides"}, "minProperties": 1}
    properties["axes"] |= {
        "properties": {path: _axis(field) for path, field in fields.items()},
        "patternProperties": {pattern: _axis({}) for pattern in open_paths},
        "additionalProperties": False,
    }
    return {"$schema": _DIALECT, **schema}


def _axis(field: Schema) -> Schema:
    description = {"description": field["description"]} if "description" in field else {}
    items = {key: value for key, value in field.items() if key not in ("default", "description", "title")}
    return {**description, "type": "array", "items": items, "minItems": 1, "uniqueItems": True}


def _model_schema(name: str, config: Schema, defs: dict[str, Schema]) -> Schema:
    """Add the model's schema and its definitions to ``defs`` under the model's name, and return a reference to it."""
    own = f"model.{name}"
    config = _renamed(config, own)
    defs |= {f"{own}.{key}": definition for key, definition in config.pop("$defs", {}).items()}
    config = dict(_resolved(config, defs))
    config["properties"] = {"name": {"const": name, "description": "The model."}} | {
        key: value for key, value in config.get("properties", {}).items() if key != "name"
    }
    config["required"] = ["name", *(key for key in config.get("required", []) if key != "name")]
    defs[own] = config
    return {"$ref": f"{_REF}{_pointer(own)}"}


def _renamed(value: Any, prefix: str) -> Any:
    """The same schema with its references changed to ``<prefix>.<definition>``."""
    if isinstance(value, list):
        return [_renamed(item, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: f"{_REF}{_pointer(prefix)}.{item.removeprefix(_REF)}"
        if key == "$ref" and isinstance(item, str) and item.startswith(_REF)
        else _renamed(item, prefix)
        for key, item in value.items()
    }


def _pointer(name: str) -> str:
    """A name as part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _resolved(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    """The schema that a reference names, merged with the keys beside the reference."""
    reference = schema.get("$ref", "")
    if not reference.startswith(_REF):
        return schema
    target = defs[reference.removeprefix(_REF).replace("~1", "/").replace("~0", "~")]
    return {**_resolved(target, defs), **{key: value for key, value in schema.items() if key != "$ref"}}


def _objects(schema: Schema, defs: Mapping[str, Schema]) -> Iterator[Schema]:
    """The object schemas among the alternatives of ``schema``."""
    schema = _resolved(schema, defs)
    for alternative in [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]:
        resolved = _resolved(alternative, defs)
        if resolved.get("type") == "object":
            yield resolved


def _overrides_of(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    """A schema of overrides of ``schema``: any of its fields, dotted or nested. Alternatives are merged."""
    found: dict[str, list[Schema]] = {}
    patterns: dict[str, Schema] = {}
    is_open = False
    for kind in _objects(schema, defs):
        is_open |= kind.get("additionalProperties", True) is not False
        for name, field in kind.get("properties", {}).items():
            found.setdefault(name, []).append({key: value for key, value in field.items() if key != "default"})
            if any(True for _ in _objects(field, defs)):
                inside = _overrides_of(field, defs)
                found[name].append(inside)
                for path, inner in inside["properties"].items():
                    found.setdefault(f"{name}.{path}", []).append(inner)
                patterns |= {path: {} for path in _open_paths(name, inside)}
    properties = {name: _any_of(alternatives) for name, alternatives in found.items()}
    return {"type": "object", "properties": properties, "patternProperties": patterns, "additionalProperties": is_open}


def _open_paths(name: str, inside: Schema) -> list[str]:
    """Patterns of the dotted paths below ``name`` whose last part may have any name."""
    patterns = [*inside["patternProperties"], *(["^"] if inside["additionalProperties"] else [])]
    return [f"^{re.escape(name)}\\.{pattern.removeprefix('^')}" for pattern in patterns]


def _any_of(alternatives: list[Schema]) -> Schema:
    """One schema for several fields of the same name. Constants become one list of choices."""
    distinct = [schema for index, schema in enumerate(alternatives) if schema not in alternatives[:index]]
    if len(distinct) == 1:
        return distinct[0]
    description = next(({"description": schema["description"]} for schema in distinct if "description" in schema), {})
    if all("const" in schema for schema in distinct):
        return {**description, "enum": [schema["const"] for schema in distinct]}
    return {**description, "anyOf": distinct}
