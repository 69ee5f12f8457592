"""The image that a model sees of one window, kept for the reader of a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stlab.data import Dataset, Windows
from stlab.storage.schema import model_input_table
from stmodels.base import Forecaster

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

STEPS = 100
"""Steps of each node's series that are kept beside the image (Figure 5 of the ST-VLM paper shows as many)."""
_DAY_SECONDS = 86_400


@torch.inference_mode()
def model_input_of_window(
    model: Forecaster, dataset: Dataset, windows: Windows, number: int, autocast: Callable[[], Any]
) -> pa.Table | None:
    """The image that a model sees of a window, and the series it is made from, as ``view.parquet`` holds them.

    Args:
        number: number of the window within its segment.

    Returns:
        A table with a row for each node; None if the model sees no image.
    """
    index = torch.tensor([number], device=windows.starts.device)
    batch = windows.gather(index)
    with autocast():
        seen = model.model_input(batch)
    if seen is None:
        return None
    image = seen.image[0].float().cpu().numpy()
    start = int(batch.start[0])
    # A data set of ready-made windows has no series, only the window itself.
    window = torch.cat([batch.history[0], batch.target[0]])
    scaled = window if windows.series is None else windows.series[start : start + STEPS]
    readings = dataset.scaler.inverse(scaled.float()).flatten(1).T.cpu().numpy()
    if len(readings) != image.shape[1]:
        raise ValueError(f"an image of {image.shape[1]} nodes cannot be shown beside {len(readings)} series")
    names = dataset.node_names or tuple(str(node) for node in range(len(readings)))
    about = {"window": start, "history": dataset.info.history, **_times(dataset, windows.times(index))}
    return model_input_table(names, dict(zip(seen.channels, image, strict=True)), readings, about)


def _times(dataset: Dataset, target: NDArray[np.datetime64] | None) -> dict[str, Any]:
    """The time of the window's first step and the seconds a step, from the times of its targets."""
    if target is None or dataset.info.slots_per_day is None:
        return {"time": None, "step_seconds": None}
    step = _DAY_SECONDS // dataset.info.slots_per_day
    return {"time": str(target[0, 0] - np.timedelta64(step * dataset.info.history, "s")), "step_seconds": step}
