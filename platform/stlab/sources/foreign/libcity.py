"""LibCity's atomic files: ``.dyna`` of sensors or ``.grid`` of cells, and the edges of ``.rel``.

Columns as LibCity documents them: ``dyna_id, type, time, entity_id`` (``row_id, column_id`` of a grid), then a column a channel. LibCity
writes local times with a Z at their end, which is left out here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stlab.data.formats.checks import on_even_grid
from stlab.errors import DataError
from stlab.sources.foreign import Foreign

_COSTS = ("cost", "distance", "link_weight", "weight")


def read_atomic(folder: Path) -> Foreign:
    """Read the one data set of a folder.

    Raises:
        DataError: there are several, a column is missing, a time is none, or a reading stands there twice.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in (".dyna", ".grid"))
    if len(files) > 1:
        raise DataError(f"{folder}: {', '.join(file.name for file in files)}: give a folder with one of them.")
    (file,) = files
    places = ["row_id", "column_id"] if file.suffix == ".grid" else ["entity_id"]
    table = _table(file, ["time", *places])
    channels = [name for name in table.columns if name not in ("dyna_id", "type", "time", *places)]
    if not channels:
        raise DataError(f"{file}: columns {', '.join(table.columns)}; no column of values.")
    times = pd.to_datetime(table["time"].str.removesuffix("Z"), format="ISO8601", errors="coerce")
    if times.isna().any():
        row = int(np.argmax(times.isna().to_numpy()))
        raise DataError(f"{file}: line {row + 2}: '{table['time'].iloc[row]}' is no ISO time.")
    keys = [times.to_numpy(), *(table[place].to_numpy() for place in places)]
    index = pd.MultiIndex.from_arrays(keys)
    if index.has_duplicates:
        row = int(np.argmax(index.duplicated()))
        raise DataError(f"{file}: line {row + 2} has the time and place of a line before. Keep one.")
    values = table[channels].apply(pd.to_numeric, errors="coerce").set_axis(index)
    if (odd := (values.isna().to_numpy() & table[channels].notna().to_numpy()).any(axis=1)).any():
        row = int(np.argmax(odd))
        cells = ", ".join(map(str, table[channels].iloc[row]))
        raise DataError(f"{file}: line {row + 2}: {cells}: not all are numbers. Leave a cell empty where there is no reading.")
    axes = [np.unique(key) for key in keys]
    if file.suffix == ".grid":  # rows and columns that nobody writes are cells all the same
        axes[1:] = [np.arange(int(axis.max()) + 1) for axis in axes[1:]]
    sizes = [len(axis) for axis in axes]
    full = values.reindex(pd.MultiIndex.from_product(axes)).to_numpy(np.float64)
    stamps, even, left_out = on_even_grid(
        np.unique(keys[0]).astype("datetime64[s]"), full.reshape(*sizes, len(channels)), f"{file}: `time`"
    )
    notes = ["its times are taken as local time, without their Z"] if table["time"].str.endswith("Z").any() else []
    notes += [left_out] if left_out else []
    common = {"times": stamps.astype("datetime64[s]"), "channels": tuple(channels), "notes": tuple(notes)}
    if file.suffix == ".grid":
        return Foreign("grid", np.moveaxis(even, -1, 1).astype(np.float32), "LibCity", **common)  # type: ignore[arg-type]
    nodes = tuple(str(node) for node in np.unique(keys[1]))
    return Foreign("sensors", even.astype(np.float32), "LibCity", nodes=nodes, edges=_edges(folder), **common)  # type: ignore[arg-type]


def _table(file: Path, needed: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype={"time": str, "type": str})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no CSV table ({error}). Fetch it again.") from error
    if missing := [name for name in needed if name not in table.columns]:
        raise DataError(f"{file}: columns {', '.join(map(str, table.columns))}; {', '.join(missing)} is missing.")
    return table


def _edges(folder: Path) -> tuple[tuple[str, str, float], ...]:
    """The edges of the relation file, if there is one."""
    files = sorted(folder.glob("*.rel"))
    if not files:
        return ()
    table = _table(files[0], ["origin_id", "destination_id"])
    cost = next((table[name] for name in _COSTS if name in table.columns), pd.Series(1.0, table.index))
    return tuple(
        zip(table["origin_id"].astype(str), table["destination_id"].astype(str), cost.astype(float), strict=True)
    )
