"""The pairs of a correlation volume on a CPU: 16 (or 8) pairs of nodes at a time, one in each SIMD lane.

Compilers do not vectorise the recurrence by themselves, since its loops run over the steps, and the loop over pairs is outside. The
innermost blocks (one node i against as many neighbours j as there are lanes) are therefore written in LLVM vectors and unrolled over the
T steps of j, which keeps a whole row of the recurrence in registers. The blocks form square tiles, which are computed for i ≤ j only and
written twice.

Legend: B batch, N nodes, M = N rounded up to whole vectors, T steps, F frequencies; the planes of a window are (T+T+F, M):
series, unit, spectrum of :class:`stmodels.correlation.volume.Prepared`, nodes last. A block is
compiled for a fixed number of steps, so this number is passed as the length of a tuple.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from llvmlite.ir import IRBuilder, Value
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from stmodels.correlation._memory import empty

logger = logging.getLogger(__name__)

# With narrower registers LLVM splits a vector over several of them, and 8 lanes then spill less than 16.
_LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, _LANES)


class _Rows:
    """A 2-D float32 array in the generated code."""

    def __init__(self, context: Any, builder: IRBuilder, kind: Any, value: Value) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder, self._data = builder, array.data
        self._width = cgutils.unpack_tuple(builder, array.shape)[1]

    def _at(self, row: Value, column: Value) -> Value:
        return self._builder.gep(self._data, [self._builder.add(self._builder.mul(row, self._width), column)])

    def vector(self, row: Value, column: Value) -> Value:
        pointer = self._builder.bitcast(self._at(row, column), _VECTOR.as_pointer())
        return self._builder.load(pointer, align=4)

    def store(self, value: Value, row: Value) -> None:
        pointer = self._builder.bitcast(self._at(row, _INDEX(0)), _VECTOR.as_pointer())
        self._builder.store(value, pointer, align=4)

    def broadcast(self, row: Value, column: Value) -> Value:
        """One element in all lanes."""
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        first = self._builder.insert_element(nothing, self._builder.load(self._at(row, column)), _INDEX(0))
        return self._builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), None))


def _constant(value: float) -> Value:
    return ir.Constant(_VECTOR, [value] * _LANES)


def _call(builder: IRBuilder, name: str, *arguments: Value) -> Value:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{_LANES}f32"), arguments)


def _smaller(builder: IRBuilder, a: Value, b: Value) -> Value:
    """min(a, b), or b if either is NaN, which is one instruction on x86."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _larger(builder: IRBuilder, a: Value, b: Value) -> Value:
    """max(a, b), or b if either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _within_one(builder: IRBuilder, r: Value) -> Value:
    """A correlation clamped to [-1, 1] against rounding. NaN stays NaN."""
    return _larger(builder, _constant(-1.0), _smaller(builder, _constant(1.0), r))


def _loop(builder: IRBuilder, start: int, stop: int, carried: Sequence[Value], body: Any) -> list[Value]:
    """``for s in range(start, stop): carried = body(s, carried)``. The carried values stay in registers. The loop runs at least once."""
    before, inside, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("done")
    builder.branch(inside)
    builder.position_at_end(inside)
    merged = [builder.phi(value.type) for value in (_INDEX(start), *carried)]
    results = [builder.add(merged[0], _INDEX(1)), *body(merged[0], merged[1:])]
    for phi, first, again in zip(merged, (_INDEX(start), *carried), results, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(again, inside)
    builder.cbranch(builder.icmp_signed("<", results[0], _INDEX(stop)), inside, after)
    builder.position_at_end(after)
    return results[1:]


@intrinsic
def _dtw(typing: Any, steps: Any, planes: Any, i: Any, j: Any, tile: Any, k: Any) -> Any:
    """tile[k] = DTW costs of node i against nodes j … j+15, from planes[:T] (Eq. 1).

    Row s of the recurrence is D[t] = |x_i[s] - x_j[t]| + min(D'[t], D[t-1], D'[t-1]) with D' the row of s-1.
    """

    def build(context: Any, b: IRBuilder, signature: Any, arguments: Any) -> Value:
        x = _Rows(context, b, planes, arguments[1])
        node, neighbours = arguments[2:4]
        x_j = [x.vector(_INDEX(t), neighbours) for t in range(steps.count)]

        def costs(s: Value) -> list[Value]:
            x_i = x.broadcast(s, node)
            return [_call(b, "llvm.fabs", b.fsub(x_i, x_jt)) for x_jt in x_j]

        def next_row(s: Value, above: Sequence[Value]) -> list[Value]:
            row: list[Value] = []
            for t, cost in enumerate(costs(s)):
                best = _smaller(b, row[-1], _smaller(b, above[t], above[t - 1])) if t else above[0]
                row.append(b.fadd(cost, best))
            return row

        row: list[Value] = []
        for cost in costs(_INDEX(0)):
            row.append(b.fadd(cost, row[-1]) if row else cost)
        if steps.count > 1:
            row = _loop(b, 1, steps.count, row, next_row)
        _Rows(context, b, tile, arguments[4]).store(row[-1], arguments[5])
        return context.get_dummy_value()

    return types.void(steps, planes, i, j, tile, k), build


@intrinsic
def _lagged(typing: Any, steps: Any, planes: Any, i: Any, j: Any, leading: Any, trailing: Any, k: Any) -> Any:
    """leading[k] and trailing[k] = the largest over τ ≥ 0 and τ ≤ 0 of Σ_t u_i[t] u_j[t+τ], from planes[T:2T] (Eq. 2).

    At step s, sum t is that of lag t - s: all sums have moved up by one since the step before, and the last is now complete.
    """

    def build(context: Any, b: IRBuilder, signature: Any, arguments: Any) -> Value:
        count = steps.count
        u = _Rows(context, b, planes, arguments[1])
        node, neighbours = arguments[2:4]
        u_j = [u.vector(_INDEX(count + t), neighbours) for t in range(count)]

        def step(s: Value, carried: Sequence[Value]) -> list[Value]:
            largest, *sums = carried
            u_i = u.broadcast(b.add(s, _INDEX(count)), node)
            moved = [_constant(0.0), *sums[:-1]]
            sums = [_call(b, "llvm.fmuladd", u_i, u_jt, total) for u_jt, total in zip(u_j, moved, strict=True)]
            return [_larger(b, largest, sums[-1]), *sums]

        start = [_constant(float("-inf")), *[_constant(0.0)] * count]
        lead, *sums = _loop(b, 0, count, start, step)
        trail = sums[0]
        for total in sums[1:]:
            trail = _larger(b, trail, total)
        for array, kind, value in ((4, leading, lead), (5, trailing, trail)):
            _Rows(context, b, kind, arguments[array]).store(_within_one(b, value), arguments[6])
        return context.get_dummy_value()

    return types.void(steps, planes, i, j, leading, trailing, k), build


@intrinsic
def _spectrum(typing: Any, steps: Any, bins: Any, planes: Any, i: Any, j: Any, tile: Any, k: Any) -> Any:
    """tile[k] = Σ_f v_i[f] v_j[f] from planes[2T:]."""

    def build(context: Any, b: IRBuilder, signature: Any, arguments: Any) -> Value:
        v = _Rows(context, b, planes, arguments[2])
        node, neighbours = arguments[3:5]
        total = _constant(0.0)
        for row in range(2 * steps.count, 2 * steps.count + bins.count):
            v_i, v_j = v.broadcast(_INDEX(row), node), v.vector(_INDEX(row), neighbours)
            total = _call(b, "llvm.fmuladd", v_i, v_j, total)
        _Rows(context, b, tile, arguments[5]).store(_within_one(b, total), arguments[6])
        return context.get_dummy_value()

    return types.void(steps, bins, planes, i, j, tile, k), build


def _compiled(function: Callable[..., None]) -> Any:
    """A function as machine code, which is cached on disk if there is a folder for it."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        logger.warning(
            "there is no folder to cache compiled code: every process compiles it again, in seconds. Set NUMBA_CACHE_DIR to a "
            "writable folder."
        )
        return njit(nogil=True)(function)


