"""Validation errors as people read them: where the value was written, what is wrong with it, and what was allowed."""

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

# What pydantic's error types ask for. Those that share a prefix ask for the same.
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
    """One thing wrong with a study. Problems sort in the order of the file, those of overrides last."""

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
        path: From the root of the study; with ``section``, from that section of a trial.
        source: Tells the line. None for a study that was not read from text.
        section: ``data``, ``model``, ``train`` or ``resources``: the field is a trial's, and the variant, the axis or
            the base wrote it, whichever is the first that did.
        variant: The trial's variant.
    """
    loc = tuple(path)
    # What a model says of itself has no place; it begins with the field, perhaps after the data's name.
    named = re.match(rf"(?:\S+: )?{section}\.(\w+)", message) if section and not loc else None
    # Where nobody wrote that field it may be another's doing.
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
    """What a validation found, one problem a field.

    Args:
        error: What pydantic raised.
        owner: The pydantic model or dataclass that was validated against: its fields are the allowed ones.
        source, section, variant: See `problem`. With ``section`` it is the trial's section that was validated.
    """
    by_field: dict[tuple[Key, ...], list[ErrorDetails]] = {}
    owners: dict[tuple[Key, ...], type | None] = {}
    for details in error.errors(include_url=False):
        path, holder = _field_path(details["loc"], owner)
        by_field.setdefault(path, []).append(details)
        owners[path] = holder
    return [
        problem(_message(path, found, owners[path], not section), path, source, section=section, variant=variant)
        for path, found in by_field.items()
    ]


def study_error(problems: Iterable[Problem]) -> StudyError:
    """One error that says it all, a line a problem; what several trials share is said once."""
    return StudyError("\n".join(dict.fromkeys(str(found) for found in sorted(problems))))


def field_names(owner: type | None) -> list[str]:
    """The fields of a pydantic model or a dataclass, as declared; empty for anything else."""
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
    """A pydantic location less the branches of unions that it names, and the class that holds the last field."""
    path: list[Key] = []
    holder: type | None = None
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
            holder, kind = kind, typing.get_type_hints(kind, include_extras=True).get(str(key))
        else:
            holder = None
            arguments = typing.get_args(kind)
            kind = arguments[-1] if arguments else None
    return tuple(path), holder


def _plain_type(kind: Any) -> Any:
    """Less `Annotated` and `None`: what is left of `X | None` is X."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if _is_union(kind):
        members = [member for member in typing.get_args(kind) if member is not type(None)]
        return _plain_type(members[0]) if len(members) == 1 else Union[tuple(members)]  # noqa: UP007
    return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _message(path: Sequence[Key], found: Sequence[ErrorDetails], holder: type | None, is_study: bool) -> str:
    """One message for all that is wrong with a field; the branches of a union are alternatives."""
    details = found[0]
    kind = details["type"]
    name = str(path[-1]) if path else ""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        if is_study and len(path) == 1 and name in SECTIONS:
            return f"unknown field. It belongs under `base`: base.{name}."
        if is_study and path[0] == "base" and "." in name:
            return f"unknown field. In the base, fields are nested: {name.replace('.', ': {', 1)}: …}}."
        return unknown_field(name, field_names(holder))
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        meaning = holder.model_fields[name].description if holder and issubclass(holder, BaseModel) else None
        return f"this field is needed. {meaning or ''}".rstrip()
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
    """The texts that a literal allows; pydantic gives them as one sentence."""
    if details["type"] != "literal_error":
        return []
    return re.findall(r"'([^']*)'", str(details["ctx"]["expected"]))


def _text(details: ErrorDetails) -> str:
    """A validator's own words, or else pydantic's."""
    if details["type"] in ("value_error", "assertion_error"):
        return str(details["ctx"]["error"])
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}, this is {show(details['input'])}"


def show(value: Any, limit: int = 60) -> str:
    """A value as a study would write it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def section_fields() -> dict[str, list[str] | None]:
    """The fields of each section of a base; None where only the model knows."""
    base = StudySpec.model_fields["base"].annotation
    hints = typing.get_type_hints(base)
    return {name: field_names(hints[name]) if name != "model" else None for name in SECTIONS}
