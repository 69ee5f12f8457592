"""Randomness from named generators, which are seeded by a seed and the name of the quantity that is drawn.

Two models that have a module of the same name start it from the same weights, whatever their other modules are, so that variants of one
seed can be compared in pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed for ``name``, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for ``name``."""
    return torch.Generator().manual_seed(named_seed(seed, name))


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed the global CPU generator for ``name`` within the context, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, name))
        yield


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every trainable weight again, each module from the generator of its name.

    Children come before their parents, so that a parent's ``reset_parameters`` can overwrite the weights of its children (with a zero
    up-projection, for example). Frozen parameters are not changed. The model must be on the CPU.
    """
    for name, module in reversed(list(model.named_modules())):
        reset = getattr(module, "reset_parameters", None)
        if reset is not None and any(p.requires_grad for p in module.parameters()):
            with seeded(seed, name):
                reset()


def keep_start(module: nn.Module) -> None:
    """Leave the weights of a module, and of all in it, as they are when trainable ones are drawn: pretrained weights that are tuned."""
    for part in module.modules():
        part.reset_parameters = None  # type: ignore[assignment]


def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` training windows in an epoch. It depends on the seed and the epoch alone."""
    return torch.randperm(count, generator=generator(seed, f"data order/{epoch}"))
