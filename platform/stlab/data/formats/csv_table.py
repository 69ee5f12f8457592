"""CSV tables, time × sensors: the header holds the ids of the sensors, and the first column holds the times."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stlab.data.formats.checks import checked_timestamps, checked_values, on_even_grid
from stlab.data.formats.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIME_NAMES = (
    "", "time", "times", "timestamp", "timestamps", "date", "datetime", "date_time", "index", "step", "t", "ts", "epoch", "unix",
    "unnamed: 0",
)  # fmt: skip


def read_csv(path: Path, family: str) -> Series:
    """Read times × sensors as one channel, (T, N, 1). The node names are those of the header.

    The first column holds ISO times. If it holds numbers under a name that does not mean time, it is a sensor, and the file has no times.
    Empty cells are NaN.

    Raises:
        DataError: the file is not text or has no header, an id appears twice, a cell is not a number, or the times fail the checks.
    """
    header = _header(path)
    try:
        # The ids come from the header that was read above, since pandas would rename a duplicate.
        table = pd.read_csv(path, header=None, skiprows=1, names=range(len(header)), encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no CSV table of {len(header)} columns ({error}). Fetch the file again.") from error
    if not len(table):
        raise DataError(f"{path}: a header and no line of readings.")
    if not isinstance(table.index, pd.RangeIndex):  # pandas makes an index of the cells that lines have beyond the header
        raise DataError(f"{path}: the lines have more cells than the header, {len(header)}. Give every column its id.")
    timed = not _is_numeric(table[0])
    if not timed and (header[0].lower() in _TIME_NAMES or _counts_steps(table[0])):
        raise DataError(
            f"{path}: the first column, '{header[0]}', holds numbers ({', '.join(f'{x:g}' for x in table[0][:3])}, …) that run with "
            "the steps, not times and no readings. Write ISO times, or drop the column and give data.start and data.step_minutes."
        )
    if timed and [name.lower() for name in header] == ["timestamp", "node", "value"]:
        raise DataError(f"{path}: a long table, a line a reading. That is read from Parquet: pandas.read_csv(…).to_parquet(…).")
    names, cells = (header[1:], table.iloc[:, 1:]) if timed else (header, table)
    if not names:
        raise DataError(f"{path}: times and no sensor: one column. Is the separator a comma?")
    _check_names(names, path)
    values = np.column_stack([_numbers(cells[column], name, path) for column, name in zip(cells, names, strict=True)])
    times, left_out = None, ""
    if timed:
        stamps, values, left_out = on_even_grid(_times(table[0], path), values, f"{path}: array `timestamps`")
        times = checked_timestamps(stamps, len(stamps), str(path), "timestamps")
    checked = checked_values(values[:, :, None], family, str(path), "values")
    return Series(
        checked, times, source=str(path), name=path.stem, node_names=tuple(names), null=0.0, array="values", left_out=left_out
    )


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = [cell.strip() for cell in next(csv.reader(stream), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV text ({error}). Fetch the file again.") from error
    if not header:
        raise DataError(f"{path}: an empty file, or an empty first line; the ids of the sensors belong there.")
    # Ids are whole numbers or words. A first line with fractions, or one that starts with a time, holds readings, which would be lost.
    cells = header[1:]
    is_reading = cells and all(_number(cell) is not None for cell in cells) and any("." in cell for cell in cells)
    if is_reading or _is_time(header[0]):
        raise DataError(
            f"{path}: the first line, {', '.join(header[:3])}, …, is readings, not the ids of the sensors. Put a line "
            "with the ids on top."
        )
    return header


def _check_names(names: list[str], path: Path) -> None:
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            what = f"the sensor {name} appears twice" if name else f"sensor {i + 1} has no id"
            raise DataError(f"{path}: {what} in the header (line 1). Every sensor needs an id of its own.")


def _numbers(column: pd.Series, name: str, path: Path) -> NDArray[np.float64]:
    if _is_numeric(column):
        return column.to_numpy(np.float64)
    numbers = pd.to_numeric(column, errors="coerce")
    bad = int(np.argmax((numbers.isna() & column.notna()).to_numpy()))
    raise DataError(
        f"{path}: line {bad + 2}, sensor {name}: '{column.iloc[bad]}' is no number. Leave the cell empty where there is no "
        "reading."
    )


def _times(column: pd.Series, path: Path) -> NDArray[np.datetime64]:
    zoned = column.astype(str).str.contains(r"(?:Z|UTC|:\d\d(?:\.\d+)? ?[+-]\d\d(?::?\d\d)?)$", regex=True).to_numpy()
    if zoned.any():  # slots of the week are in local time
        bad = int(np.argmax(zoned))
        raise DataError(f"{path}: line {bad + 2}: '{column.iloc[bad]}' has a time zone. Write local time without one.")
    times = pd.to_datetime(column, format="ISO8601", errors="coerce")
    if times.isna().any():
        bad = int(np.argmax(times.isna().to_numpy()))
        raise DataError(
            f"{path}: line {bad + 2}: '{column.iloc[bad]}' is no ISO time. Write the first column as 2012-03-01 00:05:00."
        )
    return times.to_numpy().astype("datetime64[ns]")


def _is_numeric(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))


def _counts_steps(column: pd.Series) -> bool:
    """Whether a column grows by the same amount from line to line, as an index or a clock does and no sensor does."""
    if len(column) < 3:
        return False
    differences = np.diff(column.to_numpy(np.float64))
    return bool(differences[0] != 0 and np.allclose(differences, differences[0], rtol=1e-9, atol=0))


def _is_time(cell: str) -> bool:
    return bool(re.match(r"\d{4}-\d\d-\d\d", cell))


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
