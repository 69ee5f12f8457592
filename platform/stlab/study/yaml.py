"""Read and write YAML by the core schema of YAML 1.2, without duplicate keys and without tags that build objects.

PyYAML implements YAML 1.1, in which ``3e-4`` is a string, ``off`` is false and ``010`` is eight. Editors, JSON and people
expect YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from stlab.errors import StudyError

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA: list[tuple[str, str, list[str]]] = [
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
]
_PLAIN_TAGS = {_TAG + name for name in ("null", "bool", "int", "float", "str", "map", "seq", "merge")}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute, without YAML 1.1's rules)


class _Dumper(yaml.SafeDumper):
    """Applies the rules of YAML 1.1 and of 1.2, and so quotes every string that one of them would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


def _sequence(dumper: _Dumper, value: list[Any] | tuple[Any, ...]) -> yaml.SequenceNode:
    scalars = not any(isinstance(item, (list, tuple, dict)) for item in value)
    return dumper.represent_sequence(_TAG + "seq", value, flow_style=scalars)


for _name, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
_Loader.add_constructor(_TAG + "int", _integer)
_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(tuple, _sequence)

Where = Callable[[int, int], str]
"""From line and column, both counted from 1, to the beginning of an error message."""


def read_yaml(text: str, where: Where) -> tuple[yaml.Node | None, Any]:
    """The one YAML document in ``text``: its root node, which knows the lines, and its value. The root of an empty text is None.

    Raises:
        StudyError: there is a syntax error; or a key appears twice or is not text, a tag is not of a plain value, or an alias is
            inside of what it refers to. The message lists every occurrence of the latter.
    """
    try:
        loader = _Loader(text)
        root: yaml.Node | None = loader.get_single_node()
        if root is None:
            return None, None
        if problems := list(_oddities(loader, root, where)):
            raise StudyError("\n".join(problems))
        return root, loader.construct_document(root)
    except yaml.reader.ReaderError as error:
        lines = text[: error.position + 1].split("\n")
        message = f"the character {text[error.position]!r} is not allowed in YAML. Remove it, or write it as an escape."
        raise StudyError(f"{where(len(lines), len(lines[-1]))}: {message}") from error
    except yaml.MarkedYAMLError as error:
        raise StudyError(_syntax_error(error, where)) from error


def _syntax_error(error: yaml.MarkedYAMLError, where: Where) -> str:
    mark = error.problem_mark or error.context_mark
    head = where(mark.line + 1, mark.column + 1) if mark else where(1, 1)
    context = f" {error.context}" if error.context else ""
    if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        context += f" that starts in line {error.context_mark.line + 1}"
    hint = " Indent with spaces, not tabs." if "'\\t'" in (error.problem or "") else ""
    return f"{head}: not valid YAML: {error.problem or 'cannot be read'}{',' + context if context else ''}.{hint}"


def _oddities(loader: _Loader, root: yaml.Node, where: Where) -> Iterator[str]:
    """Everything that YAML allows and a study does not, depth first, in the order of the text."""
    seen: set[int] = set()

    def visit(node: yaml.Node, above: frozenset[int]) -> Iterator[str]:
        head = where(node.start_mark.line + 1, node.start_mark.column + 1)
        if id(node) in above:
            yield f"{head}: an alias (*name) is inside of what it refers to."
        if id(node) in seen:
            return
        seen.add(id(node))
        if message := _bad_tag(loader, node):
            yield f"{head}: {message}"
        if isinstance(node, yaml.MappingNode):
            yield from _bad_keys(node, where)
            children = [value for _, value in node.value]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        for child in children:
            yield from visit(child, above | {id(node)})

    yield from visit(root, frozenset())


def _bad_tag(loader: _Loader, node: yaml.Node) -> str | None:
    if node.tag not in _PLAIN_TAGS:
        return f"the tag {node.tag.replace(_TAG, '!!')} is not allowed in a study, which holds plain values. Remove it."
    if not isinstance(node, yaml.ScalarNode) or node.tag == _TAG + "str":
        return None
    natural = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    if node.tag == natural or (node.tag == _TAG + "float" and natural == _TAG + "int"):
        return None
    return f"{node.value!r} is not a valid {node.tag.replace(_TAG, '!!')}."


def _bad_keys(node: yaml.MappingNode, where: Where) -> Iterator[str]:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        head = where(line, key.start_mark.column + 1)
        if not isinstance(key, yaml.ScalarNode):
            yield f"{head}: a list or a mapping cannot be a key. Put text in {{braces}} or [brackets] into quotes."
        elif (key.tag, key.value) in first:
            where_first = first[key.tag, key.value]
            yield f"{head}: '{key.value}' appears twice in one mapping, first in line {where_first}. Keep one of them."
        elif message := _bad_key_tag(key):
            yield f"{head}: {message}"
        else:
            first[key.tag, key.value] = line


def _bad_key_tag(key: yaml.ScalarNode) -> str | None:
    if key.tag in (_TAG + "str", _TAG + "merge"):
        return None
    shown = key.value or "null"
    return f"a key must be text, and {shown} is {key.tag.replace(_TAG, '')} in YAML. Write it in quotes: '{shown}'."


def write_yaml(value: Any) -> str:
    """Plain values as YAML. Keys keep their order, unicode is not escaped, tuples become lists, and lists of scalars take one line."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
