"""Test forecasts of one trial as arrays, and the window and cell that the figures show, which depend on the truth alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.report.model_input import without_missing
from stlab.storage import Store, TrialDirectory

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Predictions:
    """Forecasts of n windows, Q steps ahead; S is the shape of a step: (C, H, W) for a grid, (N, C) for sensors."""

    window: np.ndarray  # (n,) int64: index in the series of the first step of the history
    time: np.ndarray | None  # (n, Q) datetime64[s]; None without timestamps
    truth: np.ndarray  # (n, Q, *S) float64, data unit; NaN for a missing reading
    forecast: np.ndarray  # (n, Q, *S)
    every_nth: int = 1  # one in so many test windows was kept

    @property
    def is_grid(self) -> bool:
        return self.truth.ndim == 5

    def busiest_window(self) -> int:
        """Position of the window with the largest total truth, the first one of several."""
        import numpy as np

        return int(np.nansum(self.truth, axis=tuple(range(1, self.truth.ndim))).argmax())

    def busiest_cell(self) -> tuple[int, ...]:
        """Index into S of the series with the largest mean truth, the first one of several."""
        import numpy as np

        total, count = np.nansum(self.truth, axis=(0, 1)), (~np.isnan(self.truth)).sum(axis=(0, 1))
        mean = np.divide(total, count, out=np.full_like(total, -np.inf), where=count > 0)
        return tuple(int(i) for i in np.unravel_index(mean.argmax(), mean.shape))

    def by_node(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean reading and mean absolute error of each node, both (N,), over windows, steps ahead and channels.

        Missing readings are left out; a node without readings has NaN.

        Raises:
            ValueError: the data is a grid.
        """
        import numpy as np

        if self.is_grid:
            raise ValueError(f"nodes need steps of shape (N, C); these are {self.truth.shape[2:]}")
        axes = (0, 1, 3)
        count = (~np.isnan(self.truth)).sum(axis=axes)
        sums = (np.nansum(self.truth, axis=axes), np.nansum(np.abs(self.forecast - self.truth), axis=axes))
        mean, error = (np.divide(x, count, out=np.full_like(x, np.nan), where=count > 0) for x in sums)
        return mean, error


def read_predictions(store: Store, trial_id: str) -> Predictions | None:
    """A trial's forecasts on the test segment, with windows in order of time; None if it has not been tested."""
    import numpy as np

    directory = TrialDirectory(store, trial_id)
    table = directory.read_predictions()
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
    protocol = json.loads((directory.read("trial.json") or {}).get("protocol") or "{}")
    return Predictions(
        window=table["window"].to_numpy().reshape(shape[:2])[:, 0],
        time=None if time.null_count else time.to_numpy().astype("datetime64[s]").reshape(shape[:2]),
        truth=without_missing(truth, protocol.get("mask")),
        forecast=forecast,
        every_nth=int(table.schema.metadata.get(b"every_nth_window", 1)),
    )


def describe_cell(cell: tuple[int, ...]) -> str:
    """A cell for the reader. Channels, rows and columns are counted from 1; nodes are counted from 0, as sensors are."""
    if len(cell) == 2:
        channel = f", channel {cell[1] + 1}" if cell[1] else ""
        return f"node {cell[0]}{channel}; nodes are counted from 0"
    cell = tuple(index + 1 for index in cell)
    if len(cell) == 3:
        return f"channel {cell[0]}, row {cell[1]}, column {cell[2]}; counted from 1"
    return f"series {', '.join(map(str, cell))}; counted from 1"
