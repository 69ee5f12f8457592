"""An LSTM for thousands of short sequences, fast in fp32 on CPUs.

``nn.LSTM`` spends most of its time on moving the gates of every step and on tanh. Here a tile of sequences runs through all steps
while its gates are in the cache. Only hidden states and cells are kept, and the backward pass computes the gates of all steps again in
one product. Forward and backward take half the time of ``nn.LSTM`` (tests/benchmarks/).

Legend: T steps, M sequences, R sequences a tile, K inputs, H hidden, 4H gates in torch's order: input, forget, cell, output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stmodels.layers.linear import _has_onednn, _outer_sum, _product, linear

_TILE = 512  # sequences; 12 steps of their gates of 64 units are 6 MiB
_FEWEST = 64  # with fewer sequences the calls cost more than the tiles save


class LSTM(nn.LSTM):
    """``nn.LSTM`` with time first: the same parameters, results and initial weights.

    ``nn.LSTM`` itself computes everything but fp32 on a CPU, and every call with initial states.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size, num_layers)

    # The compiler cannot trace a subclass of nn.LSTM, so it must skip this module.
    @torch.compiler.disable
    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(T, M, K) → outputs (T, M, H), and the last hidden state and the last cell of every layer (layers, M, H)."""
        if _lacks_bfloat16(input):
            with torch.autocast("cpu", enabled=False):
                return self.forward(input.float(), hx and (hx[0].float(), hx[1].float()))
        if hx is not None or not self._is_fast(input):
            return super().forward(input, hx)
        return self._run(_Steps(input, None, len(input)))

    @torch.compiler.disable
    def repeat(self, x: Tensor, steps: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """:meth:`forward` of the same input (M, K) repeated ``steps`` times, which is projected only once."""
        if _lacks_bfloat16(x):
            with torch.autocast("cpu", enabled=False):
                return self.repeat(x.float(), steps)
        if not self._is_fast(x[None]):
            return super().forward(x.expand(steps, *x.shape))
        weight, _, bias = self._weights(0)
        return self._run(_Steps(None, linear(x, weight, bias), steps))

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of a layer: input to gates (4H, K), hidden to gates (4H, H), and the sum of the two biases (4H)."""
        w_ih, w_hh, b_ih, b_hh = self.all_weights[layer]
        return w_ih, w_hh, b_ih + b_hh

    def _run(self, steps: _Steps) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, cells = [], []
        for layer in range(self.num_layers):
            w_ih, w_hh, bias = self._weights(layer)
            joined = w_hh if steps.x is None else torch.cat([w_hh, w_ih, bias[:, None]], dim=1)
            output, last, cell = _Recurrence.apply(steps.x, steps.projected, joined, steps.count)
            hidden.append(last)
            cells.append(cell)
            steps = _Steps(output, None, steps.count)
        return output, (torch.stack(hidden), torch.stack(cells))

    def _is_fast(self, x: Tensor) -> bool:
        return (
            x.dim() == 3
            and x.device.type == "cpu"
            and x.dtype == self.weight_hh_l0.dtype == torch.float32
            and x.shape[1] >= _FEWEST
            and not torch.is_autocast_enabled("cpu")
            and _has_onednn()
        )


def _lacks_bfloat16(x: Tensor) -> bool:
    """Whether autocast would ask for an LSTM in bf16 of a CPU that has none (without AVX-512): PyTorch fails there. It is fp32 then."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Steps(NamedTuple):
    """The input of a layer: a sequence (T, M, K), or a constant input's projection to the gates of every step, (M, 4H)."""

    x: Tensor | None
    projected: Tensor | None
    count: int


