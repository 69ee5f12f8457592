"""From a path to what it holds. A new format is one function and one line in ``READERS``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.data.content import ReadyWindows, Series
from stlab.data.npz import read_npz
from stlab.data.synthetic import synthetic_city
from stlab.data.unist import read_unist
from stlab.errors import DataError

if TYPE_CHECKING:
    from stlab.spec import DataSpec

READERS: dict[str, Callable[[Path, str], Series | ReadyWindows]] = {".npz": read_npz, ".json": read_unist}
SYNTHETIC: dict[str, Callable[[], Series]] = {"synthetic:city": synthetic_city}
READABLE_FAMILIES = ("grid",)


def read_content(spec: DataSpec) -> Series | ReadyWindows:
    """Read and check what ``spec.path`` names.

    Raises:
        DataError: nothing there, a folder, an unknown kind of file, a family that cannot be read yet, or content
            that fails its checks.
    """
    if spec.family not in READABLE_FAMILIES:
        raise DataError(
            f"{spec.path}: data of the family {spec.family} cannot be read yet, only "
            f"{', '.join(READABLE_FAMILIES)}. Set data.family: grid."
        )
    if spec.path.startswith("synthetic:"):
        if spec.path not in SYNTHETIC:
            raise DataError(f"{spec.path}: no such generated data; there is {', '.join(SYNTHETIC)}.")
        return SYNTHETIC[spec.path]()
    path = Path(spec.path).expanduser()
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in READERS)
        raise DataError(f"{path}: a folder. Give a file ({known}); in it: {', '.join(files[:10]) or 'none of these'}.")
    if not path.exists():
        raise DataError(_not_found(path))
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path}: files that end in '{path.suffix}' cannot be read; known: {known}, and {', '.join(SYNTHETIC)}."
        )
    try:
        return READERS[path.suffix.lower()](path, spec.family)
    except PermissionError as error:
        raise DataError(
            f"{path}: no permission to read it. Change its mode, or copy it to where you may read."
        ) from error


def _not_found(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return (
            f"{path}: no such file, and no folder {folder.absolute()}. Relative paths start where the command runs, "
            f"{Path.cwd()}."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"{path}: no such file. Did you mean {' or '.join(str(folder / name) for name in near)}?"
    readable = [name for name in names if Path(name).suffix in READERS]
    return f"{path}: no such file. In {folder.absolute()} there is {', '.join(readable[:10]) or 'no data file'}."