@_compiled
def _write(tile: Any, mirrored: Any, image: Any, i: int, j: int) -> None:
    """image[i:, j:] = tile and image[j:, i:] = mirrored.T, within the bounds of the image."""
    nodes = image.shape[0]
    rows, columns = min(_LANES, nodes - i), min(_LANES, nodes - j)
    if columns == _LANES:  # a loop of known length becomes one instruction
        for k in range(rows):
            for lane in range(_LANES):
                image[i + k, j + lane] = tile[k, lane]
    else:
        for k in range(rows):
            for lane in range(columns):
                image[i + k, j + lane] = tile[k, lane]
    for lane in range(columns):
        for k in range(rows):
            image[j + lane, i + k] = mirrored[k, lane]


@_compiled
def _fill(steps: Any, bins: Any, symmetric: bool, planes: Any, volume: Any, first: int, stride: int) -> None:
    """Compute every ``stride``-th band of tiles from ``first`` on, counted over all windows: (B, T+T+F, M) → (B, 3, N, N)."""
    nodes = volume.shape[2]
    bands = (nodes + _LANES - 1) // _LANES
    cost, spectrum = np.empty((_LANES, _LANES), np.float32), np.empty((_LANES, _LANES), np.float32)
    leading, trailing = np.empty((_LANES, _LANES), np.float32), np.empty((_LANES, _LANES), np.float32)
    for band in range(first, volume.shape[0] * bands, stride):
        window, image, i = planes[band // bands], volume[band // bands], band % bands * _LANES
        for j in range(i, nodes, _LANES):
            for k in range(min(_LANES, nodes - i)):
                _dtw(steps, window, i + k, j, cost, k)
                _lagged(steps, window, i + k, j, leading, trailing, k)
                _spectrum(steps, bins, window, i + k, j, spectrum, k)
            if symmetric:
                np.maximum(leading, trailing, leading)
                trailing[:] = leading
            _write(cost, cost, image[0], i, j)
            _write(leading, trailing, image[1], i, j)
            _write(spectrum, spectrum, image[2], i, j)


def _planes(*parts: Tensor) -> np.ndarray:
    """Parts (B, N, R) with the nodes last, padded with zeros to whole vectors: (B, ΣR, M)."""
    batch, nodes = parts[0].shape[:2]
    planes = torch.zeros(batch, sum(part.shape[2] for part in parts), -(-nodes // _LANES) * _LANES)
    torch.cat([part.mT for part in parts], dim=1, out=planes[:, :, :nodes])
    return planes.numpy()


def pairs(series: Tensor, unit: Tensor, spectrum: Tensor, *, symmetric: bool) -> Tensor:
    """The volume from what :func:`stmodels.correlation.volume._prepare` returns: (B, N, T), (B, N, T), (B, N, F) → (B, 3, N, N).

    Bands of tiles are distributed over ``torch.get_num_threads()`` threads, since the kernel releases the interpreter's lock.
    """
    batch, nodes, count = series.shape
    planes, volume = _planes(series, unit, spectrum), empty((batch, 3, nodes, nodes), series.device)
    threads = min(torch.get_num_threads(), batch * -(-nodes // _LANES))
    steps, bins = tuple(range(count)), tuple(range(spectrum.shape[2]))

    def work(first: int) -> None:
        _fill(steps, bins, symmetric, planes, volume.numpy(), first, threads)

    if threads == 1:
        work(0)
    elif threads:
        # The pool is created for each call: it would not survive a fork, and starting one takes a fraction of a millisecond.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    return volume
