"""ST-VLM's equations a second time, in float64 and as slowly as they read: transformers' own layers on the paper's whole canvas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stmodels.correlation import correlation_image, correlation_volume
from stmodels.st_vlm.model import STVLM
from stmodels.st_vlm.vilt import create_vilt

Make = Callable[..., Any]
CANVAS = 384
PATCH = 32


def canvas_image(model: torch.nn.Module, pixels: Tensor) -> Tensor:
    """(B, 3, N, N) in [0, 1] → M' on the whole canvas, (B, 3, S, S): ViLT's normalisation, padding, then W_af on the padded image."""
    nodes = pixels.shape[-1]
    side = CANVAS if nodes <= CANVAS else math.ceil(nodes / PATCH) * PATCH
    canvas = torch.zeros(*pixels.shape[:2], side, side, dtype=torch.float64)
    canvas[:, :, :nodes, :nodes] = (pixels - 0.5) / 0.5
    mix = model.canvas.mix
    mixed = torch.nn.functional.conv2d(canvas, mix.weight.double(), mix.bias.double(), padding=1)
    return mixed


def image_tokens(vilt: torch.nn.Module, image: Tensor) -> Tensor:
    """Class token and every patch of the canvas, by ViLT's own embedding and its own interpolation of positions."""
    embeddings = vilt.embeddings
    patches = embeddings.patch_embeddings(image)  # (B, D, g, g)
    g = patches.shape[-1]
    native = CANVAS // PATCH
    positions = embeddings.position_embeddings[:, 1:].transpose(1, 2).reshape(1, -1, native, native)
    positions = torch.nn.functional.interpolate(positions, size=(g, g), mode="bilinear", align_corners=True)
    tokens = (patches + positions).flatten(2).transpose(1, 2)
    first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(tokens), -1, -1)
    return torch.cat([first, tokens], dim=1) + embeddings.token_type_embeddings.weight[1]


def patch_mask(nodes: int, side: int) -> Tensor:
    """(1 + g²,) True where a token of the image is the class or a patch with at least one node in it."""
    g, used = side // PATCH, math.ceil(nodes / PATCH)
    seen = torch.zeros(g, g, dtype=torch.bool)
    seen[:used, :used] = True
    return torch.cat([torch.ones(1, dtype=torch.bool), seen.flatten()])


def bias_rows(model: torch.nn.Module, image: Tensor, nodes: int, prompt: int) -> Tensor:
    """A of Eq. 8, number by number: (B, N + L, 1 + g²)."""
    weight, offset = model.bias.weight.double()[0], model.bias.bias.double()[0]
    b, _, side, _ = image.shape
    g = side // PATCH
    bias = torch.zeros(b, nodes + prompt, 1 + g * g, dtype=torch.float64)
    for i in range(nodes):
        for c in range(g):
            strip = image[:, :, i, c * PATCH : (c + 1) * PATCH]
            value = torch.tanh((strip * weight).sum((1, 2)) + offset)
            for r in range(g):
                bias[:, i, 1 + r * g + c] = value
    return bias


def saf(layer: torch.nn.Module, text: Tensor, image: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Eq. 4-7 with ViLT's projections, head by head."""
    inner = layer.attention.attention
    x, y = layer.layernorm_before(text), layer.layernorm_before(image)
    q, k, v = inner.query(x), inner.key(y), inner.value(y)
    heads, size = inner.num_attention_heads, inner.attention_head_size
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = (q[..., part] @ k[..., part].transpose(1, 2) + bias) / math.sqrt(size)
        scores = scores.masked_fill(~mask, -math.inf)
        out.append(scores.softmax(-1) @ v[..., part])
    attended = layer.attention.output.dense(torch.cat(out, dim=-1))
    hidden = text + attended
    return layer.output(layer.intermediate(layer.layernorm_after(hidden)), hidden)


def understood(model: torch.nn.Module, vilt: torch.nn.Module, text: Tensor, pixels: Tensor | None, fusion: str) -> Tensor:
    """Node states behind ViLT, all tokens of all layers computed and the padding masked: (B, N + L, D) → (B, N, D)."""
    nodes, prompt = model.nodes, text.shape[1] - model.nodes
    layers = vilt.encoder.layer
    if fusion == "none" or pixels is None:
        tokens, additive, layers = text, None, layers
    else:
        image = canvas_image(model, pixels)
        image_part = image_tokens(vilt, image)
        mask = patch_mask(nodes, image.shape[-1])
        seen = torch.cat([torch.ones(text.shape[1], dtype=torch.bool), mask])
        additive = torch.zeros(1, 1, 1, len(seen), dtype=torch.float64).masked_fill(~seen, -1e30)
        tokens = torch.cat([text, image_part], dim=1)
        if fusion == "saf":
            ordinary = layers[0](tokens, additive)[0]
            bias = bias_rows(model, image, nodes, prompt)
            fused = saf(layers[0], text, image_part, bias, mask)
            tokens, layers = torch.cat([fused, ordinary[:, text.shape[1] :]], dim=1), layers[1:]
    for layer in layers:
        tokens = layer(tokens, additive)[0]
    return vilt.layernorm(tokens)[:, :nodes]


def merged_vilt(model: STVLM) -> torch.nn.Module:
    """transformers' ViLT with LoRA written into its weights: W + (α/r) B A (Eq. 9-10), in float64."""
    config = model.config
    vilt = create_vilt(config.backbone, config.weights, config.weights_seed).double()
    for layer, ours in zip(vilt.encoder.layer, model.vilt.layers, strict=True):
        for name in ("query", "key"):
            lora = getattr(ours.layer.attention.attention, name)
            if config.lora_rank:
                a, b = lora.lora_A["default"].weight.double(), lora.lora_B["default"].weight.double()
                linear = getattr(layer.attention.attention, name)
                linear.weight.data += config.lora_alpha / config.lora_rank * (b @ a)
    return vilt


@pytest.mark.parametrize("fusion", ["saf", "joint", "none"])
@pytest.mark.parametrize("nodes", [5, 40, 400])
def test_node_states_equal_the_whole_canvas_in_float64(
    fusion: str, nodes: int, small_vlm: Make, sensor_info: Make, sensor_batch: Make, stir: Make
) -> None:
    """Left-out padding, the last layer for nodes alone and the fused kernels change nothing; 400 nodes need a larger canvas."""
    info = sensor_info(nodes)
    model = small_vlm(info, fusion=fusion)
    stir(model)
    model.double()
    history = sensor_batch(info).history.squeeze(-1)
    pixels = None if fusion == "none" else correlation_image(correlation_volume(history.transpose(1, 2))).double()
    prompt = model.vilt.embed_text(model.prompt).expand(len(history), -1, -1)
    text = torch.cat([model.vilt.embed_nodes(model.encode(history.double()[..., None], None)), prompt], dim=1)
    image = None if model.canvas is None else model.canvas(history.double())
    ours = model.understand(text, image)
    theirs = understood(model, merged_vilt(model), text, pixels, fusion)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)  # the image is float32


