"""Where a study comes from: its text and the ``--set`` overrides on it, and in which of them each field was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml

from stlab.errors import StudyError
from stlab.study.spec import StudySpec
from stlab.study.yaml import read_yaml

SECTIONS = ("data", "model", "train", "resources")
"""The parts of a base; dotted paths of variants, axes and overrides start with one of them."""

Key = str | int
_EXAMPLE = "Write --set path=value, as in --set train.lr=1e-3 or --set 'seeds=[0, 1, 2]'."


@dataclass(frozen=True)
class Override:
    """One ``--set``: ``--set model.rank=4`` has the target ``("base", "model", "rank")`` and the value 4."""

    text: str
    target: tuple[str, ...]
    value: Any


@dataclass(frozen=True)
class StudySource:
    """A study before validation: plain values with the overrides in them, and the marks that lead back to the text."""

    label: str
    """The file as messages name it."""
    root: yaml.Node | None
    data: dict[str, Any]
    overrides: tuple[Override, ...] = ()

    @classmethod
    def from_text(cls, text: str, label: str = "<study>", overrides: Sequence[str] = ()) -> StudySource:
        """Read YAML and apply ``--set`` overrides, in their order.

        Raises:
            StudyError: the text or an override is not what it should be; names line and column, or the override.
        """
        root, data = read_yaml(text, lambda line, column: f"{label}:{line}:{column}")
        if not isinstance(data, dict):
            found = "is empty" if data is None else f"holds a {'list' if isinstance(data, list) else 'single value'}"
            raise StudyError(f"{label}: {found}. A study is a mapping with at least `name` and `base`.")
        parsed = []
        problems = []
        for override_text in overrides:
            try:
                override = parse_override(override_text, data)
                _apply(override, data)
                parsed.append(override)
            except StudyError as error:
                problems.append(str(error))
        if problems:
            raise StudyError("\n".join(problems))
        return cls(label, root, data, tuple(parsed))

    def place(self, loc: Sequence[Key]) -> tuple[float, str]:
        """The override or the line that wrote the field at ``loc``; where it is unwritten, what is nearest around it.

        Returns:
            A rank to sort by (lines first, then overrides in their order) and the text: ``study.yaml:12`` or
            ``--set model.rank=4``.
        """
        name = _dotted(loc)
        for index in reversed(range(len(self.overrides))):
            override = self.overrides[index]
            if f"{name}.".startswith(f"{_dotted(override.target)}."):
                return 1e9 + index, f"--set {_short(override.text)}"
        line = _line(self.root, tuple(loc)) if self.root else None
        return (line, f"{self.label}:{line}") if line else (0, self.label)

    def is_written(self, loc: Sequence[Key]) -> bool:
        """Whether the study, as the overrides left it, says something at ``loc`` itself."""
        name = _dotted(loc)
        return any(_dotted(keys) == name for keys in leaves(self.data))

    def origin(self, path: Sequence[Key], variant: str | None = None) -> tuple[Key, ...]:
        """The location that gives a trial its field ``path``: in the variant, else on an axis, else in the base.

        For a ``path`` that holds several fields it is the variant that changes any of them: which one, none can tell.
        """
        name = _dotted(path)
        variants = self.data.get("variants")
        chosen = variants.get(variant) if isinstance(variants, dict) else None
        for key in leaves(chosen) if isinstance(chosen, dict) else ():
            if f"{name}.".startswith(f"{_dotted(key)}."):
                return ("variants", str(variant), *path)
            if _related(name, _dotted(key)):
                return ("variants", str(variant))
        axes = self.data.get("axes")
        for axis in axes if isinstance(axes, dict) else ():
            if _related(name, axis):
                return ("axes", axis)
        return ("base", *path)


def leaves(mapping: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The keys that lead to each value of nested mappings; an empty mapping holds none."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from ((key, *rest) for rest in leaves(value))
        else:
            yield (key,)


def flatten_overrides(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's overrides, dotted or nested or both, by dotted path. Lists are values, empty mappings say nothing.

    Raises:
        StudyError: two entries write the same field, or one writes a field and another something inside of it.
    """
    flat: dict[str, Any] = {}
    for keys in leaves(mapping):
        path = _dotted(keys)
        if path in flat:
            raise StudyError(f"`{path}` is written twice, dotted and nested. Keep one of them.")
        if other := next((known for known in flat if _related(path, known)), None):
            raise StudyError(f"`{other}` and `{path}` write the same field. Keep one of them.")
        value: Any = mapping
        for key in keys:
            value = value[key]
        flat[path] = value
    return flat


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """" Did you mean 'rank'?", with its leading space, or nothing."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ""


def parse_override(text: str, data: Mapping[str, Any]) -> Override:
    """What one ``--set`` says; ``data`` tells the variants, whose names may hold dots and equals signs.

    Raises:
        StudyError: no ``=``, an empty path, an unknown first segment, or a value that is not YAML.
    """
    head = f"--set {_short(text)}"
    variant, after = _variant_in(text, data)
    path, equals, value_text = after.partition("=")
    segments = path.strip().split(".") if path.strip() or not variant else []
    if not equals:
        raise StudyError(f"{head}: there is no `=` in it. {_EXAMPLE}")
    if not all(segments):
        raise StudyError(f"{head}: the path is empty or has an empty part. {_EXAMPLE}")
    value = read_yaml(value_text, lambda line, column: head)[1]
    if variant:
        rest = ".".join(segments)
        return Override(text, ("variants", variant, rest) if rest else ("variants", variant), value)
    first, *rest_segments = segments
    if first in SECTIONS:
        return Override(text, ("base", *segments), value)
    known = (*SECTIONS, *StudySpec.model_fields)
    if first not in known:
        guess = did_you_mean(first, known)
        raise StudyError(f"{head}: there is no `{first}`.{guess} A path starts with one of {', '.join(known)}.")
    if first == "axes" and rest_segments:
        return Override(text, ("axes", ".".join(rest_segments)), value)
    if first == "variants" and len(rest_segments) > 1:
        return Override(text, ("variants", rest_segments[0], ".".join(rest_segments[1:])), value)
    if first == "search" and rest_segments[:1] == ["space"] and len(rest_segments) > 1:
        return Override(text, ("search", "space", ".".join(rest_segments[1:])), value)
    if rest_segments and first not in ("base", "variants", "search", "paper", "ablate"):
        raise StudyError(f"{head}: `{first}` has no parts, it is set as a whole: --set {first}=…")
    return Override(text, tuple(segments), value)


def _variant_in(text: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """The longest variant that an override's path names, and what follows it; without one "" and the whole text."""
    variants = data.get("variants")
    start, _, rest = text.lstrip().partition(".")
    if start == "variants" and isinstance(variants, dict):
        for name in sorted((str(name) for name in variants), key=len, reverse=True):
            if name and rest.startswith(name) and rest[len(name) :].lstrip()[:1] in (".", "="):
                return name, rest[len(name) :].lstrip().removeprefix(".")
    return "", text


