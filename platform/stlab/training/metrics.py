"""Errors in the data's unit: one sum divided by one count, never a mean of batch means (protocol: "Metrics")."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stlab.data import Dataset, Windows
from stlab.training.workers import rank_here, world_size

Errors = dict[str, Any]
Keep = Callable[[Tensor, Tensor, Tensor], None]


class ErrorSums:
    """Sums of absolute, squared and relative errors by horizon step, in float64, each with and without the mask.

    Args:
        zero: a truth no larger than this, in the data's unit, counts as zero and has no relative error.
    """

    def __init__(self, horizon: int, device: torch.device, zero: float = 0.0) -> None:
        self.zero = zero
        # |e|, e², count, |e/y|, count of |e/y|; then |e|, e² and count of all truths, with missing readings as the zeros in the data
        self.sums = torch.zeros(8, horizon, dtype=torch.float64, device=device)

    def add(self, forecast: Tensor, truth: Tensor, mask: Tensor | None) -> None:
        """Add a batch: (B, Q, *S) each, in the data's unit. There is no reading where ``mask`` is False."""
        error = (forecast - truth).double()
        seen = torch.ones_like(error) if mask is None else mask.double()
        everything = (error.abs(), error.square(), torch.ones_like(error))
        error = torch.where(seen > 0, error, 0.0)
        sizable = seen * (truth.abs() > self.zero)
        relative = torch.where(sizable > 0, error.abs() / truth.abs().double().clamp_min(1e-12), 0.0)
        axes = [0, *range(2, error.dim())]
        self.sums += torch.stack([x.sum(axes) for x in (error.abs(), error.square(), seen, relative, sizable, *everything)])

    def reduce(self) -> None:
        """Add up the sums of all workers."""
        if world_size() > 1:
            dist.all_reduce(self.sums)

    def errors(self, scale: float, with_mape: bool) -> Errors:
        """``mae`` and ``rmse`` (times ``scale``) and ``mape`` (percent, or None) over all steps, and the same by horizon step.

        ``mae_unmasked`` and ``rmse_unmasked`` count missing readings as if they had been measured.
        """
        by_horizon = [
            {"horizon": step + 1, **_errors(self.sums[:, step], scale, with_mape), "count": int(self.sums[2, step])}
            for step in range(self.sums.shape[1])
        ]
        return {**_errors(self.sums.sum(1), scale, with_mape), "horizon": by_horizon}


def _errors(sums: Tensor, scale: float, with_mape: bool) -> dict[str, float | None]:
    absolute, squared, count, relative, sizable, all_absolute, all_squared, every = sums.tolist()
    return {
        "mae": scale * absolute / count if count else float("nan"),
        "rmse": scale * (squared / count) ** 0.5 if count else float("nan"),
        "mae_unmasked": scale * all_absolute / every if every else float("nan"),
        "rmse_unmasked": scale * (all_squared / every) ** 0.5 if every else float("nan"),
        "mape": 100 * relative / sizable if with_mape and sizable else None,
    }


def to_unit(dataset: Dataset, scaled: Tensor) -> Tensor:
    """A forecast in the data's unit, clamped to the values that the data can have."""
    values = dataset.scaler.inverse(scaled.float())
    if dataset.clamp is not None:
        values = values.clamp(*dataset.clamp)
    return values.clamp_min(0.0) if dataset.nonnegative else values


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    windows: Windows,
    batch_size: int,
    autocast: Callable[[], Any],
    keep: Keep | None = None,
    ended: Callable[[], None] | None = None,
) -> Errors:
    """Errors of a model over all windows of a segment. The workers of a trial share the windows, unless ``keep`` is given.

    Args:
        keep: called with (window numbers, forecast, truth) of each batch, in the data's unit.
        ended: called after each batch, equally often on all workers that share the windows out.
    """
    model.eval()
    device = windows.starts.device
    # A zero that was scaled in float32 and back is a rounding error.
    sums = ErrorSums(dataset.info.horizon, device, zero=1e-6 * (abs(dataset.scaler.center) + dataset.scaler.spread))

    def add(index: Tensor) -> None:
        batch = windows.gather(index)
        with autocast():
            value = model(batch).value
        forecast, truth = to_unit(dataset, value), dataset.scaler.inverse(batch.target)
        sums.add(forecast, truth, batch.target_mask)
        if keep is not None:
            keep(index, forecast, truth)

    world, rank = world_size(), rank_here()
    everything = torch.arange(len(windows), device=device)
    mine = everything if keep is not None else everything.tensor_split(world)[rank]
    most = len(windows) if keep is not None else math.ceil(len(windows) / world)
    for first in range(0, most, batch_size):
        if len(index := mine[first : first + batch_size]):  # more workers than windows leave one without
            add(index)
        if ended is not None:
            ended()
    if keep is None:
        sums.reduce()
    return sums.errors(dataset.scale, with_mape=dataset.info.family == "sensors")
