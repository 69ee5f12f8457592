"""Attention among the tokens of a frame.

The fused kernel is the faster one except under bf16 autocast on CPUs: there its backward takes about ten times as long as
the plain products at some dozen tokens (tests/benchmarks/).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn


def _fused_is_faster() -> bool:
    return not torch.is_autocast_enabled("cpu")


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax((q kᵀ + bias) / √E) v, without a mask: (B, h, N, E), (B, h, L, E), (B, h, L, E) → (B, h, N, E).

    Args:
        bias: broadcast to (B, h, N, L); inside the scale, as ST-VLM's Eq. 7 has it.
    """
    scale = q.shape[-1] ** -0.5
    scaled = None if bias is None else bias * scale
    if _fused_is_faster():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=scaled)
    scores = q * scale @ k.transpose(-1, -2)
    return (scores if scaled is None else scores + scaled).softmax(-1) @ v


class _TimmAttention(Attention):
    @property
    def fused_attn(self) -> bool:  # type: ignore[misc]
        """Which of its two formulations timm's attention takes; otherwise fixed when it is built."""
        return _fused_is_faster()


def accelerate_attention(model: nn.Module) -> None:
    """Let timm's attention choose its kernel as :func:`attention` does; names and weights stay as they are."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = _TimmAttention
