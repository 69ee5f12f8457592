"""Validation errors for readers: the place of the value, what is wrong with it, and which values are allowed."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stlab.errors import StudyError
from stlab.study.source import SECTIONS, Key, StudySource, did_you_mean
from stlab.study.spec import StudySpec

# The expected kind of value for each of pydantic's error types, by the prefix of its name.
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "dataclass": "a mapping",
    "none": "null",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """One error in a study. Problems are sorted by their line in the file, and those of overrides come last."""

    rank: float
    place: str
    """``study.yaml:12`` or ``--set model.rnak=4``."""
    field: str
    """Dotted, from the root of the study: ``variants.full.model.rank``."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.field, self.message) if part)


def problem(
    message: str,
    path: Sequence[Key],
    source: StudySource | None = None,
    *,
    section: str = "",
    variant: str | None = None,
) -> Problem:
    """A problem with the field at ``path``.

    Args:
        path: starts at the root of the study, or, with ``section``, at that section of a trial.
        source: gives the line. None for a study that was not read from text.
        section: ``data``, ``model``, ``train`` or ``resources``: the field belongs to a trial. Its place is in the variant, on an axis or
            in the base, whichever wrote it first in this order.
        variant: the trial's variant.
    """
    loc = tuple(path)
    # A model's own message has no place. It begins with the field, or with the name of the data and then the field.
    named = re.match(rf"(?:\S+: )?{section}\.(\w+)", message) if section and not loc else None
    # If nobody wrote that field, another field may be the cause, so the message keeps the section's place.
    if named and source and source.is_written(source.origin((section, named[1]), variant)):
        path = (named[1],)
    if section:
        loc = source.origin((section, *path), variant) if source else (section, *path)
    rank, place = source.place(loc) if source else (0, "")
    return Problem(rank, place, ".".join(map(str, loc)), message)


def explain(
    error: ValidationError,
    owner: type,
    source: StudySource | None = None,
    *,
    section: str = "",
    variant: str | None = None,
) -> list[Problem]:
    """The problems that a validation found, one for each field.

    Args:
        error: the exception of pydantic.
        owner: the pydantic model or dataclass whose fields are the allowed ones.
        source, section, variant: see `problem`. With ``section`` the error comes from that section of a trial.
    """
    by_field: dict[tuple[Key, ...], list[ErrorDetails]] = {}
    owners: dict[tuple[Key, ...], type | None] = {}
    for details in error.errors(include_url=False):
        path, declared_by = _field_path(details["loc"], owner)
        by_field.setdefault(path, []).append(details)
        owners[path] = declared_by
    return [
        problem(_message(path, found, owners[path], not section), path, source, section=section, variant=variant)
        for path, found in by_field.items()
    ]


def study_error(problems: Iterable[Problem]) -> StudyError:
    """One error with a line for each problem. A problem that several trials share appears once."""
    return StudyError("\n".join(dict.fromkeys(str(found) for found in sorted(problems))))


def field_names(owner: type | None) -> list[str]:
    """The declared fields of a pydantic model or a dataclass; empty for any other type."""
    if owner is None:
        return []
    if issubclass(owner, BaseModel):
        return list(owner.model_fields)
    return [field.name for field in dataclasses.fields(owner) if field.init] if dataclasses.is_dataclass(owner) else []


def unknown_field(name: str, allowed: Sequence[str]) -> str:
    """The message for a field that does not exist."""
    listed = f" Allowed: {', '.join(allowed)}." if allowed else ""
    return f"unknown field.{did_you_mean(name, allowed)}{listed}"


def _field_path(loc: Sequence[Key], owner: type) -> tuple[tuple[Key, ...], type | None]:
    """A pydantic location without the names of union branches, and the class that declares the last field."""
    path: list[Key] = []
    declared_by: type | None = None
    kind: Any = owner
    for key in loc:
        kind = _plain_type(kind)
        members = typing.get_args(kind) if _is_union(kind) else ()
        if members:  # the location names the branch, not a field
            kind = next((m for m in members if isinstance(m, type) and m.__name__ == key), None)
            if kind is None:
                break
            continue
        if key == "[key]":
            break
        path.append(key)
        if isinstance(kind, type) and field_names(kind):
            declared_by, kind = kind, typing.get_type_hints(kind, include_extras=True).get(str(key))
        else:
            declared_by = None
            arguments = typing.get_args(kind)
            kind = arguments[-1] if arguments else None
    return tuple(path), declared_by


def _plain_type(kind: Any) -> Any:
    """The type without `Annotated` and without `None`: X for `X | None`."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if _is_union(kind):
        members = [member for member in typing.get_args(kind) if member is not type(None)]
        return _plain_type(members[0]) if len(members) == 1 else Union[tuple(members)]  # noqa: UP007
    return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _message(path: Sequence[Key], found: Sequence[ErrorDetails], owner: type | None, is_study: bool) -> str:
    """One message for all errors of a field. The branches of a union are listed as alternatives."""
    details = found[0]
    kind = details["type"]
    name = str(path[-1]) if path else ""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        if is_study and len(path) == 1 and name in SECTIONS:
            return f"unknown field. It belongs under `base`: base.{name}."
        if is_study and path[0] == "base" and "." in name:
            return f"unknown field. In the base, fields are nested: {name.replace('.', ': {', 1)}: …}}."
        return unknown_field(name, field_names(owner))
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        meaning = owner.model_fields[name].description if owner and issubclass(owner, BaseModel) else None
        return f"this field is required. {' '.join((meaning or '').split())}".rstrip()
    expected = [_expected(one) for one in found]
    if all(expected):
        alternatives = " or ".join(dict.fromkeys(text for text in expected if text))
        value = details["input"]
        choices = [choice for one in found for choice in _choices(one)]
        guess = did_you_mean(value, choices) if isinstance(value, str) else ""
        return f"must be {alternatives}, this is {show(value)}.{guess}"
    return "; ".join(dict.fromkeys(_text(one) for one in found))


def _expected(details: ErrorDetails) -> str | None:
    kind, context = details["type"], details.get("ctx", {})
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {context[key]:g}"
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind == "int_from_float":
        return "a whole number"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    if kind.endswith(("_type", "_parsing")) or kind == "none_required":
        return _EXPECTED.get(kind.split("_")[0])
    return None


def _choices(details: ErrorDetails) -> list[str]:
    """The texts that a literal allows, taken from the one sentence in which pydantic gives them."""
    if details["type"] != "literal_error":
        return []
    return re.findall(r"'([^']*)'", str(details["ctx"]["expected"]))


def _text(details: ErrorDetails) -> str:
    """The message of our own validator, or else pydantic's."""
    if details["type"] in ("value_error", "assertion_error"):
        return str(details["ctx"]["error"])
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}, this is {show(details['input'])}"


def show(value: Any, limit: int = 60) -> str:
    """A value as a study file would write it, shortened to ``limit`` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def section_fields() -> dict[str, list[str] | None]:
    """The fields of each section of a base; None for the model, whose fields depend on its name."""
    base = StudySpec.model_fields["base"].annotation
    hints = typing.get_type_hints(base)
    return {name: field_names(hints[name]) if name != "model" else None for name in SECTIONS}
