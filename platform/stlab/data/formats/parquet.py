"""Parquet tables in the long format: ``timestamp, node, value…``, with one row per reading."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stlab.data.formats.checks import checked_timestamps, checked_values, on_even_grid
from stlab.data.formats.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_parquet(path: Path, family: str) -> Series:
    """Read readings in any order. The columns beside ``timestamp`` and ``node`` are the channels, (T, N, C).

    Nodes are sorted by id, and numeric ids by value. A pair of time and node without a row is NaN, and so is an empty value. 0 means no
    reading, unless the file's metadata say that it is one.

    Raises:
        DataError: the file is not Parquet or damaged, a column is missing or of another type, a pair appears twice, or the times fail the
            checks.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: no Parquet file, or damaged ({error}). Fetch it again.") from error
    # pandas saves an index that is not a plain range as a column, which has no meaning here.
    table = table.drop_columns([name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)])
    channels = [name for name in table.column_names if name not in ("timestamp", "node")]
    if "timestamp" not in table.column_names or "node" not in table.column_names or not channels:
        there = ", ".join(table.column_names) or "nothing"
        raise DataError(f"{path}: columns {there}; timestamp, node and at least one of values are needed.")
    if not table.num_rows:
        raise DataError(f"{path}: a table without rows.")
    times, step = np.unique(_times(table["timestamp"], path), return_inverse=True)
    names, node = _nodes(table["node"], path)
    pair = step.astype(np.int64) * len(names) + node
    _check_once(pair, times, names, path)
    values = np.full((len(times) * len(names), len(channels)), np.nan)
    for i, channel in enumerate(channels):
        values[pair, i] = _numbers(table[channel], channel, path)
    shape = (len(times), len(names), len(channels))
    array = channels[0] if len(channels) == 1 else ", ".join(channels)
    stamps, even, left_out = on_even_grid(times, values.reshape(shape), f"{path}: array `timestamp`")
    return Series(
        checked_values(even, family, str(path), array),
        checked_timestamps(stamps, len(stamps), str(path), "timestamp"),
        source=str(path),
        name=path.stem,
        channel_names=tuple(channels),
        node_names=names,
        null=None if _zero_is_a_reading(table) else 0.0,
        array=array,
        left_out=left_out,
    )


def _zero_is_a_reading(table: pa.Table) -> bool:
    """Whether the file says that it counts, so that 0 is a count: ``stlab data zones`` writes that."""
    try:
        said = json.loads((table.schema.metadata or {}).get(b"stlab", b"{}"))
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("zero_is_a_reading") is True


def _times(column: pa.ChunkedArray, path: Path) -> NDArray[np.datetime64]:
    kind = column.type
    if not pa.types.is_timestamp(kind):
        raise DataError(f"{path}: column `timestamp` holds {kind}, not timestamps. Save it as timestamp[s].")
    if kind.tz is not None:
        raise DataError(f"{path}: column `timestamp` has the time zone {kind.tz}. Save local time without a zone.")
    _check_no_gap(column, "timestamp", path)
    times: NDArray[np.datetime64] = column.to_numpy().astype(f"datetime64[{kind.unit}]")
    return times


def _nodes(column: pa.ChunkedArray, path: Path) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The sorted ids, and the index of each row's id among them."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: column `node` holds {kind}; whole numbers or text are needed.")
    _check_no_gap(column, "node", path)
    ids, index = np.unique(column.cast(kind).to_numpy(), return_inverse=True)
    return tuple(str(name) for name in ids), index.astype(np.int64)


def _check_no_gap(column: pa.ChunkedArray, name: str, path: Path) -> None:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{path}: column `{name}` is empty at row {row}. Every reading needs its time and its node.")


def _check_once(pair: NDArray[np.int64], times: NDArray[np.datetime64], names: tuple[str, ...], path: Path) -> None:
    order = np.argsort(pair, kind="stable")
    again = np.flatnonzero(np.diff(pair[order]) == 0)
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        step, node = divmod(int(pair[first]), len(names))
        raise DataError(
            f"{path}: {len(again)} readings appear twice, the first at rows {first} and {second}: timestamp "
            f"{times[step].astype('datetime64[s]')}, node {names[node]}. Keep one row for each pair."
        )


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.float64]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{path}: column `{name}` holds {column.type}, not numbers. Save it as float, or leave it out.")
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values
