"""A linear layer that uses oneDNN's fp32 kernels on the processors where they are faster than PyTorch's own.

PyTorch sends fp32 products to MKL, which on AMD's processors with AVX-512 runs at less than half the rate of oneDNN on the
same ones; on Intel's it is oneDNN that is slower (tests/benchmarks/). oneDNN is reached through
``torch.ops.mkldnn._linear_pointwise``, an operator that PyTorch keeps for its own compiler.

Which of the two computes a product follows from the processor and the product's sizes alone and is never measured at run
time, so that a trial that goes on later computes as it did before.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Smaller products are left to F.linear: there the call itself may cost more than the faster kernel saves.
_FEWEST_ROWS = 1024
_SMALLEST_WIDTH = 128


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def cpu_vendor() -> str:
    """``GenuineIntel``, ``AuthenticAMD``, … as Linux reports it; ``unknown`` on other systems and processors without one."""
    if platform.system() != "Linux":
        return "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "unknown")


@cache
def linear_kernels() -> str:
    """Whose kernels compute large fp32 products on this processor: ``onednn``, or ``mkl`` (``torch`` in a build without MKL)."""
    if cpu_vendor() == "AuthenticAMD" and torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_onednn():
        return "onednn"
    return "mkl" if torch.backends.mkl.is_available() else "torch"


def _uses_onednn(rows: int, inner: int, outer: int) -> bool:
    return linear_kernels() == "onednn" and rows >= _FEWEST_ROWS and min(inner, outer) >= _SMALLEST_WIDTH


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
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _uses_onednn(x.shape[:-1].numel(), weight.shape[1], weight.shape[0])
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
