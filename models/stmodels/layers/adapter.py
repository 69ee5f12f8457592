"""Small trainable parts inside a frozen backbone: Houlsby adapters (our own) and LoRA (by ``peft``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.layers.linear import Linear


class Adapter(nn.Module):
    """Houlsby bottleneck: x + up(GELU(down(x))). The up-projection starts at zero, so at step 0 this is the identity.

    Source: Houlsby et al. 2019, section 2.1; r is the bottleneck's width.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = Linear(width, rank)
        self.up = Linear(rank, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


class Adapted(nn.Module):
    """A frozen module followed by an adapter."""

    def __init__(self, inner: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.adapter(self.inner(*args, **kwargs))


def insert_adapters(blocks: Sequence[nn.Module], after: str, width: int, rank: int) -> None:
    """Put an adapter after the submodule ``after`` of every block, which is the last one before the residual sum of the attention."""
    for block in blocks:
        parent_name, _, name = after.rpartition(".")
        parent = block.get_submodule(parent_name)
        setattr(parent, name, Adapted(getattr(parent, name), Adapter(width, rank)))


def insert_lora(
    blocks: nn.Module, targets: Sequence[str], rank: int, alpha: float | None = None, is_transposed: bool = False
) -> None:
    """LoRA of the given rank on every linear layer whose name ends in one of ``targets`` (peft; B starts at zero).

    ``alpha`` defaults to 2·rank, so that the scale of the update does not depend on the rank. ``is_transposed`` says that the layers
    hold their weights as (inputs, outputs), as those of GPT-2 do.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=list(targets), bias="none",
        fan_in_fan_out=is_transposed,
    )  # fmt: skip
    inject_adapter_in_model(config, blocks)
    for module in blocks.modules():
        if isinstance(module, LoraLayer):
            # peft initialises from the global generator; stmodels.rng.initialise looks for this name.
            module.reset_parameters = partial(module.reset_lora_parameters, "default", True)
