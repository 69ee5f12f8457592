"""ST flow (Eq. 4), read as a backward difference.

Eq. 4 as printed is a forward difference, X_{t+1} − X_t: its last input frame would need X_{P+1}, which is the target.
"""

from __future__ import annotations

import torch
from torch import Tensor


def history_flow(history: Tensor) -> Tensor:
    """F_t = X_t − X_{t−1}, F_1 = 0: (B, P, *S) → same."""
    return torch.diff(history, dim=1, prepend=history[:, :1])


def target_flow(history: Tensor, target: Tensor) -> Tensor:
    """X_{P+q} − X_{P+q−1} for q = 1…Q, the target of the auxiliary task: (B, P, *S), (B, Q, *S) → (B, Q, *S)."""
    return torch.diff(target, dim=1, prepend=history[:, -1:])


def flow_mask(target_mask: Tensor | None) -> Tensor | None:
    """True where the target and the step before it have readings: (B, Q, *S) → same. The last step of the history, which has no mask,
    counts as present."""
    if target_mask is None:
        return None
    before = torch.cat([torch.ones_like(target_mask[:, :1]), target_mask[:, :-1]], dim=1)
    return target_mask & before
