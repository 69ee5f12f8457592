"""Randomness from named generators: a seed, then the name of what is drawn.

Two models that share a module by name start it from the same weights, whatever else they hold; so variants of one seed can be
compared as pairs.
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
    """The global CPU generator seeded for ``name`` inside, as it was before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, name))
        yield


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every trainable weight anew, each module from a generator of its own name.

    Children come before their parents, so that a parent's ``reset_parameters`` has the last word on what it composes (a
    zero up-projection, say). Frozen parameters are left alone. To be called while the model is on the CPU.
    """
    for name, module in reversed(list(model.named_modules())):
        reset = getattr(module, "reset_parameters", None)
        if reset is not None and any(p.requires_grad for p in module.parameters()):
            with seeded(seed, name):
                reset()


def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` training windows in an epoch: a function of the seed and the epoch alone."""
    return torch.randperm(count, generator=generator(seed, f"data order/{epoch}"))
