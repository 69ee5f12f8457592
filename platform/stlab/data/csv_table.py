"""CSV tables, time × sensors: the header holds the sensors' ids, the first column the times."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stlab.data.checks import checked_timestamps, checked_values
from stlab.data.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIME_NAMES = ("", "time", "times", "timestamp", "timestamps", "date", "datetime", "index")


def read_csv(path: Path, family: str) -> Series:
    """Read times × sensors. One channel, (T, N, 1); node names are the header's.

    The first column holds ISO times; where it holds numbers under a name that does not mean time, it is a sensor, and
    the file has no times. Empty cells are NaN.

    Raises:
        DataError: no text, no header, an id that stands twice, a cell that is no number, or times that do not pass the
            checks.
    """
    header = _header(path)
    try:
        # Ids are taken from the header read above: pandas would rename one that stands twice.
        table = pd.read_csv(path, header=None, skiprows=1, names=range(len(header)), encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no CSV table of {len(header)} columns ({error}). Fetch the file again.") from error
    if not len(table):
        raise DataError(f"{path}: a header and no line of readings.")
    if not isinstance(table.index, pd.RangeIndex):  # pandas' reading of lines that are longer than the header
        raise DataError(f"{path}: the lines have more cells than the header, {len(header)}. Give every column its id.")
    timed = not _is_numeric(table[0])
    if not timed and header[0].lower() in _TIME_NAMES:
        raise DataError(
            f"{path}: the first column, '{header[0]}', holds numbers ({table[0].iloc[0]:g}, …), not times. Write ISO "
            "times, or drop the column and give data.start and data.step_minutes."
        )
    names, cells = (header[1:], table.iloc[:, 1:]) if timed else (header, table)
    if not names:
        raise DataError(f"{path}: times and no sensor: one column. Is the separator a comma?")
    _check_names(names, path)
    values = np.column_stack([_numbers(cells[column], name, path) for column, name in zip(cells, names, strict=True)])
    times = _times(table[0], path) if timed else None
    checked = checked_values(values[:, :, None], family, str(path), "values")
    return Series(
        checked, times, source=str(path), name=path.stem, node_names=tuple(names), null=0.0, array="values"
    )


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = [cell.strip() for cell in next(csv.reader(stream), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV text ({error}). Fetch the file again.") from error
    if not header:
        raise DataError(f"{path}: an empty file. Fetch it again.")
    numbers = [_number(cell) for cell in header]
    # Ids are whole numbers or words. A line of fractions is readings, and would be lost as a header.
    if all(n is not None for n in numbers) and any(n is not None and n != int(n) for n in numbers):
        raise DataError(
            f"{path}: the first line, {', '.join(header[:3])}, …, is readings, not the ids of the sensors. Put a line "
            "with the ids on top."
        )
    return header


def _check_names(names: list[str], path: Path) -> None:
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            what = f"the sensor {name} stands twice" if name else f"sensor {i + 1} has no id"
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
    zoned = column.astype(str).str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", regex=True).to_numpy()
    if zoned.any():  # slots of the week are local
        bad = int(np.argmax(zoned))
        raise DataError(f"{path}: line {bad + 2}: '{column.iloc[bad]}' has a time zone. Write local time without one.")
    times = pd.to_datetime(column, format="ISO8601", errors="coerce")
    if times.isna().any():
        bad = int(np.argmax(times.isna().to_numpy()))
        raise DataError(
            f"{path}: line {bad + 2}: '{column.iloc[bad]}' is no ISO time. Write the first column as 2012-03-01 00:05:00."
        )
    return checked_timestamps(times.to_numpy().astype("datetime64[ns]"), len(times), str(path), "timestamps")


def _is_numeric(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
