"""numpy's ``.npz`` with the array ``data`` and optionally ``timestamps`` (T,) datetime64 and the names of the ``channels``.

``data`` is (T, C, H, W) for a grid. For sensors it is (T, N, C) or (T, N), as in the PEMS files, or a grid.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.checks import checked_timestamps, checked_values
from stlab.data.formats.content import FAMILY_AXES, Series, flattened
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_npz(path: Path, family: str) -> Series:
    """Read a series from an ``.npz`` file. For the family ``sensors`` a grid is flattened to nodes.

    Raises:
        DataError: the file is not a zip archive or damaged, an array is pickled or missing, or an array fails the checks.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            is_npy = stream.read(6) == b"\x93NUMPY"
        raise DataError(
            f"{path}: a single array (.npy), not an archive of named arrays. Save it with np.savez(path, data=…, "
            "timestamps=…)."
            if is_npy
            else f"{path}: no .npz archive; the file is truncated or of another kind ({path.stat().st_size} bytes). "
            "Fetch it again, or save it with np.savez."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "data" not in archive.files:
                raise DataError(
                    f"{path}: no array `data`; there: {', '.join(archive.files) or 'nothing'}. Save the series "
                    "under that name."
                )
            data = _array(archive, "data", path)
            times = _array(archive, "timestamps", path) if "timestamps" in archive.files else None
            channels = _array(archive, "channels", path) if "channels" in archive.files else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read, it seems damaged ({error}). Fetch it again.") from error
    is_network = family == "sensors" and data.ndim != len(FAMILY_AXES["grid"])
    if is_network and data.ndim == 2:
        data = data[:, :, None]
    values = checked_values(data, "sensors" if is_network else "grid", str(path))
    timestamps = None if times is None else checked_timestamps(times, len(values), str(path))
    names = _channel_names(channels, values.shape[-1 if is_network else 1])
    series = Series(values, timestamps, source=str(path), name=path.stem, null=0.0 if is_network else None, channel_names=names)
    return flattened(series) if family == "sensors" and not is_network else series


def _channel_names(array: NDArray[np.generic] | None, count: int) -> tuple[str, ...] | None:
    """The names of the channels, where an array of that many texts holds them."""
    is_named = array is not None and array.dtype.kind == "U" and array.shape == (count,)
    return tuple(str(name) for name in array) if is_named and array is not None else None


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> NDArray[np.generic]:
    try:
        array = archive[key]
    except ValueError as error:  # numpy raises it for object arrays and for truncated headers or bodies
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: array `{key}` holds pickled Python objects, which are refused: loading them can run any "
                f"code. Save it as {'times' if key == 'timestamps' else 'numbers'}, for example {key}.astype("
                f"'{'datetime64[s]' if key == 'timestamps' else 'float32'}')."
            ) from error
        raise DataError(
            f"{path}: array `{key}` cannot be read, it seems damaged ({error}). Fetch the file again."
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: `{key}` is no array. Save it with np.savez.")
    return array
