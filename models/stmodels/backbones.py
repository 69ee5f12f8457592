"""Frozen vision encoders by name, reduced to their transformer blocks.

Patch embedding, native positions, class and register tokens are skipped, since the forecaster provides the tokens. The final norms stay,
and so do layers between the positions and the first block (CLIP's ``norm_pre``).

Legend: B batch, T' frames of tokens, N spatial tokens, D width.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from stmodels.errors import ConfigError, WeightsError
from stmodels.layers.adapter import insert_adapters, insert_lora
from stmodels.layers.attention import accelerate_attention
from stmodels.layers.linear import accelerate
from stmodels.rng import seeded

logger = logging.getLogger(__name__)

# name → timm model. CLIP's name without "quickgelu" silently uses another activation.
TIMM_NAMES = {
    "dinov2_s": "vit_small_patch14_dinov2.lvd142m",
    "clip_b": "vit_base_patch16_clip_quickgelu_224.openai",
    "deit_b": "deit_base_distilled_patch16_224.fb_in1k",
}
VIDEOMAE_CHECKPOINT = "MCG-NJU/videomae-small-finetuned-kinetics"
BACKBONES = (*TIMM_NAMES, "videomae_s", "vit_test")


class Backbone(nn.Module):
    """A frozen encoder: (B, T', N, D) → same."""

    width: int
    heads: int
    video: bool  # True: all T'·N tokens are one sequence, so that time needs a position of its own

    def add_peft(self, kind: str, rank: int) -> None:
        """Insert trainable parts: ``adapter`` (Houlsby) or ``lora``. All other weights stay frozen."""
        raise ConfigError(f"model.peft={kind} is not available for {type(self).__name__}")


class ImageBackbone(Backbone):
    """Blocks of a timm ViT, for which every frame is a separate image."""

    video = False

    def __init__(self, vit: nn.Module, use_cls: bool) -> None:
        super().__init__()
        self.width = vit.embed_dim
        self.heads = vit.blocks[0].attn.num_heads
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.cls_token = nn.Parameter(_class_token(vit)) if use_cls else None
        self.requires_grad_(False)
        accelerate(self)
        accelerate_attention(self)

    def add_peft(self, kind: str, rank: int) -> None:
        if kind == "adapter":
            insert_adapters(list(self.blocks), after="ls1", width=self.width, rank=rank)
        else:
            insert_lora(self.blocks, targets=["qkv"], rank=rank)
            accelerate(self)

    def forward(self, tokens: Tensor) -> Tensor:
        b, t, n, d = tokens.shape
        x = tokens.reshape(b * t, n, d)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(b * t, -1, -1), x], dim=1)
        x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, -n:].reshape(b, t, n, d)


class VideoBackbone(Backbone):
    """Blocks of VideoMAE (transformers), for which the tokens of all frames are one sequence."""

    video = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config = model.config
        self.width = config.hidden_size
        self.heads = config.num_attention_heads
        self.blocks = model.encoder.layer
        # A checkpoint that was fine-tuned with mean pooling has no norm after its last block.
        self.norm = (
            model.layernorm if model.layernorm is not None else nn.LayerNorm(self.width, eps=config.layer_norm_eps)
        )
        self.requires_grad_(False)
        accelerate(self)

    def add_peft(self, kind: str, rank: int) -> None:
        if kind == "adapter":
            insert_adapters(list(self.blocks), after="attention.output", width=self.width, rank=rank)
        else:
            insert_lora(self.blocks, targets=["query", "key", "value"], rank=rank)
            accelerate(self)

    def forward(self, tokens: Tensor) -> Tensor:
        b, t, n, d = tokens.shape
        x = tokens.reshape(b, t * n, d)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).reshape(b, t, n, d)


def _class_token(vit: nn.Module) -> Tensor:
    """The class token with its native position, if the model has one: (1, 1, D)."""
    token = getattr(vit, "cls_token", None)
    if token is None:
        raise ConfigError("model.use_cls=true, but this backbone has no class token")
    token = token.detach().clone()
    position = getattr(vit, "pos_embed", None)
    if position is not None and not getattr(vit, "no_embed_class", False):
        token = token + position.detach()[:, :1]
    return token


def is_file(weights: str) -> bool:
    """Whether ``model.weights`` names a checkpoint rather than ``pretrained`` or ``random``."""
    return weights not in ("pretrained", "random")


def create_backbone(name: str, weights: str, weights_seed: int, use_cls: bool = False, shuffled: bool = False) -> Backbone:
    """A frozen backbone.

    Args:
        name: one of ``BACKBONES`` or the name of any timm ViT.
        weights: ``pretrained``, ``random`` or the path of a checkpoint.
        weights_seed: seed of random weights. It is independent of a trial's seed, so that all trials share one backbone.
        use_cls: include the class token (image backbones).
        shuffled: shuffle the values within each tensor, as ``weights_seed`` says: the same numbers, and nothing learnt.

    Raises:
        ConfigError: there is no such backbone, or it is not a ViT.
        WeightsError: the weights are not available; there is no fallback.
    """
    if is_file(weights) and not os.path.exists(weights):
        raise WeightsError(
            f"model.weights={weights}: there is no such file. Give a checkpoint's path, `pretrained` or `random`."
        )
    build = _build_videomae if name == "videomae_s" else _build_test_vit if name == "vit_test" else _build_timm
    with seeded(weights_seed, f"backbone/{name}"):
        backbone = build(name, weights, use_cls)
        if weights == "random":
            draw_by_width(backbone)
    if shuffled:
        with seeded(weights_seed, f"shuffled/{name}"):
            _shuffle(backbone)
    return backbone


