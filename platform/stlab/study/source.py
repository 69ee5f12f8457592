"""The source of a study: its text, the ``--set`` overrides, and the place where each field was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from stlab.errors import StudyError
from stlab.model_files import located
from stlab.study.aliases import MOVED, with_current_fields
from stlab.study.model_places import with_models
from stlab.study.spec import StudySpec
from stlab.study.yaml import read_yaml

SECTIONS = ("data", "model", "train", "resources")
"""The sections of a base. Dotted paths of variants, axes and overrides start with one of them."""

_ENTRIES = ("variants", "datasets")
"""Mappings whose entries are overrides of the base, dotted or nested."""

Key = str | int
_EXAMPLE = "Write --set path=value, as in --set train.lr=1e-3 or --set 'seeds=[0, 1, 2]'."


@dataclass(frozen=True)
class Override:
    """One ``--set``: ``--set model.rank=4`` has the target ``("base", "model", "rank")`` and the value 4."""

    text: str
    target: tuple[str, ...]
    value: Any

    def with_current_path(self) -> tuple[Override, tuple[str, ...]]:
        """The override with the current path of its field, and the path it had where that is another."""
        is_nested = self.target[0] == "base"
        path = _dotted(self.target[1:]) if is_nested else self.target[-1]
        if path not in MOVED:
            return self, ()
        target = ("base", *MOVED[path].split(".")) if is_nested else (*self.target[:-1], MOVED[path])
        return replace(self, target=target), (path,)


@dataclass(frozen=True)
class StudySource:
    """A study before validation: plain values with the overrides applied, and the parsed text, which knows the lines."""

    label: str
    """The name of the file in messages."""
    root: yaml.Node | None
    data: dict[str, Any]
    overrides: tuple[Override, ...] = ()
    former_paths: tuple[str, ...] = ()
    """Paths by which it names fields that have moved (:mod:`stlab.study.aliases`)."""
    dataset: str = ""
    """The data set whose trials are spoken of, where there are several."""

    def on(self, dataset: str) -> StudySource:
        """The same source for the trials on one of its data sets, whose entry comes before the base."""
        return replace(self, dataset=dataset)

    @classmethod
    def from_text(
        cls, text: str, label: str = "<study>", overrides: Sequence[str] = (), folder: Path | None = None
    ) -> StudySource:
        """Read YAML and apply ``--set`` overrides in their order.

        Args:
            folder: where files of models are looked for before the working directory.

        Raises:
            StudyError: the text or an override is invalid; the message names line and column, or the override.
        """
        root, data = read_yaml(text, lambda line, column: f"{label}:{line}:{column}")
        if not isinstance(data, dict):
            found = "is empty" if data is None else f"holds a {'list' if isinstance(data, list) else 'single value'}"
            raise StudyError(f"{label}: {found}. A study is a mapping with at least `name` and `base`.")
        data, former_paths = with_current_fields(data)
        parsed = []
        problems = []
        for override_text in overrides:
            try:
                override, old = parse_override(override_text, data).with_current_path()
                former_paths += old
                _apply(override, data)
                parsed.append(override)
            except StudyError as error:
                problems.append(str(error))
        if problems:
            raise StudyError("\n".join(problems))
        if any(override.target == ("base", "data", "path") for override in parsed):
            if named := next((override for override in parsed if override.target[0] == "datasets"), None):
                both = f"--set data.path takes one data set in place of the study's, and --set {_short(named.text)} names others."
                raise StudyError(f"{both} Give one of both.")
            data.pop("datasets", None)
        data, inside = with_current_fields(data)  # of overrides whose values are mappings
        former_paths += inside
        data = with_models(data, lambda name: located(name, folder) if isinstance(name, str) else name)
        return cls(label, root, data, tuple(parsed), tuple(dict.fromkeys(former_paths)))

    def place(self, loc: Sequence[Key]) -> tuple[float, str]:
        """The override or the line that wrote the field at ``loc``, or else the nearest enclosing one.

        Returns:
            A rank to sort by (lines first, then overrides in their order), and the place: ``study.yaml:12`` or
            ``--set model.rank=4``.
        """
        name = _dotted(loc)
        for index in reversed(range(len(self.overrides))):
            override = self.overrides[index]
            if f"{name}.".startswith(f"{_dotted(override.target)}."):
                return 1e9 + index, f"--set {_short(override.text)}"
        line = _line(self.root, self._as_written(loc)) if self.root else None
        return (line, f"{self.label}:{line}") if line else (0, self.label)

    def _as_written(self, loc: Sequence[Key]) -> tuple[Key, ...]:
        """The location in the text, which may have the field under a former path."""
        name = _dotted(loc)
        for old in self.former_paths:
            if name.endswith(f".{MOVED[old]}"):
                *above, last = f"{name.removesuffix(MOVED[old])}{old}".split(".")
                if self.root and _line(self.root, (*above, last)) != _line(self.root, tuple(above)):
                    return (*above, last)
        return tuple(loc)

    def is_written(self, loc: Sequence[Key]) -> bool:
        """Whether the study, with its overrides, gives a value at ``loc`` itself."""
        name = _dotted(loc)
        return any(_dotted(keys) == name for keys in leaves(self.data))

    def origin(self, path: Sequence[Key], variant: str | None = None) -> tuple[Key, ...]:
        """The location that sets a trial's field ``path``: in the variant, else on an axis, else with the data set, else in the base.

        If ``path`` holds several fields and the variant changes one of them, it is the variant as a whole.
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
        datasets = self.data.get("datasets")
        entry = datasets.get(self.dataset) if isinstance(datasets, dict) else None
        for key in leaves(entry) if isinstance(entry, dict) else ():
            if f"{name}.".startswith(f"{entry_path(_dotted(key))}."):
                return ("datasets", self.dataset, *key)
        return ("base", *path)