class _Recurrence(torch.autograd.Function):
    """One layer from zero states: outputs (T, M, H), the last output and the last cell, (M, H) each.

    The input is either ``x`` (T, M, K), with ``weight`` (4H, H + K + 1) for [h, x, 1], or ``projected`` (M, 4H), which is added to the
    gates of every step, with ``weight`` (4H, H).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor | None, projected: Tensor | None, weight: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sequences, hidden = (x.shape[1] if x is not None else projected.shape[0]), weight.shape[0] // 4
        outputs, cells = (weight.new_empty(steps, sequences, hidden) for _ in range(2))
        doubled, added = _doubled(weight, 0), None if projected is None else _doubled(projected, 1)
        for tile in _tiles(sequences):
            _run_tile(_part(x, tile), _rows(added, tile), doubled, outputs[:, tile], cells[:, tile])
        ctx.save_for_backward(x, projected, weight, outputs, cells)
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor, None]:  # type: ignore[override]
        x, projected, weight, outputs, cells = ctx.saved_tensors
        steps, sequences, hidden = outputs.shape
        d_outputs, d_last, d_cell = grads
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        d_projected = None if projected is None else torch.empty_like(projected)
        d_weight = torch.zeros_like(weight)
        doubled, added = _doubled(weight, 0), None if projected is None else _doubled(projected, 1)
        back = weight[:, :hidden].t().contiguous()  # (H, 4H): oneDNN is slow on rows that are not contiguous
        back_x = weight[:, hidden:-1].t().contiguous()
        for tile in _tiles(sequences):
            read = _inputs(_part(x, tile), outputs[:, tile])
            gates = _product(read.flatten(0, 1), doubled).view(steps, -1, 4 * hidden)
            if added is not None:
                gates += added[tile]
            d_gates = _gate_gradients(
                _activated(gates), cells[:, tile], back, _part(d_outputs, tile), _rows(d_last, tile), _rows(d_cell, tile)
            )
            flat = d_gates.flatten(0, 1)
            d_weight += _outer_sum(flat, read.flatten(0, 1))
            if d_x is not None:
                d_x[:, tile] = _product(flat, back_x).view(steps, -1, x.shape[2])
            if d_projected is not None:
                torch.sum(d_gates, 0, out=d_projected[tile])
        return d_x, d_projected, d_weight, None


def _tiles(sequences: int) -> list[slice]:
    return [slice(first, min(first + _TILE, sequences)) for first in range(0, sequences, _TILE)]


def _part(x: Tensor | None, tile: slice) -> Tensor | None:
    return None if x is None else x[:, tile]


def _rows(x: Tensor | None, tile: slice) -> Tensor | None:
    return None if x is None else x[tile]


def _doubled(x: Tensor, dim: int) -> Tensor:
    """A copy in which the rows of the cell gate are doubled: tanh z is 2σ(2z) - 1, and σ takes less than half the time of tanh."""
    hidden = x.shape[dim] // 4
    x = x.clone()
    x.narrow(dim, 2 * hidden, hidden).mul_(2)
    return x


def _tanh(x: Tensor) -> Tensor:
    return torch.mul(x, 2).sigmoid_().mul_(2).sub_(1)


def _activated(gates: Tensor) -> Tensor:
    """Sigmoid of the input, forget and output gates and tanh of the cell gate, in place: (…, 4H) with the cell gate doubled."""
    hidden = gates.shape[-1] // 4
    gates.sigmoid_()
    gates[..., 2 * hidden : 3 * hidden].mul_(2).sub_(1)
    return gates


def _run_tile(x: Tensor | None, projected: Tensor | None, weight: Tensor, outputs: Tensor, cells: Tensor) -> None:
    """All steps of a tile: (T, R, K) or (R, 4H) → ``outputs`` and ``cells``, (T, R, H)."""
    steps, rows, hidden = outputs.shape
    read = weight.new_zeros(rows, weight.shape[1])  # [h, x, 1] of a step, or h
    if x is not None:
        read[:, -1] = 1
    for t in range(steps):
        if x is not None:
            read[:, hidden:-1] = x[t]
        gates = _product(read, weight)
        if projected is not None:
            gates += projected
        i, f, g, o = _activated(gates).split(hidden, dim=1)
        torch.mul(i, g, out=cells[t])
        if t:
            cells[t].addcmul_(f, cells[t - 1])
        torch.mul(o, _tanh(cells[t]), out=outputs[t])
        read[:, :hidden] = outputs[t]


def _inputs(x: Tensor | None, outputs: Tensor) -> Tensor:
    """The inputs of the products of all steps: (T, R, K), (T, R, H) → (T, R, H + K + 1), or (T, R, H) without x."""
    before = torch.cat([torch.zeros_like(outputs[:1]), outputs[:-1]])
    return before if x is None else torch.cat([before, x, torch.ones_like(x[..., :1])], dim=2)


def _gate_gradients(
    gates: Tensor, cells: Tensor, back: Tensor, d_outputs: Tensor | None, d_last: Tensor | None, d_cell: Tensor | None
) -> Tensor:
    """Gradient of the loss by the gates before their activation, (T, R, 4H), from the activated gates and the cells.

    Everything outside of the recurrence is computed for all steps at once: the derivatives of the cell by its gates, of the output by the
    output gate, and of the output by the cell.
    """
    steps, _, hidden = cells.shape
    i, f, g, o = gates.split(hidden, dim=2)
    squashed = _tanh(cells)
    before = torch.cat([torch.zeros_like(cells[:1]), cells[:-1]])
    result = torch.empty_like(gates)
    d_i, d_f, d_g, d_o = result.split(hidden, dim=2)
    torch.ops.aten.sigmoid_backward.grad_input(g, i, grad_input=d_i)
    torch.ops.aten.sigmoid_backward.grad_input(before, f, grad_input=d_f)
    torch.ops.aten.tanh_backward.grad_input(i, g, grad_input=d_g)
    torch.ops.aten.sigmoid_backward.grad_input(squashed, o, grad_input=d_o)
    cell_by_output = torch.ops.aten.tanh_backward(o, squashed)
    d_h = torch.zeros_like(cells[0]) if d_last is None else d_last
    d_c = torch.zeros_like(cells[0]) if d_cell is None else d_cell
    for t in reversed(range(steps)):
        if d_outputs is not None:
            d_h = d_h + d_outputs[t]
        d_c = torch.addcmul(d_c, d_h, cell_by_output[t])
        step = result[t].unflatten(1, (4, hidden))
        step[:, :3] *= d_c[:, None]
        step[:, 3] *= d_h
        d_c *= f[t]
        if t:
            d_h = _product(result[t], back)
    return result
