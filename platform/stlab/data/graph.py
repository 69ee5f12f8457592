"""The network of sensors beside its readings: the ids of the nodes, and the edges of the road network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stlab.data.formats.content import Series
from stlab.errors import DataError, StorageError
from stlab.files import is_uri, local_copy, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec

_COSTS = ("cost", "distance")
_log = logging.getLogger(__name__)


def with_network(series: Series, spec: DataSpec) -> Series:
    """The series with node ids and edges from the files that the specification names.

    Raises:
        DataError: a file is missing or unreadable, the number of ids is not the number of nodes, or the edges do not connect nodes of the
            data.
    """
    if spec.node_ids is not None:
        series = replace(series, node_names=_node_ids(series, copied(spec.node_ids, "data.node_ids")))
    if spec.distances is not None:
        series = replace(series, edges=_edges(series, copied(spec.distances, "data.distances")))
    return series


def copied(path: str, field: str) -> Path:
    """The local path of a file that the specification names. A file at a URI is copied.

    Raises:
        DataError: there is no file at the URI, or it cannot be read.
    """
    if not is_uri(path):
        return Path(path).expanduser()
    try:
        return local_copy(path, folders=False)
    except FileNotFoundError as error:
        raise DataError(f"{shown(path)}: no such file ({field}). Is the bucket right, and the case of every letter?") from error
    except IsADirectoryError as error:
        raise DataError(f"{shown(path)}: a folder ({field}). Give the file in it.") from error
    except StorageError as error:
        raise DataError(f"{field}: {error}") from error


def _node_ids(series: Series, path: Path) -> tuple[str, ...]:
    """One id per line, or all ids in one line with commas (METR-LA), in the order of the data's nodes."""
    lines = [line for line in _text(path, "data.node_ids").splitlines() if line.strip()]
    cells = lines[0].split(",") if len(lines) == 1 else lines
    ids = tuple(cell.strip() for cell in cells if cell.strip())
    nodes = series.values.shape[1]
    if len(ids) != nodes:
        raise DataError(
            f"{path}: {len(ids)} ids for the {nodes} nodes of {series.source}. One id a line, in the order of the "
            "data, is needed."
        )
    first: dict[str, int] = {}
    for line, name in enumerate(ids, start=1):
        if first.setdefault(name, line) != line:
            raise DataError(f"{path}: the id {name} appears twice, as number {first[name]} and {line}. Keep one.")
    own = series.node_names
    if own is not None and own != ids:
        at = next(i for i, (a, b) in enumerate(zip(own, ids, strict=True)) if a != b)
        raise DataError(
            f"{path}: id {at + 1} is {ids[at]}, but {series.source} itself calls that node {own[at]}. Leave "
            "data.node_ids out."
        )
    return ids


def _edges(series: Series, path: Path) -> NDArray[np.float64]:
    """(E, 3): index of the node an edge leaves, of the node it enters, and its cost.

    Edges of nodes that the data does not have are left out, since the public distances of METR-LA cover more sensors than its readings.
    If the nodes have no ids, an index beyond the last node is an error.
    """
    _text(path, "data.distances", only_head=True)
    try:
        table = pd.read_csv(path, dtype={"from": str, "to": str}, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no CSV table ({error}). Needed: columns from, to, cost.") from error
    cost = next((name for name in _COSTS if name in table.columns), None)
    if cost is None or not {"from", "to"} <= set(table.columns):
        raise DataError(
            f"{path}: columns {', '.join(map(str, table.columns))}; from, to and cost (or distance) are needed in the "
            "first line."
        )
    costs = pd.to_numeric(table[cost], errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(costs) | table["from"].isna().to_numpy() | table["to"].isna().to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        values = ",".join(str(value) for value in table.loc[row, ["from", "to", cost]])
        raise DataError(f"{path}: line {row + 2} is no edge: {values}. Needed: two ids and a finite number.")
    nodes = series.values.shape[1]
    names = series.node_names or tuple(str(i) for i in range(nodes))
    index = {name: i for i, name in enumerate(names)}
    ends = np.stack([table[end].str.strip().map(index).to_numpy(np.float64) for end in ("from", "to")])
    unknown = np.isnan(ends).any(axis=0)
    strays = int(unknown.sum())
    if strays and (strays == len(table) or series.node_names is None):
        row = int(np.argmax(unknown))
        name = str(table["from" if np.isnan(ends[0, row]) else "to"].iloc[row])
        ids = f"ids such as {names[0]}" if series.node_names else f"indices 0 to {nodes - 1}, as the file has no ids"
        raise DataError(
            f"{path}: line {row + 2} names the node {name}, which {series.source} does not have; its nodes have {ids}. "
            f"{strays} of {len(table)} edges are so. Give the ids with data.node_ids, or the file that "
            "belongs to the data."
        )
    if strays:
        _log.warning("%s: %d of %d edges left out: their nodes are not in the data", path, strays, len(table))
    return np.column_stack([*ends, costs])[~unknown]


def _text(path: Path, field: str, *, only_head: bool = False) -> str:
    """The content of a text file, or an empty text after the checks if ``only_head``."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise DataError(f"{path}: pickled, which is refused: loading it can run any code. {field} takes a text file.")
    if not path.is_file():
        raise DataError(f"{path}: no such file ({field}). Relative paths start where the command runs, {Path.cwd()}.")
    if only_head:
        return ""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text ({error}). {field} takes a text file.") from error
