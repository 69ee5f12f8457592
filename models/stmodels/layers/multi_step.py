"""Forecasts of several steps from networks that give fewer at once.

Legend: B batch, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fed_back(ahead: Callable[[Tensor, int], Tensor], history: Tensor, horizon: int) -> Tensor:
    """(B, Q, *S): the steps that ``ahead`` gives at a time, each lot being the newest readings of the next history.

    Args:
        ahead: history (B, P, *S) and the number of steps forecast so far → (B, steps, *S).
    """
    parts: list[Tensor] = []
    known = 0
    while known < horizon:
        parts.append(ahead(history, known))
        known += parts[-1].shape[1]
        history = torch.cat([history, parts[-1]], dim=1)[:, -history.shape[1] :]
    return torch.cat(parts, dim=1)[:, :horizon]
