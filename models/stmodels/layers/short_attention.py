"""Self-attention for thousands of sequences of a few tokens.

Kernels made for long sequences start one small product for every sequence and head, which costs more than the
products. On a CPU the loop is turned inside out: it runs over the tokens, each step elementwise over all sequences and
heads.

Legend: T tokens, M sequences, D width, h heads, R = M·h, E = D/h; i and j number tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

_MOST_TOKENS = 8  # with more, a product for every sequence and head is faster with AVX2 (tests/benchmarks/)


def _dots(a_TRE: Tensor, b_TRE: Tensor) -> Tensor:
    """s_ij = a_i · b_j: two (T, R, E) → (T, T, R)."""
    s_RTT = torch.bmm(a_TRE.transpose(0, 1), b_TRE.permute(1, 2, 0))
    return s_RTT.permute(1, 2, 0).contiguous()


def _mix(w_TTR: Tensor, x_TRE: Tensor) -> Tensor:
    """y_i = Σ_j w_ij x_j: (T, T, R), (T, R, E) → (T, R, E)."""
    columns = w_TTR.unsqueeze(-1).unbind(1)
    y_TRE = columns[0] * x_TRE[0]
    for w_TR1, x_RE in zip(columns[1:], x_TRE[1:], strict=True):
        y_TRE.addcmul_(w_TR1, x_RE)
    return y_TRE


class _PairwiseAttention(torch.autograd.Function):
    """o = P v with P = softmax_j(λ q_i · k_j), λ = E^(-1/2): (T, M, 3·D) → (T, M, D)."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        t, m, width = qkv.shape
        e = width // (3 * heads)
        packed = qkv.view(t, m, 3, heads, e).permute(2, 0, 1, 3, 4).reshape(3, t, m * heads, e)
        q, k, v = packed
        p = _dots(q, k).mul_(e**-0.5).softmax(1)
        ctx.save_for_backward(packed, p)
        ctx.heads = heads
        return _mix(p, v).view(t, m, -1)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """dP_ij = do_i · v_j and dS = λ P ∘ (dP − Σ_j P_ij dP_ij); then dq = dS k, dk = dSᵀ q, dv = Pᵀ do."""
        packed, p = ctx.saved_tensors
        q, k, v = packed
        t, r, e = q.shape
        do = grad.reshape(t, r, e)
        dp = _dots(do, v)
        ds = p * (dp - (p * dp).sum(1, keepdim=True)) * e**-0.5
        parts = (_mix(ds, k), _mix(ds.transpose(0, 1), q), _mix(p.transpose(0, 1), do))
        return torch.stack([part.view(t, -1, ctx.heads * e) for part in parts], dim=2).flatten(2), None


def short_attention(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention within each sequence, without a mask: (T, M, 3·D), queries before keys before values → (T, M, D).

    On CPUs it is computed in fp32 under autocast too: at this size bf16 saves nothing and its kernels are slower.
    """
    t, m, _ = qkv.shape
    if qkv.device.type == "cpu" and t <= _MOST_TOKENS and not torch.compiler.is_compiling():
        return _PairwiseAttention.apply(qkv, heads).to(qkv.dtype)
    q, k, v = qkv.view(t, m, 3, heads, -1).permute(2, 1, 3, 0, 4)  # (M, h, T, E) each
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).permute(2, 0, 1, 3).reshape(t, m, -1)
