"""GPT-2 as a trunk: its first blocks, on tokens that a forecaster makes. It has no words.

Legend: B batch, L tokens, D width, K blocks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stmodels.backbones import complete, is_file, loading
from stmodels.errors import ConfigError, WeightsError
from stmodels.layers.adapter import insert_lora
from stmodels.rng import keep_start, seeded

if TYPE_CHECKING:
    from transformers import GPT2Config

CHECKPOINT = "openai-community/gpt2"


class Gpt2Trunk(nn.Module):
    """The first K blocks of GPT-2 with its positions and its last norm: (B, L, D) → same. All weights start frozen.

    Args:
        causal: whether a token sees only those before it, as in GPT-2, or all.

    Raises:
        WeightsError: the weights are not available; there is no fallback.
    """

    def __init__(self, backbone: str, weights: str, weights_seed: int, blocks: int, causal: bool = True) -> None:
        super().__init__()
        self.gpt2 = _create(backbone, weights, weights_seed, blocks)
        self.gpt2.wte = None  # the word table, which nobody would read
        self.width: int = self.gpt2.config.n_embd
        self.is_causal = causal
        self.requires_grad_(False)
        # What is tuned goes on from the weights that the trunk has, and is not drawn with the seed of a trial.
        keep_start(self)

    def tune_norms_and_positions(self) -> None:
        """Tune all LayerNorms and the table of positions."""
        for name, parameter in self.gpt2.named_parameters():
            if "ln_" in name or name.startswith("wpe"):
                parameter.requires_grad_()

    def tune_attention(self, last: int) -> None:
        """Tune the attention of the last blocks, or of all if there are fewer."""
        for block in list(self.gpt2.h)[max(0, len(self.gpt2.h) - last) :]:
            block.attn.requires_grad_()

    def add_lora(self, rank: int, alpha: float) -> None:
        """LoRA on queries, keys and values of every block. It comes before anything is tuned, since it freezes all else."""
        insert_lora(self.gpt2.h, targets=["c_attn"], rank=rank, alpha=alpha, is_transposed=True)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        # A mask with four axes replaces the causal one.
        mask = None if self.is_causal else torch.ones(1, 1, length, length, dtype=torch.bool, device=tokens.device)
        return self.gpt2(inputs_embeds=tokens, attention_mask=mask, use_cache=False).last_hidden_state


def _create(backbone: str, weights: str, weights_seed: int, blocks: int) -> nn.Module:
    from transformers import GPT2Model

    if is_file(weights) and not os.path.exists(weights):
        raise WeightsError(f"model.weights={weights}: there is no such folder. Give a checkpoint's folder, `pretrained` or `random`.")
    if backbone == "gpt2_test" and weights != "random":
        raise WeightsError("model.backbone=gpt2_test is a very small GPT-2 for tests; it has no weights but `model.weights=random`.")
    if weights == "random":
        with seeded(weights_seed, f"backbone/{backbone}"):
            return GPT2Model(_config(backbone, blocks))
    source = weights if is_file(weights) else CHECKPOINT
    gpt2 = loading(source, weights, lambda: _load(source))
    if blocks > len(gpt2.h):
        raise ConfigError(f"model.blocks={blocks}, and {source} has {len(gpt2.h)} blocks: choose as many or fewer")
    gpt2.h = gpt2.h[:blocks]
    gpt2.config.n_layer = blocks
    return gpt2


def _config(backbone: str, blocks: int) -> GPT2Config:
    from transformers import GPT2Config

    if backbone == "gpt2":
        return GPT2Config(n_layer=blocks)
    return GPT2Config(n_layer=min(blocks, 2), n_embd=32, n_head=4, vocab_size=64, bos_token_id=0, eos_token_id=0)


def _load(source: str) -> nn.Module:
    from transformers import GPT2Model

    gpt2, keys = GPT2Model.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    complete(keys["missing_keys"])
    return gpt2
