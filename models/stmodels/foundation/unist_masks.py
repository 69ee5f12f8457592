"""Which patches are hidden in UniST's training on masked patches.

Legend: M images, T' rows of tokens in time, of which F are ahead, n patches of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Sizes = tuple[int, int, int, int]
"""(M, T', n, F)."""


class Mask(NamedTuple):
    """What is hidden, and how many patches of each image are not."""

    hidden: Tensor  # (M, T', n) bool
    visible: int


def at_random(sizes: Sizes, ratio: float, device: torch.device) -> Mask:
    """Patches at will, a draw for each image."""
    m, rows, n, _ = sizes
    count = _count(rows * n, ratio)
    order = torch.rand(m, rows * n, device=device).argsort(1).argsort(1)
    return Mask((order < count).view(m, rows, n), rows * n - count)


def tubes(sizes: Sizes, ratio: float, device: torch.device) -> Mask:
    """The same places at all times, one draw for all images."""
    m, rows, n, _ = sizes
    count = _count(n, ratio)
    order = torch.rand(n, device=device).argsort().argsort()
    return Mask((order < count).expand(m, rows, n), rows * (n - count))


def half_of_the_grid(sizes: Sizes, ratio: float, device: torch.device) -> Mask:
    """The first or the second half of the places in row order, at all times."""
    m, rows, n, _ = sizes
    hides_second = bool(torch.rand(()) < 0.5)
    hidden = (torch.arange(n, device=device) >= n // 2) == hides_second
    return Mask(hidden.expand(m, rows, n), rows * (n // 2 if hides_second else n - n // 2))


def the_future(sizes: Sizes, ratio: float, device: torch.device) -> Mask:
    """All that lies ahead, which is the forecast."""
    m, rows, n, ahead = sizes
    hidden = (torch.arange(rows, device=device) >= rows - ahead)[None, :, None]
    return Mask(hidden.expand(m, rows, n), (rows - ahead) * n)


MASKS: dict[str, Callable[[Sizes, float, torch.device], Mask]] = {
    "random": at_random,
    "tube": tubes,
    "block": half_of_the_grid,
    "temporal": the_future,
}


def draw(sizes: Sizes, ratio: float, device: torch.device) -> Mask:
    """One of the four, each as likely."""
    names = list(MASKS)
    return MASKS[names[int(torch.randint(len(names), ()))]](sizes, ratio, device)


def _count(total: int, ratio: float) -> int:
    return min(max(1, round(ratio * total)), total - 1)
