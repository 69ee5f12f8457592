"""How the benchmarks measure: what is compared runs in turns, in one process and thread, and the shortest CPU time counts.

So a machine that others use too still gives ratios. Absolute times are not reported, and nothing is asserted of a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stlab.training.device import arithmetic, device_name
from stmodels.layers.linear import _has_onednn, _product

Timed = Callable[[Mapping[str, Callable[[], object]], int], dict[str, float]]


def _in_turns(candidates: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Shortest CPU time of each in seconds, after one run that does not count."""
    shortest = dict.fromkeys(candidates, float("inf"))
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name, call in candidates.items():
            started = time.process_time()
            call()
            shortest[name] = min(shortest[name], time.process_time() - started)
    return shortest


@pytest.fixture
def in_turns() -> Timed:
    return _in_turns


@pytest.fixture
def processor() -> str:
    """What the ratios hold for."""
    device = torch.device("cpu")
    return f"{device_name(device)} ({arithmetic(device)})"


@pytest.fixture
def table() -> Callable[[str, Sequence[str], Sequence[Sequence[object]]], None]:
    """Print a small table: title, head, rows."""

    def show(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (head, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for row in cells:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))

    return show


_LARGE = (4096, 1024, 1024)  # rows, inner, outer of the product whose rate the machine is judged by
LARGE_FLOPS = 2 * _LARGE[0] * _LARGE[1] * _LARGE[2]


@pytest.fixture
def large_products() -> dict[str, Callable[[], object]]:
    """A large fp32 product of ``LARGE_FLOPS`` as torch computes it and, where there is one, as oneDNN does."""
    rows, inner, outer = _LARGE
    x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
    products: dict[str, Callable[[], object]] = {"torch's product": lambda: x @ weight.t()}
    if _has_onednn():
        products["oneDNN's product"] = lambda: _product(x, weight)
    return products


@pytest.fixture
def seconds_of_flops() -> Callable[[float, Mapping[str, float]], dict[str, float]]:
    """How long so many FLOPs take at the rate of each of the ``large_products`` timed."""

    def at_rates(flops: float, times: Mapping[str, float]) -> dict[str, float]:
        return {name: flops * t / LARGE_FLOPS for name, t in times.items() if name.endswith("product")}

    return at_rates


def _linear_flops(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * x.numel() * weight[0]


def _attention_flops(q: torch.Size, k: torch.Size, *_: object, **__: object) -> int:
    return 4 * q.numel() * k[-2]  # two products


def _attention_backward_flops(grad: torch.Size, q: torch.Size, k: torch.Size, *_: object, **__: object) -> int:
    return 8 * q.numel() * k[-2]  # four products: recomputing the weights is the kernel's own choice


@pytest.fixture
def count_flops() -> Callable[[Callable[[], object]], int]:
    """FLOPs of all matrix products in a call; PyTorch's counter does not know two of the CPU's operators."""
    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    if _has_onednn():
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear_flops

    def count(call: Callable[[], object]) -> int:
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            call()
        return counter.get_total_flops()

    return count
