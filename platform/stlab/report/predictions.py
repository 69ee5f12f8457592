"""Test forecasts of one trial as arrays, and which window and cell the figures show: chosen by the truth alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.results import Store, TrialDirectory

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Predictions:
    """n windows, Q steps ahead, S the shape of a step: (C, H, W) for a grid, (N, C) for sensors."""

    window: np.ndarray  # (n,) int64: index in the series of the first step of the history
    time: np.ndarray | None  # (n, Q) datetime64[s]; None without timestamps
    truth: np.ndarray  # (n, Q, *S) float64, data unit
    forecast: np.ndarray  # (n, Q, *S)

    @property
    def is_grid(self) -> bool:
        return self.truth.ndim == 5

    def busiest_window(self) -> int:
        """Position of the window with the largest total truth; the first of equals."""
        import numpy as np

        return int(np.nansum(self.truth, axis=tuple(range(1, self.truth.ndim))).argmax())

    def busiest_cell(self) -> tuple[int, ...]:
        """Index into S of the series with the largest mean truth; the first of equals."""
        import numpy as np

        total = np.nansum(self.truth, axis=(0, 1))
        return tuple(int(i) for i in np.unravel_index(total.argmax(), total.shape))


def read_predictions(store: Store, trial_id: str) -> Predictions | None:
    """A trial's forecasts on the test segment, windows in order of time; None where it has not been tested."""
    import numpy as np

    table = TrialDirectory(store, trial_id).read_predictions()
    if table is None or table.num_rows == 0:
        return None
    table = table.sort_by([("window", "ascending"), ("horizon", "ascending")]).combine_chunks()
    steps = int(np.unique(table["horizon"].to_numpy()).size)
    shape = (table.num_rows // steps, steps, *json.loads(table.schema.metadata[b"shape"]))
    truth, forecast = (
        table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(shape)
        for name in ("truth", "forecast")
    )
    time = table["time"]
    return Predictions(
        window=table["window"].to_numpy().reshape(shape[:2])[:, 0],
        time=None if time.null_count else time.to_numpy().astype("datetime64[s]").reshape(shape[:2]),
        truth=truth,
        forecast=forecast,
    )


def describe_cell(cell: tuple[int, ...]) -> str:
    """A cell in words; channels, rows, columns and nodes are counted from 1."""
    cell = tuple(index + 1 for index in cell)
    if len(cell) == 3:
        return f"channel {cell[0]}, row {cell[1]}, column {cell[2]}"
    if len(cell) == 2:
        return f"node {cell[0]}, channel {cell[1]}"
    return f"series {', '.join(map(str, cell))}"
