"""The forecasts of the test segment, as they are kept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from stlab.data import Dataset, Windows
from stlab.training.metrics import Errors

_MAX_PREDICTED_VALUES = 5_000_000  # in truth and forecast each; a larger test segment is kept in evenly spaced windows


def by_horizon(segment: str, errors: Errors) -> list[dict[str, Any]]:
    """Errors of a segment as rows of ``horizon.parquet``."""
    return [{"segment": segment, **row} for row in errors["horizon"]]


def ignore(index: Tensor, forecast: Tensor, truth: Tensor) -> None:
    """Keep nothing of this segment."""


class KeptPredictions:
    """Forecasts and truth of the test windows, as rows of ``predictions.parquet``."""

    def __init__(self, dataset: Dataset, windows: Windows) -> None:
        self.dataset, self.windows = dataset, windows
        values_a_window = dataset.info.horizon * int(np.prod(dataset.info.shape))
        self.stride = max(1, -(-len(windows) * values_a_window // _MAX_PREDICTED_VALUES))
        self.parts: list[dict[str, Any]] = []

    def __call__(self, index: Tensor, forecast: Tensor, truth: Tensor) -> None:
        chosen = index % self.stride == 0
        if not bool(chosen.any()):
            return
        index, forecast, truth = index[chosen], forecast[chosen], truth[chosen]
        horizon = self.dataset.info.horizon
        times = self.windows.times(index)
        self.parts.append(
            {
                "number": index.cpu().numpy(),
                "window": np.repeat(self.windows.starts[index].cpu().numpy(), horizon),
                "horizon": np.tile(np.arange(1, horizon + 1, dtype=np.int32), len(index)),
                "time": None if times is None else times.reshape(-1),
                "truth": truth.flatten(0, 1).flatten(1).float().cpu().numpy(),
                "forecast": forecast.flatten(0, 1).flatten(1).float().cpu().numpy(),
            }
        )

    def busiest(self) -> int:
        """Number of the kept window with the largest total truth, the first one if several have it."""
        total = np.concatenate([part["truth"].reshape(len(part["number"]), -1).sum(1, dtype=np.float64) for part in self.parts])
        return int(np.concatenate([part["number"] for part in self.parts])[total.argmax()])

    def table(self) -> pa.Table:
        """The table. Its metadata hold the shape of a step (``shape``) and the stride between kept windows (``every_nth_window``)."""

        def joined(name: str) -> Any:
            return np.concatenate([part[name] for part in self.parts])

        rows = sum(len(part["window"]) for part in self.parts)
        has_times = self.parts[0]["time"] is not None
        table = pa.table(
            {
                "window": joined("window"),
                "horizon": joined("horizon"),
                "time": pa.array(joined("time").astype("datetime64[s]")) if has_times else pa.nulls(rows, pa.timestamp("s")),
                "truth": _lists(joined("truth")),
                "forecast": _lists(joined("forecast")),
            }
        )
        return table.replace_schema_metadata({"shape": json.dumps(self.dataset.info.shape), "every_nth_window": str(self.stride)})


def _lists(rows: np.ndarray[Any, Any]) -> pa.Array:
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1), pa.float32()))
