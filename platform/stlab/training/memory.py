"""Out of memory: which errors say so, and what becomes of the trial."""

from __future__ import annotations

import torch

from stlab.errors import TrialFailed

# The words of PyTorch, its CPU allocator, C++ and NVIDIA's libraries where they raise no OutOfMemoryError.
_SAID = ("not enough memory", "can't allocate memory", "bad_alloc", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


class OutOfMemory(TrialFailed):
    """There is not enough memory even with one window at a time."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the host's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
