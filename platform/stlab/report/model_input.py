"""The image of one window that a model sees, as the trial kept it, and the nodes that stand out in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stlab.report.page.text import image_channel
from stlab.storage import Store, TrialDirectory

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLD = -3.5
"""A node stands out below this score (Iglewicz & Hoaglin 1993, for |z|)."""
MOST, FEWEST, TYPICAL = 4, 2, 2


@dataclass(frozen=True)
class WindowInput:
    """The image of a window of P history steps, over N nodes, with L ≥ P steps of their series."""

    window: int  # index in the series of the window's first step
    history: int  # P
    time: np.datetime64 | None  # of the first step; None without timestamps
    step_seconds: int | None
    channels: Mapping[str, NDArray[np.float32]]  # name → (N, N) in [0, 1]
    names: Sequence[str]  # (N,)
    series: NDArray[np.float64]  # (N, L), data unit; NaN for a missing reading

    def steps(self) -> NDArray[np.generic]:
        """(L,) times of the series' steps, or their indices in the series if there are no timestamps."""
        steps = np.arange(self.series.shape[1])
        if self.time is None or self.step_seconds is None:
            return self.window + steps
        return self.time + steps * np.timedelta64(self.step_seconds, "s")


@dataclass(frozen=True)
class NodeChoice:
    """The nodes of an image that are shown: those that stand out, the lowest score first, and typical ones."""

    scores: NDArray[np.float64]  # (N,)
    outstanding: tuple[int, ...]
    typical: tuple[int, ...]

    @property
    def beyond(self) -> int:
        """The number of nodes whose score is below the threshold."""
        return int((self.scores < THRESHOLD).sum())


def read_model_input(store: Store, trial_id: str) -> WindowInput | None:
    """The image that a trial kept of a test window; None if its model sees no image, or it was not tested."""
    directory = TrialDirectory(store, trial_id)
    table = directory.read_model_input()
    if table is None:
        return None
    metadata = {name.decode(): json.loads(value) for name, value in table.schema.metadata.items()}
    # All series end together, so the lists of a column are equally long.
    columns = {
        name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
        for name in (*metadata["channels"], "series")
    }
    mask = json.loads((directory.read("trial.json") or {}).get("protocol") or "{}").get("mask")
    return WindowInput(
        window=metadata["window"],
        history=metadata["history"],
        time=None if metadata["time"] is None else np.datetime64(metadata["time"], "s"),
        step_seconds=metadata["step_seconds"],
        channels={name: columns[name] for name in metadata["channels"]},
        names=table["name"].to_pylist(),
        series=without_missing(columns["series"], mask),
    )


def without_missing(values: NDArray[np.floating], mask: float | str | None) -> NDArray[np.float64]:
    """Readings in float64, with NaN in place of the protocol's ``mask``, the value that means "no reading".

    Scaling in float32 and back changes a value by its rounding, a few 1e-7 of the largest value; the comparison allows for that.
    """
    readings = values.astype(np.float64)
    if mask is None or isinstance(mask, str) or not readings.size:
        return readings
    slack = 4e-6 * max(float(np.nanmax(np.abs(readings))), abs(mask))
    readings[np.abs(readings - mask) <= slack] = np.nan
    return readings


def node_scores(channels: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
    """How similar each node is to all others, as a robust z score over the nodes; a low score stands out.

    A channel that is a distance is turned into a similarity (1 − pixel). A node's similarity is the mean of its row over channels and
    all other nodes, and its score is (similarity − median) / (1.4826 · median absolute deviation). If more than half of the nodes are
    equally similar, the median absolute deviation is 0, and the mean absolute deviation (times 1.2533) takes its place.

    Returns:
        (N,) float64; 0 everywhere if no node differs from another.
    """
    likenesses = [1.0 - image if image_channel(name).is_distance else image for name, image in channels.items()]
    alike: NDArray[np.float64] = np.mean(likenesses, axis=0, dtype=np.float64)
    nodes = len(alike)
    if nodes < 3:
        return np.zeros(nodes)
    likeness = (alike.sum(axis=1) - alike.diagonal()) / (nodes - 1)
    away = likeness - np.median(likeness)
    spread = 1.4826 * float(np.median(np.abs(away)))
    rounding = 1e-6  # pixels are float32
    if spread <= rounding:
        spread = math.sqrt(math.pi / 2) * float(np.mean(np.abs(away)))
    return away / spread if spread > rounding else np.zeros(nodes)


def choose_nodes(scores: NDArray[np.float64]) -> NodeChoice:
    """The nodes below the threshold, at least 2 and at most 4, and the 2 nodes whose scores are nearest to 0.

    Ties go to the first node. Networks of fewer than 6 nodes have fewer of both.
    """
    below = int((scores < THRESHOLD).sum())
    count = min(max(below, FEWEST), MOST, len(scores) // 3)
    lowest = tuple(int(node) for node in np.argsort(scores, kind="stable")[:count])
    rest = [int(node) for node in np.argsort(np.abs(scores), kind="stable") if int(node) not in lowest]
    return NodeChoice(scores, lowest, tuple(rest[: min(TYPICAL, max(len(scores) // 3, 0))]))
