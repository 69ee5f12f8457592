"""A batch in the making: windows are gathered, shared out and divided here, and all the arithmetic of batch sizes is here.

A global batch of ``train.batch_size`` windows is shared out among the workers of a trial. Each worker divides its share into parts,
the micro-batches, so that they fit into memory; there is one part unless memory ran out. Neither changes what is trained: the weights
of the micro-batches add up to the mean over the global batch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from stlab.data import Dataset, Windows
from stlab.training.workers import rank_here, world_size
from stmodels.types import Batch

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec


class MicroBatch(NamedTuple):
    """Windows that go through the model at once."""

    batch: Batch
    weight: float | Tensor
    """Factor of its mean loss, such that its gradients, summed over a worker's parts and averaged over the workers, are the batch's."""


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided."""

    batch_size: int
    """Windows a global batch, and so windows an optimiser step."""
    workers: int = 1
    rank: int = 0
    """Number of this worker."""
    parts: int = 1
    """Number of parts into which a worker's share is divided."""
    why_whole: str = ""
    """Why the model needs its batches whole (``ModelConfig.WHOLE_BATCHES``); empty where they may be divided."""

    @classmethod
    def of(cls, train: TrainSpec, dataset: Dataset, parts: int = 1, why_whole: str = "") -> BatchPlan:
        """The plan of this process, for the workers that it trains with."""
        return cls(train.batch_size or default_batch_size(dataset), world_size(), rank_here(), parts, why_whole)

    @property
    def share(self) -> int:
        """Windows of a global batch that a worker takes at the most."""
        return math.ceil(self.batch_size / self.workers)

    @property
    def micro_batch(self) -> int:
        """Windows that go through the model at once, at the most."""
        return math.ceil(self.share / self.parts)

    @property
    def evaluated(self) -> int:
        """Windows that are measured at once. Without gradients, a whole batch has room unless memory ran out before."""
        return self.batch_size if self.parts == 1 else self.micro_batch

    @property
    def is_divisible(self) -> bool:
        """Whether the parts can be halved once more."""
        return self.micro_batch > 1 and not self.why_whole

    def divided_into(self, parts: int) -> BatchPlan:
        """The same batch in another number of parts."""
        return dataclasses.replace(self, parts=parts)

    def steps_an_epoch(self, windows: Windows) -> int:
        """Optimiser steps that it takes to see all windows once."""
        return windows.batch_count(self.batch_size)

    def micro_batches(self, windows: Windows, index: Tensor, horizon: int | None = None) -> list[MicroBatch]:
        """This worker's micro-batches of the global batch that consists of the windows ``index``.

        Later readings of the target than ``horizon`` steps count as missing.

        They are weighted by their number of windows. Where readings are missing, they are weighted by their number of readings: a
        part with more readings counts for more, a part without any counts for nothing. A worker for which no window is left takes
        the first one with weight 0, because all workers have to take part in every step.
        """
        own = index.tensor_split(self.workers)[self.rank]
        parts = parts_of(up_to(windows.gather(own if len(own) else index[:1]), horizon), self.micro_batch)
        if parts[0].target_mask is None or (self.workers == 1 and len(parts) == 1):
            weights = [self.workers * min(len(own), len(part.start)) / len(index) for part in parts]
            return [MicroBatch(*pair) for pair in zip(parts, weights, strict=True)]
        readings = torch.stack([part.target_mask.sum() for part in parts if part.target_mask is not None]) * min(len(own), 1)
        total = readings.sum()
        if self.workers > 1:
            dist.all_reduce(total)
        return [MicroBatch(*pair) for pair in zip(parts, self.workers * readings / total.clamp_min(1), strict=True)]


def default_batch_size(dataset: Dataset) -> int:
    """UniST's batch size for a grid: 64, 32 or 16 where H+W is below 32, below 48 or larger; 32 for sensors."""
    if dataset.info.family != "grid":
        return 32
    side = sum(dataset.info.shape[-2:])
    return 64 if side < 32 else 32 if side < 48 else 16


def up_to(batch: Batch, horizon: int | None) -> Batch:
    """The batch without the readings of the target after ``horizon`` steps, all where that is the target's length or None."""
    steps = batch.target.shape[1]
    if horizon is None or horizon >= steps:
        return batch
    mask = torch.ones_like(batch.target, dtype=torch.bool) if batch.target_mask is None else batch.target_mask.clone()
    mask[:, horizon:] = False
    return batch._replace(target_mask=mask)


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """A batch as batches of at most ``size`` windows, in order. They share the batch's memory."""
    count = len(batch.start)
    if count <= size:
        return [batch]
    return [
        Batch(*(None if field is None else field[first : first + size] for field in batch))  # type: ignore[arg-type]
        for first in range(0, count, size)
    ]
