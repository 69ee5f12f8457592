"""A linear layer that uses oneDNN's fp32 kernels on CPUs.

PyTorch sends fp32 products to MKL, which on some processors runs at less than half the rate of oneDNN on the same
ones (tests/benchmarks/). oneDNN is reached through ``torch.ops.mkldnn._linear_pointwise``, an operator that PyTorch
keeps for its own compiler; where a build has none, in other dtypes, on other devices, under autocast and under
torch.compile this is ``nn.Linear``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FEWEST_ROWS = 64  # below, the call itself costs more than the faster kernel saves


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ columns.T + bias`` in fp32: (n, k), (m, k), (m,) → (n, m).

    ``columns`` are read as they lie, transposed or not; transposed ``rows`` are copied.
    """
    return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")


def _outer_sum(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x``: (n, m), (n, k) → (m, k). The transposing copy is made of the narrower of the two."""
    if grad.shape[1] <= x.shape[1]:
        return _product(grad.t(), x.t())
    return _product(x.t(), grad.t()).t().contiguous()


class _OneDNNLinear(torch.autograd.Function):
    """y = x Wᵀ + b on 2-D operands; dx = dy W, dW = dyᵀ x, db = Σ dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _product(grad, weight.t()) if needs_x else None,
            _outer_sum(grad, x) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by the fastest exact path: (..., k), (m, k), (m,) → (..., m)."""
    fast = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= _FEWEST_ROWS * x.shape[-1]
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
