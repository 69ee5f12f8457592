"""Data sets in the layouts of other projects: a reader each, and :func:`read_foreign`, which finds the one for a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Foreign:
    """A data set as another project keeps it."""

    family: str
    """``grid`` or ``sensors``."""
    values: NDArray[np.float32]
    """(T, C, H, W) of a grid, (T, N, C) of sensors; NaN where there is no reading."""
    layout: str
    times: NDArray[np.datetime64] | None = None
    """(T,) datetime64[s], even. None if the files have no dates."""
    step_minutes: float | None = None
    """As far as the files say it without having dates."""
    nodes: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    edges: tuple[tuple[str, str, float], ...] = ()
    """From, to, cost."""
    notes: tuple[str, ...] = ()
    zero_is_a_reading: bool = False
    """Whether the file says that its zeros are counts, which no network's are otherwise."""


LAYOUTS: tuple[tuple[str, str], ...] = (
    (
        "DeepST, ST-ResNet .h5 (TaxiBJ, BikeNYC)",
        "data (T, 2, H, W): inflow, outflow; date (T,) YYYYMMDDSS, slots from 01",
    ),
    (
        "LibCity atomic files, a folder",
        ".dyna: time, entity_id, values; .grid: time, row_id, column_id, values; .rel: origin_id, destination_id",
    ),
    (
        "BasicTS until 0.5, a folder",
        "data.dat (T, N, C) float32; desc.json: shape, frequency (minutes); adj_mx.pkl is not read",
    ),
    ("BasicTS since 1.0, a folder", "train_data.npy, val_data.npy, test_data.npy (T, N) or (T, N, C); meta.json"),
    ("PyTorch Geometric Temporal, tsl arrays, a folder", "node_values.npy (T, N, C); adj_mat.npy (N, N)"),
    ("METR-LA, PEMS-BAY .h5", "a table of pandas, times × sensors"),
    ("whatever data.path reads", "see platform/README, Data"),
)
"""Layout, and what it needs, as ``stlab data formats`` lists it."""


def read_foreign(path: Path) -> Foreign:
    """Read a data set in the layout that its files show.

    Raises:
        DataError: there is nothing, or in no known layout, or a file is damaged.
    """
    from stlab.sources.foreign import arrays, deepst, libcity, own

    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Relative paths start where the command runs, {Path.cwd()}.")
    if path.is_dir():
        there = {entry.name for entry in path.iterdir()}
        if {"data.dat", "desc.json"} <= there:
            return arrays.read_whole(path)
        if {"train_data.npy", "val_data.npy", "test_data.npy"} <= there:
            return arrays.read_segments(path)
        if "node_values.npy" in there:
            return arrays.read_arrays(path)
        if any(name.endswith((".dyna", ".grid")) for name in there):
            return libcity.read_atomic(path)
        known = "; ".join(f"{layout}: {needs}" for layout, needs in LAYOUTS if "folder" in layout)
        raise DataError(
            f"{path}: a folder in no known layout; in it: {', '.join(sorted(there)[:8]) or 'nothing'}. Known: {known}."
        )
    if path.suffix.lower() in (".h5", ".hdf5") and deepst.is_deepst(path):
        return deepst.read_deepst(path)
    return own.read_own(path)
