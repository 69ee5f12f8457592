"""A linear layer that uses oneDNN's fp32 kernels on CPUs.

PyTorch sends fp32 products to MKL, which on some processors runs at less than half the rate of oneDNN on the same ones
(tests/benchmarks/). Elsewhere, under autocast, in other dtypes and under torch.compile this is ``nn.Linear``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_ROWS_WORTH_PACKING = 256  # below this many rows the packing of the weight costs more than it saves


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    """``rows @ columns.T + bias`` in fp32: (n, k), (m, k) → (n, m)."""
    return torch.ops.mkldnn._linear_pointwise(rows, columns.to_mkldnn(), bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """y = x Wᵀ + b on 2-D operands, and its three gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad = grad.contiguous()
        grad_x = _product(grad, weight.t().contiguous(), None) if needs_x else None
        grad_weight = _product(grad.t().contiguous(), x.t().contiguous(), None) if needs_weight else None
        grad_bias = grad.sum(0) if needs_bias else None
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by the fastest exact path: (..., k), (m, k), (m,) → (..., m)."""
    fast = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= _ROWS_WORTH_PACKING * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _has_onednn()
    )
    if not fast:
        return F.linear(x, weight, bias)
    flat = _OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return flat.view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """``nn.Linear`` by way of :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def accelerate(model: nn.Module) -> None:
    """Let every plain ``nn.Linear`` of a model compute by way of :func:`linear`; names and weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
