"""Out of memory: which errors say so, and how a batch is divided to need less."""

from __future__ import annotations

import math

import torch

from stlab.errors import TrialFailed
from stmodels.types import Batch

# As PyTorch, its CPU allocator, C++ and NVIDIA's libraries say it where they raise no OutOfMemoryError.
_SAID = ("not enough memory", "can't allocate memory", "bad_alloc", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


class OutOfMemory(TrialFailed):
    """There is not enough memory even with one window at a time."""


class NeedsSmallerBatches(Exception):
    """One of several workers ran out of memory. The division is written down; all workers have to start anew with it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the host's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def micro_batch(batch_size: int, workers: int, parts: int) -> int:
    """Windows that go through the model at once where each worker's share of a batch is divided into ``parts``."""
    return math.ceil(math.ceil(batch_size / workers) / parts)


def is_divisible(batch_size: int, workers: int, parts: int) -> bool:
    """Whether ``parts`` parts of a worker's share can be halved once more."""
    return micro_batch(batch_size, workers, parts) > 1


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """A batch as batches of at most ``size`` windows, in order; views, not copies."""
    count = len(batch.start)
    if count <= size:
        return [batch]
    return [
        Batch(*(None if field is None else field[first : first + size] for field in batch))  # type: ignore[arg-type]
        for first in range(0, count, size)
    ]
