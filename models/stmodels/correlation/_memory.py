"""Memory for large results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty(shape: Sequence[int], device: torch.device) -> Tensor:
    """An uninitialised float32 tensor.

    On a CPU NumPy allocates it, since NumPy asks Linux for huge pages and PyTorch only does so if an environment variable is set. A
    volume is written once, and page faults on small pages would take longer than computing it.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(tuple(shape), np.float32))
    return torch.empty(tuple(shape), dtype=torch.float32, device=device)
