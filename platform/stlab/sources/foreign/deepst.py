"""DeepST's and ST-ResNet's HDF5 (Zhang et al., AAAI 2017): ``data`` (T, 2, H, W), inflow and outflow, and ``date`` (T,).

A date is text, YYYYMMDD and the number of the slot of the day from 01: TaxiBJ has 48 slots, BikeNYC 24. TaxiBJ lacks many steps; they are
NaN here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.checks import on_even_grid
from stlab.errors import DataError
from stlab.sources.foreign import Foreign

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HOURLY, _HALF_HOURLY = 24, 48


def is_deepst(path: Path) -> bool:
    """Whether a file has this layout."""
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            return {"data", "date"} <= set(file)
    except OSError as error:
        raise DataError(f"{path}: no HDF5 file, or damaged ({error}). Fetch it again.") from error


def _h5py(path: Path):  # type: ignore[no-untyped-def]
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: reading .h5 needs h5py, which is not installed: pip install 'stlab[h5]'.") from error
    return h5py


def read_deepst(path: Path) -> Foreign:
    """Read one file.

    Raises:
        DataError: an array has another shape, or a date is none.
    """
    try:
        with _h5py(path).File(path, "r") as file:
            data, dates = file["data"][...], file["date"][...]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read, it seems damaged ({error}). Fetch it again.") from error
    if data.ndim != 4 or dates.shape != data.shape[:1]:
        raise DataError(
            f"{path}: `data` has shape {data.shape} and `date` {dates.shape}; (T, 2, H, W) and (T,) are needed."
        )
    days, slots = _split(dates, path)
    per_day = _HOURLY if slots.max() <= _HOURLY else _HALF_HOURLY
    seconds = (slots - 1) * (86_400 // per_day)
    times = days.astype("datetime64[s]") + seconds.astype("timedelta64[s]")
    order = np.argsort(times, kind="stable")
    if (np.diff(times[order]).astype(np.int64) == 0).any():
        raise DataError(f"{path}: a time stands in `date` twice. Keep one row for each.")
    stamps, values, left_out = on_even_grid(times[order], data[order].astype(np.float64), f"{path}: array `date`")
    names = ("inflow", "outflow") if data.shape[1] == 2 else None
    return Foreign(
        "grid",
        values.astype(np.float32),
        "DeepST",
        stamps.astype("datetime64[s]"),
        channels=names,
        notes=(left_out,) if left_out else (),
    )


def _split(dates: NDArray[np.generic], path: Path) -> tuple[NDArray[np.datetime64], NDArray[np.int64]]:
    """The day of each step, and its slot from 1."""
    texts = [date.decode("ascii", "replace") if isinstance(date, bytes) else str(date) for date in dates]
    for row, text in enumerate(texts):
        if not (len(text) == 10 and text.isdigit() and 1 <= int(text[8:]) <= _HALF_HOURLY):
            raise DataError(f"{path}: `date` {row} is '{text}', not YYYYMMDD and a slot from 01 to 48.")
    try:
        days = np.array([f"{text[:4]}-{text[4:6]}-{text[6:8]}" for text in texts], "datetime64[D]")
    except ValueError as error:
        raise DataError(f"{path}: `date` holds a day that is none ({error}).") from error
    return days, np.array([int(text[8:]) for text in texts], np.int64)