@torch.no_grad()
def _shuffle(encoder: nn.Module) -> None:
    for parameter in encoder.parameters():
        parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))


def draw_by_width(encoder: nn.Module) -> None:
    """Draw the weights of all linear layers with a deviation of 1/√inputs.

    The libraries draw them with 0.02, whatever the width. A narrow layer then does next to nothing, and neither does a row of a table that
    is about a random backbone.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)


def _build_test_vit(name: str, weights: str, use_cls: bool) -> Backbone:
    from timm.models.vision_transformer import VisionTransformer

    if weights != "random":
        raise WeightsError(
            f"model.backbone={name} is a very small ViT for tests; it has no weights but `model.weights=random`."
        )
    return ImageBackbone(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=0), use_cls
    )


def check_backbone(name: str) -> None:
    """Raise ConfigError if there is no backbone of this name. Nothing is built."""
    if name in BACKBONES:
        return
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=4)
        raise ConfigError(
            f"model.backbone={name} is unknown. Near: {', '.join(near) or 'none'}. Allowed: {', '.join(BACKBONES)}, any timm ViT."
        )


def _build_timm(name: str, weights: str, use_cls: bool) -> Backbone:
    import timm
    from timm.layers import LayerScale
    from timm.models.vision_transformer import VisionTransformer

    check_backbone(name)
    timm_name = TIMM_NAMES.get(name, name)
    with torch.device("meta"):  # only the shape, before anything is drawn or downloaded
        shape = timm.create_model(timm_name, num_classes=0)
    # Other kinds of blocks have no place for adapters, or no attention module at all.
    if not isinstance(shape, VisionTransformer) or not all(hasattr(shape.blocks[0], part) for part in ("attn", "ls1")):
        kind = type(shape.blocks[0] if isinstance(shape, VisionTransformer) else shape).__name__
        raise ConfigError(f"model.backbone={name} is a {kind}; only timm's plain ViTs can be reprogrammed.")
    vit = loading(timm_name, weights, lambda: _load_timm(timm_name, weights))
    if weights == "random":
        # DINOv2 starts its layer scales at 1e-5. Its untrained blocks would do nothing, and "random" would measure no backbone.
        for module in vit.modules():
            if isinstance(module, LayerScale):
                nn.init.ones_(module.gamma)
    return ImageBackbone(vit, use_cls)


def _load_timm(name: str, weights: str) -> nn.Module:
    """Load a timm model. A file may hold more than is needed (a classifier), but must hold the whole encoder."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    vit = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0)
    if not is_file(weights):
        return vit
    keys = timm.models.load_checkpoint(vit, weights, strict=False, filter_fn=checkpoint_filter_fn)
    if keys is not None:  # timm's loader for numpy checkpoints returns None, and itself requires every weight
        complete(keys.missing_keys)
    return vit


def _load_videomae(source: str) -> nn.Module:
    from transformers import VideoMAEModel

    model, keys = VideoMAEModel.from_pretrained(source, output_loading_info=True)
    complete([name for name in keys["missing_keys"] if name.startswith("encoder.")])
    return model


def complete(missing: Collection[str]) -> None:
    """Raise ValueError if a checkpoint lacks weights. The libraries would leave them at their random start."""
    if missing:
        raise ValueError(f"{len(missing)} weights are missing from it, for example {min(missing)}.")


def _build_videomae(name: str, weights: str, use_cls: bool) -> Backbone:
    from transformers import VideoMAEConfig, VideoMAEModel

    if use_cls:
        raise ConfigError("model.use_cls=true: VideoMAE has no class token")
    if weights == "random":
        config = VideoMAEConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
        return VideoBackbone(VideoMAEModel(config))
    source = weights if is_file(weights) else VIDEOMAE_CHECKPOINT
    return VideoBackbone(loading(source, weights, lambda: _load_videomae(source)))


def loading(source: str, weights: str, load: Callable[[], nn.Module]) -> nn.Module:
    """Run a library's loader. Any failure becomes an error that says how to get the weights."""
    if weights == "random":
        return load()
    try:
        return load()
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        remedy = (
            "Check that the file is a checkpoint of this model."
            if is_file(weights)
            else "Download them once where the Hugging Face hub can be reached (the cache folder is HF_HOME), give a file with "
            "model.weights=PATH, or use model.weights=random, whose untrained weights make another ablation."
        )
        raise WeightsError(
            f"the weights '{weights}' of {source} cannot be loaded: {reason.strip()} {remedy}"
        ) from error
