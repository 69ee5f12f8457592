"""UniST's ``{dataset}_{task}.json``, which holds ready-made windows.

The layout follows the reader of UniST (Yuan et al., KDD 2024; github.com/tsinghua-fib-lab/UniST, ``src/DataLoader.py`` and
``dataset/README.md``): ``X_train``, ``X_val`` and ``X_test`` are pairs: the windows (N, P + Q, H, W), and
the same hours of past days (N, P + Q, days, H, W), which are not read here. ``timestamps`` holds ``train``, ``val`` and ``test`` in one of
three forms: pairs (day of the week, slot of the day) (N, P + Q, 2); times as text "YYYY-MM-DD HH:MM:SS" (N, P + Q) (TaxiBJ); or the number
of the half hour (N, P + Q), counted from a Wednesday 00:00 (Crowd, Cellular, Traffic_log).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stlab.data.formats.content import DAY_SECONDS, SEGMENTS, ReadyWindows
from stlab.data.protocol.season import slot_of_week
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEYS = dict(zip(SEGMENTS, ("train", "val", "test"), strict=True))
_DAY_MINUTES = 1440
_HALF_HOURS = 48
_WEDNESDAY = 2


def read_unist(path: Path, family: str) -> ReadyWindows:
    """Read ready-made windows of one channel: steps have the shape (1, H, W).

    Raises:
        DataError: the file is not JSON or truncated, a key is missing, an array is ragged or of the wrong rank, or the timestamps have
            none of the three forms.
    """
    del family  # READERS offers this format for grids alone
    try:
        with path.open(encoding="utf-8") as stream:
            content = json.load(stream)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no JSON, or cut short ({error}). Fetch the file again.") from error
    keys = [f"X_{key}" for key in _KEYS.values()]
    if not isinstance(content, dict) or any(key not in content for key in keys):
        there = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path}: UniST's layout has {', '.join(keys)} and timestamps; there: {there or 'nothing'}. Is it one "
            "of UniST's files?"
        )
    values = {segment: _windows(content[f"X_{key}"], f"X_{key}", path) for segment, key in _KEYS.items()}
    shapes = {segment: array.shape[1:] for segment, array in values.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{path}: the segments' windows differ in shape: {shapes}. All must be (steps, 1, H, W) alike.")
    if "timestamps" not in content:
        return ReadyWindows(values, None, None, None, source=str(path), name=path.stem)
    slots, per_day, times = _timestamps(content["timestamps"], values, path)
    return ReadyWindows(values, slots, per_day, times, source=str(path), name=path.stem)


def _windows(pair: Any, key: str, path: Path) -> NDArray[np.float32]:
    if not isinstance(pair, list) or not pair:
        raise DataError(f"{path}: `{key}` is no pair [windows, past days]. Is it one of UniST's files?")
    array = _numbers(pair[0], f"{key}[0]", path)
    if array.ndim != 4 or 0 in array.shape:
        raise DataError(
            f"{path}: `{key}[0]` has shape {array.shape}; (windows, steps, H, W), none of them 0, is needed."
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array[:, :, None], dtype=np.float32)


def _numbers(nested: Any, key: str, path: Path) -> NDArray[np.generic]:
    try:
        array = np.asarray(nested)
    except ValueError as error:
        raise DataError(f"{path}: `{key}` is ragged, so it is no array ({error}). Fetch the file again.") from error
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: `{key}` holds something other than numbers ({array.dtype}). Fetch the file again.")
    return array


_Slots = dict[str, "NDArray[np.int64]"]
_Times = dict[str, "NDArray[np.datetime64]"]


def _timestamps(content: Any, values: dict[str, NDArray[np.float32]], path: Path) -> tuple[_Slots, int, _Times | None]:
    """Slots of the week, slots per day, and the times if the file has them."""
    if not isinstance(content, dict) or any(key not in content for key in _KEYS.values()):
        raise DataError(f"{path}: `timestamps` needs {', '.join(_KEYS.values())}. Is it one of UniST's files?")
    found = {segment: _moments(content[key], f"timestamps.{key}", path) for segment, key in _KEYS.items()}
    kind, rank = found["train"].dtype.kind, found["train"].ndim
    for segment, array in found.items():
        windows = values[segment].shape[:2]
        expected = windows if rank == 2 else (*windows, 2)
        if array.dtype.kind != kind or array.shape != expected:
            raise DataError(
                f"{path}: `timestamps.{_KEYS[segment]}` has shape {array.shape} ({array.dtype}); with its windows, "
                f"and like the train segment's, it would be {expected} ({found['train'].dtype}). Fetch the file again."
            )
    if kind == "M":
        return _from_times(found, path)
    if rank == 2:
        week = 7 * _HALF_HOURS
        slots = {segment: (array + _WEDNESDAY * _HALF_HOURS) % week for segment, array in found.items()}
        return slots, _HALF_HOURS, None
    return _from_pairs(found, path)


def _moments(nested: Any, place: str, path: Path) -> np.ndarray:
    """Text as datetime64[s], and all else as int64."""
    if not (nested and isinstance(nested, list) and nested[0] and isinstance(nested[0], list)):
        raise DataError(f"{path}: `{place}` is no list of windows. Is it one of UniST's files?")
    if not isinstance(nested[0][0], str):
        return _numbers(nested, place, path).astype(np.int64)
    try:
        return np.asarray(nested, dtype="datetime64[s]")
    except ValueError as error:
        raise DataError(
            f"{path}: `{place}` holds text that is no time ({error}). Needed: YYYY-MM-DD HH:MM:SS."
        ) from error


def _from_times(times: _Times, path: Path) -> tuple[_Slots, int, _Times]:
    step = min(int(np.diff(array, axis=1).astype(np.int64).min()) for array in times.values())
    if step <= 0 or DAY_SECONDS % step:
        raise DataError(f"{path}: `timestamps` come in steps of {step} s; a positive divisor of a day is needed.")
    return {segment: slot_of_week(array, step) for segment, array in times.items()}, DAY_SECONDS // step, times


def _from_pairs(pairs: _Slots, path: Path) -> tuple[_Slots, int, None]:
    """Slots of the week. The file does not say how many slots a day has, so the smallest number of whole-minute slots is taken."""
    largest = max(int(array[..., 1].max()) for array in pairs.values())
    per_day = next((n for n in range(largest + 1, _DAY_MINUTES + 1) if _DAY_MINUTES % n == 0), None)
    if per_day is None or any(array.min() < 0 or array[..., 0].max() > 6 for array in pairs.values()):
        raise DataError(
            f"{path}: `timestamps` hold pairs that are no (day of the week 0-6, slot of the day). Is it one of "
            "UniST's files?"
        )
    return {segment: array[..., 0] * per_day + array[..., 1] for segment, array in pairs.items()}, per_day, None
