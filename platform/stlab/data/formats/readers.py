"""Read the file at a path. A new format needs one function and one line in ``READERS``, by family and suffix."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.data.dataset import resolved_null
from stlab.data.formats.content import ReadyWindows, Series, flattened
from stlab.data.formats.csv_table import read_csv
from stlab.data.formats.hdf import read_hdf
from stlab.data.formats.npz import read_npz
from stlab.data.formats.parquet import read_parquet
from stlab.data.formats.synthetic import CITY, synthetic_data
from stlab.data.formats.times import with_timestamps
from stlab.data.formats.unist import read_unist
from stlab.data.graph import copied, with_network
from stlab.errors import DataError
from stlab.files import is_uri, shown

if TYPE_CHECKING:
    from stlab.study.spec import DataSpec

Reader = Callable[[Path, str], Series | ReadyWindows]

READERS: dict[str, dict[str, Reader]] = {
    "grid": {".npz": read_npz, ".json": read_unist},
    "sensors": {".npz": read_npz, ".h5": read_hdf, ".hdf5": read_hdf, ".csv": read_csv, ".parquet": read_parquet},
}
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")


def read_content(spec: DataSpec) -> Series | ReadyWindows:
    """Read and check the file of a specification, with all its channels, and the timestamps, node ids and edges that it gives.

    Raises:
        DataError: the file does not exist, is a folder or of an unknown kind, or its content fails the checks.
    """
    content = _read(spec)
    if isinstance(content, ReadyWindows):
        if spec.start is not None:
            raise DataError(f"{content.source}: ready-made windows have their own times. Leave data.start out.")
        return content
    content = with_timestamps(replace(content, null=resolved_null(spec, content.null)), spec)
    return with_network(content, spec) if spec.family == "sensors" else content


def _read(spec: DataSpec) -> Series | ReadyWindows:
    if spec.path.startswith("synthetic:"):
        grid = synthetic_data(spec.path)
        return flattened(grid) if spec.family == "sensors" else grid
    if is_uri(spec.path):
        return _read_copy(spec)
    return _read_file(Path(spec.path).expanduser(), spec)


def _read_copy(spec: DataSpec) -> Series | ReadyWindows:
    """Read the file at a URI by way of a local copy. Messages name the URI."""
    path, uri = copied(spec.path, "data.path"), shown(spec.path)
    try:
        return replace(_read_file(path, spec), source=uri)
    except DataError as error:
        raise DataError(str(error).replace(str(path), uri)) from error


def _read_file(path: Path, spec: DataSpec) -> Series | ReadyWindows:
    readers = READERS[spec.family]
    known = ", ".join(readers)
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in readers)
        raise DataError(f"{path}: a folder. Give a file ({known}); in it: {', '.join(files[:10]) or 'none of these'}.")
    if not path.exists():
        raise DataError(_not_found(path, readers))
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path}: {_unreadable(suffix, spec.family)}")
    try:
        return readers[suffix](path, spec.family)
    except PermissionError as error:
        raise DataError(
            f"{path}: no permission to read it. Change its mode, or copy it to where you may read."
        ) from error


def _unreadable(suffix: str, family: str) -> str:
    if suffix in _PICKLES:
        return "pickled, which is refused: loading it can run any code. Save the array with np.savez(path, data=…)."
    for other, readers in READERS.items():
        if suffix in readers:
            return f"files that end in '{suffix}' are read for the family {other} alone. Set data.family: {other}."
    known = f"{', '.join(READERS[family])}, and {CITY}"
    return f"files that end in '{suffix}' cannot be read; known: {known}."


def _not_found(path: Path, readers: Mapping[str, Reader]) -> str:
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
    readable = [name for name in names if Path(name).suffix in readers]
    return f"{path}: no such file. In {folder.absolute()} there is {', '.join(readable[:10]) or 'no data file'}."
