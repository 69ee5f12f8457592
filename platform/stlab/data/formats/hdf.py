"""METR-LA's and PEMS-BAY's ``.h5``: a pandas table, times × sensors, in the fixed layout of ``DataFrame.to_hdf``.

h5py reads it array by array. pandas uses PyTables, which unpickles every attribute of a file that it opens, and unpickling can run any
code. This module reads only arrays of numbers and text, and attributes remain bytes.

The layout (pandas ``io/pytables.py``, ``BlockManagerFixed``) is a group with ``axis0`` (N,), the columns, and ``axis1`` (T,), the index as
integers since 1970. The index has the attribute ``kind``, which is ``datetime64`` (nanoseconds) or ``datetime64[unit]``. Each block of
columns of one type has ``block0_items`` (n,) and ``block0_values`` (T, n).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stlab.data.formats.checks import checked_timestamps, checked_values, on_even_grid
from stlab.data.formats.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    import h5py
    from numpy.typing import NDArray

_REMEDY = "Write it with DataFrame.to_hdf(path, key='df', format='fixed'), all columns float."


def read_hdf(path: Path, family: str) -> Series:
    """Read times × sensors as one channel, (T, N, 1). The node names are the columns.

    Raises:
        DataError: h5py is not installed, the file is not HDF5 or damaged, it holds no or several tables or another layout, its columns
            are pickled, or an array fails the checks.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: reading .h5 needs h5py, which is not installed: pip install 'stlab[h5]'.") from error
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: no HDF5 file; truncated or of another kind ({path.stat().st_size} bytes). Fetch it again.")
    try:
        with h5py.File(path, "r") as file:
            return _series(file, path, family)
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises these for truncated or damaged files
        raise DataError(f"{path}: cannot be read, it seems damaged ({error}). Fetch it again.") from error


def _series(file: h5py.File, path: Path, family: str) -> Series:
    key, group = _table(file, path)
    columns = _array(group, "axis0", path)
    names = tuple(_text(name) for name in columns)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: the sensor {twice} appears twice among the columns of `{key}`. Keep one.")
    times = _times(group, path)
    values = np.full((len(times), len(names)), np.nan)
    place = {name: i for i, name in enumerate(names)}
    filled = np.zeros(len(names), dtype=bool)
    for block in sorted(name for name in group if re.fullmatch(r"block\d+_values", name)):
        items = [_text(item) for item in _array(group, block.replace("values", "items"), path)]
        part = _array(group, block, path)
        if part.shape != (len(times), len(items)) or part.dtype.kind not in "fiu":
            raise DataError(
                f"{path}: `{key}/{block}` has shape {part.shape} ({part.dtype}); numbers of shape "
                f"{(len(times), len(items))}, times × sensors, are needed. {_REMEDY}"
            )
        at = [place[item] for item in items]
        values[:, at], filled[at] = part, True
    if not filled.all():
        raise DataError(f"{path}: no readings of sensor {names[int(np.argmin(filled))]} in `{key}`. {_REMEDY}")
    times, values, left_out = on_even_grid(times, values, f"{path}: array `{key}/axis1`")
    checked = checked_values(values[:, :, None], family, str(path), key)
    stamps = checked_timestamps(times, len(times), str(path), f"{key}/axis1")
    return Series(
        checked, stamps, source=str(path), name=path.stem, node_names=names, null=0.0, array=key, left_out=left_out
    )


def _table(file: h5py.File, path: Path) -> tuple[str, h5py.Group]:
    """The one group that holds a table in the fixed layout."""
    groups: dict[str, Any] = {}
    others: list[str] = []

    def visit(name: str, node: Any) -> None:
        if hasattr(node, "keys"):
            if "axis0" in node and "axis1" in node:
                groups[name] = node
            elif "table" in node:
                others.append(name)

    file.visititems(visit)
    if len(groups) == 1:
        return next(iter(groups.items()))
    if groups:
        raise DataError(f"{path}: holds {len(groups)} tables, {', '.join(groups)}. Save the one that is meant by itself.")
    if others:
        raise DataError(
            f"{path}: `{others[0]}` is in pandas' `table` layout, whose column names are pickled; that is refused. {_REMEDY}"
        )
    raise DataError(f"{path}: no table of pandas in it; there: {', '.join(file) or 'nothing'}. {_REMEDY}")


def _array(group: h5py.Group, name: str, path: Path) -> NDArray[Any]:
    place = f"{group.name.strip('/')}/{name}"
    if name not in group or not hasattr(group[name], "shape"):
        raise DataError(f"{path}: no array `{place}`. {_REMEDY}")
    node = group[name]
    if node.dtype.kind == "O":  # PyTables stores objects that are not numbers as pickles in arrays of variable length
        raise DataError(
            f"{path}: array `{place}` holds pickled Python objects, which are refused: loading them can run any code. "
            f"{_REMEDY}"
        )
    array: NDArray[Any] = node[...]
    return array


def _times(group: h5py.Group, path: Path) -> NDArray[np.datetime64]:
    place = f"{group.name.strip('/')}/axis1"
    stored, attributes = _array(group, "axis1", path), group["axis1"].attrs
    kind = _text(attributes.get("kind", b""))
    found = re.fullmatch(r"datetime64(?:\[(s|ms|us|ns)\])?", kind)
    if found is None or stored.dtype.kind != "i":
        raise DataError(f"{path}: the index `{place}` holds {kind or stored.dtype}, not times. {_REMEDY}")
    if "tz" in attributes:
        raise DataError(
            f"{path}: the index `{place}` has a time zone. Take it off (df.tz_localize(None)), in the sensors' local time."
        )
    return stored.astype(np.int64).astype(f"datetime64[{found.group(1) or 'ns'}]")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
