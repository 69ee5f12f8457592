"""The source files that a number comes from: what a module imports, directly or not, and a digest of each file's code.

Nothing is imported here. Comments, docstrings, formatting, annotations of functions and the texts of errors and log lines do not count,
since they change no number.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

Roots = Mapping[str, Path]
"""Top-level name → its package's folder, or its file."""

_LENGTH = 16
_CONFIG_METHODS = {"check", "components", "files", "inert", "relative_cost"}
"""Methods of a configuration that describe the model. Their code is not hashed, so the network must compute nothing with them."""
_PICTURE = "model_input"
"""The method that shows a model's image to a reader. It is not hashed where nothing in the file calls it."""
_LOGGING = {"logger", "logging", "warnings"}


def digests(entries: Iterable[str], roots: Roots, leave_out: Collection[str] = ()) -> dict[str, str]:
    """The files that modules consist of, by their path below the root's parent: ``stmodels/layers/linear.py`` → digest.

    Args:
        entries: dotted names of modules.
        roots: only modules below these are followed.
        leave_out: modules and packages that are not followed.
    """
    found: dict[str, str] = {}
    waiting = list(entries)
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen or _is_below(module, leave_out):
            continue
        seen.add(module)
        if (path := _file_of(module, roots)) is not None:
            digest, imported = _read(path, path.stat().st_mtime_ns, module)
            top = roots[module.partition(".")[0]]
            found[path.relative_to(top.parent).as_posix()] = digest
            waiting += imported
        waiting += [above] if (above := module.rpartition(".")[0]) else []  # the packages that the import runs on its way
    return dict(sorted(found.items()))


def _is_below(module: str, packages: Collection[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _file_of(module: str, roots: Roots) -> Path | None:
    """The file of a module; None if it lies below no root, or is a name inside a module."""
    top, *below = module.split(".")
    if top not in roots:
        return None
    place = roots[top]
    if place.is_file():
        return place if not below else None
    place = place.joinpath(*below)
    candidates = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _read(path: Path, _changed_at: int, module: str) -> tuple[str, tuple[str, ...]]:
    """The digest of a file and the modules that it may import; names that are no modules are among these."""
    tree = ast.parse(path.read_bytes(), str(path))
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    tree = _Code(() if _PICTURE in called else (_PICTURE,)).visit(tree)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if body == [] and not isinstance(node, ast.Module):
            body.append(ast.Pass())
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    text = ast.unparse(ast.fix_missing_locations(tree))
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH], tuple(_imports(tree, package))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


class _Code(ast.NodeTransformer):
    """Leaves out of a file what changes no number; ``pictures`` are methods among that."""

    def __init__(self, pictures: Collection[str]) -> None:
        self.pictures = set(pictures)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Docstrings and the calls of loggers are left out."""
        called = node.value.func if isinstance(node.value, ast.Call) else None
        while isinstance(called, ast.Attribute):
            called = called.value
        is_log = isinstance(called, ast.Name) and called.id in _LOGGING
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_log or is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """The kind of an error counts, its text does not."""
        error = node.exc
        return ast.Raise(exc=error.func if isinstance(error, ast.Call) else error, cause=None)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(test=node.test, msg=None)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """What is imported for type checkers alone is not imported."""
        visited = self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else visited

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """A configuration's answers about a model compute nothing, and a picture is made after all numbers."""
        is_config = any(ast.unparse(base).endswith("Config") for base in node.bases) or node.name == "ModelConfig"
        left_out = self.pictures | (_CONFIG_METHODS if is_config else set())
        node.body = [part for part in node.body if not (isinstance(part, ast.FunctionDef) and part.name in left_out)]
        return self.generic_visit(node)
