"""The frozen ViLT as separate embeddings and layers, so that the first layer can be replaced.

ViLT's ``visual_embed`` is not used, since it samples patches in random order, and a bias would no longer match its patches.

Legend: B batch, L text tokens, G×G image patches, D width, h heads, X queries, Y keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.backbones import complete, draw_by_width, is_file, loading
from stmodels.errors import WeightsError
from stmodels.layers.adapter import insert_lora
from stmodels.layers.attention import attention
from stmodels.layers.linear import accelerate, linear
from stmodels.rng import seeded

if TYPE_CHECKING:
    from transformers import ViltConfig

CHECKPOINT = "dandelin/vilt-b32-mlm"
_TEXT, _IMAGE = 0, 1  # ViLT's modality types


class ViltLayer(nn.Module):
    """One layer of ViLT on any queries and keys, with the projections of ViLT."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.heads = layer.attention.attention.num_attention_heads

    def forward(self, x: Tensor, y: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Tokens x after attention to y (without y: to themselves) and the MLP.

        Args:
            x: (B, X, D).
            y: (B, Y, D).
            bias: (B, X, Y), added to the scores before they are scaled (Eq. 7), the same for all heads.
        """
        projections = self.layer.attention.attention
        queries = self.layer.layernorm_before(x)
        keys = queries if y is None else self.layer.layernorm_before(y)
        q, k, v = projections.query(queries), projections.key(keys), projections.value(keys)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = attention(q, k, v, None if bias is None else bias[:, None]).transpose(1, 2).flatten(2)
        x = x + self.layer.attention.output.dense(attended)
        return self.layer.output(self.layer.intermediate(self.layer.layernorm_after(x)), x)


class FrozenVilt(nn.Module):
    """The parts of ViLT. Only LoRA is trained.

    Args:
        side: G, the number of patches per side of the image. It takes its positions from ViLT's canvas, interpolated if it is larger.
    """

    def __init__(self, vilt: nn.Module, side: int, lora_rank: int, lora_alpha: float | None) -> None:
        super().__init__()
        config = vilt.config
        self.width: int = config.hidden_size
        self.patch: int = config.patch_size
        self.vocabulary: int = config.vocab_size  # words it knows
        self.text_positions: int = config.max_position_embeddings
        self.embeddings = vilt.embeddings
        self.norm = vilt.layernorm
        if lora_rank:
            insert_lora(vilt.encoder.layer, targets=["query", "key"], rank=lora_rank, alpha=lora_alpha)
        self.layers = nn.ModuleList(ViltLayer(layer) for layer in vilt.encoder.layer)
        positions = canvas_positions(self.embeddings.position_embeddings.detach(), side, config.image_size // config.patch_size)
        self.register_buffer("positions", positions, persistent=False)  # (1, 1 + G², D)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name)
        accelerate(self)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Prompt tokens (1, L) → (1, L, D), as ViLT embeds text."""
        return self.embeddings.text_embeddings(ids) + self._modality(_TEXT)

    def embed_nodes(self, tokens: Tensor) -> Tensor:
        """Node tokens (B, N, D) with the modality of text. They replace text, but get no text position."""
        return tokens + self._modality(_TEXT)

    def embed_image(self, image: Tensor) -> Tensor:
        """(B, 3, G·32, G·32) → (B, 1 + G², D): the class token, and then the patches row by row."""
        projection = self.embeddings.patch_embeddings.projection
        p = self.patch
        patches = image.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        tokens = linear(patches, projection.weight.flatten(1), projection.bias)
        first = self.embeddings.cls_token.expand(len(tokens), -1, -1)
        return torch.cat([first, tokens], dim=1) + self.positions + self._modality(_IMAGE)

    def _modality(self, kind: int) -> Tensor:
        return self.embeddings.token_type_embeddings.weight[kind]


def canvas_positions(positions: Tensor, side: int, native: int) -> Tensor:
    """Positions of the class token and of the top-left side × side patches: (1, 1 + native², D) → (1, 1 + side², D).

    For a canvas larger than the native one they are interpolated as ViLT does (bilinear, with aligned corners).
    """
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (native, native))
    if side > native:
        grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :1], grid[:, :, :side, :side].flatten(2).transpose(1, 2)], dim=1)


def create_vilt(backbone: str, weights: str, weights_seed: int) -> nn.Module:
    """A ViLT of transformers, without its pooler.

    Raises:
        WeightsError: its weights are not available; there is no fallback.
    """
    if backbone == "vilt_test" and weights != "random":
        raise WeightsError("model.backbone=vilt_test is a very small ViLT for tests; it has no weights but `model.weights=random`.")
    if weights == "random":
        with seeded(weights_seed, f"backbone/{backbone}"):
            return _random(_config(backbone))
    source = weights if is_file(weights) else CHECKPOINT
    return loading(source, weights, lambda: _load(source))


def _config(backbone: str) -> ViltConfig:
    from transformers import ViltConfig

    if backbone == "vilt_b32":
        return ViltConfig()
    return ViltConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=2048)


def _random(config: ViltConfig) -> nn.Module:
    from transformers import ViltModel

    vilt = ViltModel(config, add_pooling_layer=False)
    draw_by_width(vilt)
    # Class token and patch positions start at zero, so an untrained model could not tell patches apart by position.
    for parameter in (vilt.embeddings.cls_token, vilt.embeddings.position_embeddings):
        nn.init.trunc_normal_(parameter, std=config.initializer_range)
    return vilt


def _load(source: str) -> nn.Module:
    from transformers import ViltModel

    vilt, keys = ViltModel.from_pretrained(source, add_pooling_layer=False, output_loading_info=True)
    complete(keys["missing_keys"])
    return vilt