def _apply(override: Override, data: dict[str, Any]) -> None:
    keys = override.target
    if keys[0] == "variants" and len(keys) == 3:
        variant = _mapping_at(data, keys[:2], override)
        for written in [*leaves(variant)]:
            if _dotted(written) == keys[2] or _dotted(written).startswith(f"{keys[2]}."):
                _remove(variant, written)
        variant[keys[2]] = override.value
    else:
        _mapping_at(data, keys[:-1], override)[keys[-1]] = override.value


def _mapping_at(data: dict[str, Any], keys: Sequence[str], override: Override) -> dict[str, Any]:
    """The mapping at ``keys``, made where there is none. Copied on the way: other users of an alias keep theirs."""
    for index, key in enumerate(keys):
        inner = data.get(key)
        if inner is not None and not isinstance(inner, dict):
            holder = _dotted(keys[: index + 1])
            raise StudyError(f"--set {_short(override.text)}: `{holder}` is {inner!r}, which has no fields to set.")
        data[key] = dict(inner or {})
        data = data[key]
    return data


def _remove(mapping: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys[:-1]:
        mapping[key] = dict(mapping[key])
        mapping = mapping[key]
    del mapping[keys[-1]]


def _line(node: yaml.Node, keys: tuple[Key, ...]) -> int | None:
    """Line, from 1, of the deepest key or item towards ``keys``, dotted ones included. None where nothing matches."""
    if isinstance(node, yaml.SequenceNode) and keys and isinstance(keys[0], int) and keys[0] < len(node.value):
        item = node.value[keys[0]]
        return _line(item, keys[1:]) or item.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        # Backwards: the constructor put what `<<` merges in front of a mapping's own keys, which win.
        for key, value in reversed(node.value):
            for count in range(len(keys), 0, -1):
                if key.value == _dotted(keys[:count]):
                    return _line(value, keys[count:]) or key.start_mark.line + 1
    return None


def _dotted(keys: Sequence[Key]) -> str:
    return ".".join(map(str, keys))


def _related(one: str, other: str) -> bool:
    """Whether two dotted paths are the same, or one leads to the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
