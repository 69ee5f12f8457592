"""Folders of arrays: BasicTS's old and new layout, and the arrays of PyTorch Geometric Temporal and tsl. None of them has dates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stlab.errors import DataError
from stlab.sources.foreign import Foreign

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIME_FEATURES = ("time of day", "day of week", "day of month", "day of year")  # channels that BasicTS appends
_NO_DATES = (
    "the files have no dates: say the first step's time with --start, or later with data.start and data.step_minutes"
)


def read_whole(folder: Path) -> Foreign:
    """``data.dat``, float32 in the shape that ``desc.json`` says.

    Raises:
        DataError: the description is no JSON or has no shape, or the file is of another size.
    """
    description = _json(folder / "desc.json")
    shape = description.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)):
        raise DataError(f"{folder / 'desc.json'}: `shape` is {shape!r}; [T, N, C] is needed.")
    file, size = folder / "data.dat", math.prod(shape)
    if file.stat().st_size != 4 * size:
        raise DataError(f"{file}: {file.stat().st_size} bytes, where {shape} of float32 is {4 * size}. Fetch it again.")
    return _without_time(np.array(np.memmap(file, np.float32, "r", shape=tuple(shape))), description, "BasicTS")


def read_segments(folder: Path) -> Foreign:
    """``train_data.npy``, ``val_data.npy`` and ``test_data.npy``, one after the other.

    Raises:
        DataError: an array is damaged, or they differ in their nodes.
    """
    parts = [_array(folder / f"{segment}_data.npy") for segment in ("train", "val", "test")]
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(
            f"{folder}: the segments' shapes are {', '.join(str(part.shape) for part in parts)}; they differ beyond the first axis."
        )
    meta = folder / "meta.json"
    return _without_time(np.concatenate(parts), _json(meta) if meta.exists() else {}, "BasicTS")


def read_arrays(folder: Path) -> Foreign:
    """``node_values.npy``, and the weights of ``adj_mat.npy`` as edges.

    A weight w ≤ 1 is taken for exp(−d²), as DCRNN makes them, so that its cost is d = √(−ln w).

    Raises:
        DataError: an array is damaged or has another shape.
    """
    values, edges = _array(folder / "node_values.npy"), ()
    file = folder / "adj_mat.npy"
    if file.exists():
        weights = _array(file)
        if weights.shape != (values.shape[1],) * 2:
            raise DataError(
                f"{file}: shape {weights.shape}; ({values.shape[1]}, {values.shape[1]}) is needed, as there are that many nodes."
            )
        ends = np.argwhere(weights > 0)
        costs = np.sqrt(-np.log(np.clip(weights[weights > 0].astype(np.float64), None, 1.0)))
        edges = tuple((str(a), str(b), float(cost)) for (a, b), cost in zip(ends, costs, strict=True))  # type: ignore[assignment]
    found = _without_time(values, {}, "PyTorch Geometric Temporal")
    return Foreign(found.family, found.values, found.layout, nodes=found.nodes, edges=edges, notes=found.notes)


def _without_time(values: NDArray[np.float32], description: dict[str, Any], layout: str) -> Foreign:
    """The readings without the channels that only repeat the calendar."""
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise DataError(f"the readings have shape {values.shape}; (T, N) or (T, N, C) is needed.")
    said = description.get("feature_description")
    names = [str(name) for name in said] if isinstance(said, list) and len(said) == values.shape[2] else None
    kept = [
        i for i in range(values.shape[2]) if names is None or names[i].lower().replace("_", " ") not in _TIME_FEATURES
    ]
    minutes = description.get("frequency (minutes)")
    return Foreign(
        "sensors", np.ascontiguousarray(values[:, :, kept], np.float32), layout,
        step_minutes=float(minutes) if isinstance(minutes, int | float) and minutes > 0 else None,
        nodes=tuple(str(node) for node in range(values.shape[1])),
        channels=None if names is None else tuple(names[i] for i in kept), notes=(_NO_DATES,),
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no description. Fetch it again.")
    return content


def _array(path: Path) -> NDArray[np.float32]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: no array of numbers, or damaged ({error}). Fetch it again.") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: holds {array.dtype}, not numbers.")
    return array.astype(np.float32)  # type: ignore[no-any-return]
