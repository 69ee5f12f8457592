"""The correlation volume of a window: three similarities of every pair of nodes, from the history alone.

Legend: B batch, N nodes, T steps of the window, F = T//2 frequencies above 0; i and j number nodes.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CHANNELS = ("dtw", "cross_correlation", "spectrum")
Lag = Literal["any", "nonnegative"]

# If a series changes by less than this share of its largest magnitude, the change is rounding of float32.
_FLAT = 4 * torch.finfo(torch.float32).eps
_FLAT_SPECTRUM = 64 * torch.finfo(torch.float32).eps  # a Fourier transform rounds more often


class Prepared(NamedTuple):
    """The inputs of the pairs of a window. All are NaN for a node that has a reading that is not finite."""

    series: Tensor  # (B, N, T) float32
    unit: Tensor  # (B, N, T): window mean removed, of length 1; 0 for a flat series
    spectrum: Tensor  # (B, N, F): amplitudes of `unit`, their mean removed, of length 1; 0 for a flat series


def _unit(x: Tensor, flat_below: float = _FLAT) -> Tensor:
    """(x - mean) / |x - mean| over the last axis; 0 if x is flat, which is if it changes by at most this share of its largest magnitude.

    The first value is subtracted before anything is summed, so that neither a large offset nor a very small or large scale
    costs precision, and a constant gives exactly 0.
    """
    moved = x - x[..., :1]
    spread = moved.abs().amax(-1, keepdim=True)
    flat = spread <= flat_below * x.abs().amax(-1, keepdim=True)
    moved = moved / spread
    centred = moved - moved.mean(-1, keepdim=True)
    return (centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True)).masked_fill(flat, 0.0)


def _prepare(x: Tensor) -> Prepared:
    series = x.float().contiguous()  # so that sums have the same order for any memory layout of the input
    series = series + (series * 0.0).sum(-1, keepdim=True)
    unit = _unit(series)
    amplitudes = torch.fft.rfft(unit).abs()
    # The mean is removed, so frequency 0 has the amplitude 0 in every series, by which any two would correlate.
    return Prepared(series, unit, _unit(amplitudes[..., 1:] if series.shape[-1] > 1 else amplitudes, _FLAT_SPECTRUM))


@cache
def _has_numba() -> bool:
    found = find_spec("numba") is not None
    if not found:
        logger.warning("numba is not installed: the slower torch path computes correlation volumes on CPUs")
    return found


def _check(x: Tensor, lag: str) -> None:
    if x.ndim != 3 or x.shape[-1] == 0 or not x.is_floating_point():
        raise ValueError(f"a correlation volume needs (B, N, T) floats, T ≥ 1; got {tuple(x.shape)} {x.dtype}")
    if lag not in get_args(Lag):
        raise ValueError(f"lag is {lag!r}; it can be {' or '.join(map(repr, get_args(Lag)))}")


# A custom operator, so that torch.compile does not trace into the kernel, or into the recurrence, which is compiled with options of
# its own.
@torch.library.custom_op("stmodels::correlation_volume", mutates_args=())
def _volume(x: Tensor, symmetric: bool, by_kernel: bool) -> Tensor:
    prepared = _prepare(x)
    if by_kernel and x.device.type == "cpu" and _has_numba():
        from stmodels.correlation import _tiles as path
    else:
        from stmodels.correlation import _recurrence as path  # type: ignore[no-redef]
    return path.pairs(*prepared, symmetric=symmetric)


@_volume.register_fake
def _(x: Tensor, symmetric: bool, by_kernel: bool) -> Tensor:
    batch, nodes, _ = x.shape
    return x.new_empty(batch, len(CHANNELS), nodes, nodes, dtype=torch.float32)


def correlation_volume(x: Tensor, *, lag: Lag = "any") -> Tensor:
    """Three similarities of every pair of nodes: (B, N, T) → (B, 3, N, N) float32, channels as in ``CHANNELS``.

    ``dtw``: the cost Σ |x_i[s] - x_j[t]| along the best warping path from (0, 0) to (T-1, T-1) (Eq. 1); symmetric, in the
    unit of ``x``, which should be z-scored.

    ``cross_correlation``: the largest over lags τ of Σ_t (x_i[t] - m_i)(x_j[t+τ] - m_j) / (|x_i - m_i| |x_j - m_j|), with means
    m and lengths over the whole window (Eq. 2), in [-1, 1]. With ``lag="any"`` τ runs over [-T+1, T-1] and the channel is
    symmetric; with ``lag="nonnegative"`` over [0, T-1], and entry [i, j] says how well i leads j.

    ``spectrum``: the Pearson correlation of the amplitudes of ``rfft(x - m)`` at the T//2 frequencies above 0, in [-1, 1]. A single one,
    of two or three steps, correlates with none: 0. Neither do amplitudes that are all equal, as those of a single spike.

    A flat series has no correlation: every entry of its row and column, including the diagonal, is 0 in the last two channels. A
    series is flat if it changes by at most 4 units of float32's relative rounding of its largest magnitude. A reading that is not
    finite makes its node's row and column NaN in all channels.

    The volume is computed in float32 for any dtype, also under autocast, and without gradients. CPUs use numba's kernel on
    ``torch.get_num_threads()`` threads (without numba torch's recurrence, with a warning). Other devices use torch's recurrence, which
    is compiled if Triton is available. The kernel is compiled once for every new T (seconds) and cached on disk.

    Raises:
        ValueError: ``x`` is not (B, N, T) floats with T ≥ 1, or ``lag`` is neither name.
    """
    _check(x, lag)
    return _volume(x.detach(), lag == "any", True)


def correlation_volume_torch(x: Tensor, *, lag: Lag = "any") -> Tensor:
    """:func:`correlation_volume` by torch's recurrence, on the device of ``x``."""
    _check(x, lag)
    return _volume(x.detach(), lag == "any", False)