def entry_path(key: str) -> str:
    """The dotted path that a key of a data set's entry writes: a field of ``data`` stands there by its bare name."""
    return key if key.partition(".")[0] in SECTIONS else f"data.{key}"


def leaves(mapping: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The keys that lead to each value of nested mappings. An empty mapping has no values."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from ((key, *rest) for rest in leaves(value))
        else:
            yield (key,)


def flatten_overrides(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's overrides, dotted or nested or both, by dotted path. Lists are values, and empty mappings are ignored.

    Raises:
        StudyError: two entries write the same field, or one writes a field and the other a part of it.
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
    """" Did you mean 'rank'?", with its leading space, or an empty text."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ""


def parse_override(text: str, data: Mapping[str, Any]) -> Override:
    """Parse one ``--set``. ``data`` names the variants, whose names may contain dots and equals signs.

    Raises:
        StudyError: the ``=`` is missing, the path is empty, its first part is unknown, or the value is not YAML.
    """
    head = f"--set {_short(text)}"
    variant, after = _variant_in(text, data)
    path, equals, value_text = after.partition("=")
    segments = path.strip().split(".") if path.strip() or not variant else []
    if not equals:
        raise StudyError(f"{head}: the `=` is missing. {_EXAMPLE}")
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
    if first == "datasets" and len(rest_segments) > 1:
        return Override(text, ("datasets", rest_segments[0], ".".join(rest_segments[1:])), value)
    if rest_segments and first not in ("base", "variants", "datasets", "search", "paper", "ablate", "report"):
        raise StudyError(f"{head}: `{first}` has no parts. Set it as a whole: --set {first}=…")
    return Override(text, tuple(segments), value)


def _variant_in(text: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """The longest variant name at the start of an override's path, and the rest; "" and the whole text if there is none."""
    variants = data.get("variants")
    start, _, rest = text.lstrip().partition(".")
    if start == "variants" and isinstance(variants, dict):
        for name in sorted((str(name) for name in variants), key=len, reverse=True):
            if name and rest.startswith(name) and rest[len(name) :].lstrip()[:1] in (".", "="):
                return name, rest[len(name) :].lstrip().removeprefix(".")
    return "", text


def _apply(override: Override, data: dict[str, Any]) -> None:
    keys = override.target
    if keys[0] in _ENTRIES and len(keys) == 3:
        variant = _mapping_at(data, keys[:2], override)
        for written in [*leaves(variant)]:
            if _dotted(written) == keys[2] or _dotted(written).startswith(f"{keys[2]}."):
                _remove(variant, written)
        variant[keys[2]] = override.value
    elif keys[0] == "variants" and len(keys) == 2 and override.value is None:
        _leave_out(str(keys[1]), data)
    elif keys[0] == "datasets" and len(keys) == 2 and override.value is None:
        _mapping_at(data, keys[:1], override).pop(keys[1], None)
    else:
        _mapping_at(data, keys[:-1], override)[keys[-1]] = override.value


def _leave_out(variant: str, data: dict[str, Any]) -> None:
    """Take a row out of the study, and its place in a paper's table with it."""
    paper = data.get("paper")
    for names in (data.get("variants"), paper.get("rows") if isinstance(paper, dict) else None):
        if isinstance(names, dict):
            names.pop(variant, None)


def _mapping_at(data: dict[str, Any], keys: Sequence[str], override: Override) -> dict[str, Any]:
    """The mapping at ``keys``, created if necessary. Mappings on the way are copied, since YAML aliases share them."""
    for index, key in enumerate(keys):
        inner = data.get(key)
        if inner is not None and not isinstance(inner, dict):
            field = _dotted(keys[: index + 1])
            raise StudyError(f"--set {_short(override.text)}: `{field}` is {inner!r}, which has no fields to set.")
        data[key] = dict(inner or {})
        data = data[key]
    return data


def _remove(mapping: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys[:-1]:
        mapping[key] = dict(mapping[key])
        mapping = mapping[key]
    del mapping[keys[-1]]


def _line(node: yaml.Node, keys: tuple[Key, ...]) -> int | None:
    """Line, from 1, of the deepest key or item on the way to ``keys``, which may be dotted. None if nothing matches."""
    if isinstance(node, yaml.SequenceNode) and keys and isinstance(keys[0], int) and keys[0] < len(node.value):
        item = node.value[keys[0]]
        return _line(item, keys[1:]) or item.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        # In reverse order, since the constructor put the merged keys of `<<` before a mapping's own keys, which take precedence.
        for key, value in reversed(node.value):
            for count in range(len(keys), 0, -1):
                if key.value == _dotted(keys[:count]):
                    return _line(value, keys[count:]) or key.start_mark.line + 1
    return None


def _dotted(keys: Sequence[Key]) -> str:
    return ".".join(map(str, keys))


def _related(one: str, other: str) -> bool:
    """Whether two dotted paths are equal, or one is a prefix of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
