"""Frozen encoders: what is kept of the library's model, what is skipped, and what cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import LayerScale
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from stmodels.backbones import Backbone, create_backbone
from stmodels.errors import ConfigError, WeightsError
from stmodels.st_vlm.vilt import create_vilt

TINY = "vit_tiny_patch16_224"
SMALL_VIDEO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SMALL_VIDEO |= {"image_size": 32, "num_frames": 4}
WIDTHS = {"dinov2_s": (384, 12, 6), "clip_b": (768, 12, 12), "deit_b": (768, 12, 12), "videomae_s": (384, 12, 6)}


@pytest.fixture(scope="module", params=[*WIDTHS, TINY, "vit_test"])
def backbone(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    """Every named backbone and one that goes by its timm name, with random weights."""
    return request.param, create_backbone(request.param, "random", 0)


@pytest.fixture(scope="module")
def tiny_vit() -> nn.Module:
    """A ViT of timm's whose every weight, class token and positions included, is random."""
    vit = timm.create_model(TINY)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return vit.eval()


def _tokens(backbone: Backbone, frames: int = 2, tokens: int = 4) -> torch.Tensor:
    return torch.randn(2, frames, tokens, backbone.width, generator=torch.Generator().manual_seed(1))


def test_width_depth_and_frozen(backbone: tuple[str, Backbone]) -> None:
    name, model = backbone
    width, depth, heads = {**WIDTHS, TINY: (192, 12, 3), "vit_test": (64, 2, 4)}[name]
    assert (model.width, len(model.blocks), model.heads) == (width, depth, heads)
    assert not any(p.requires_grad for p in model.parameters())
    assert isinstance(model.norm, nn.LayerNorm)
    # Per block 12 D² of weights and 13 D of biases and norms; more only by layer scales, less only by biases left out.
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(depth * (12 * width**2 + 13 * width), rel=2e-3, abs=4 * width)


def test_shape_stays_and_nothing_is_random_in_training(backbone: tuple[str, Backbone]) -> None:
    _, model = backbone
    tokens = _tokens(model)
    with torch.no_grad():
        out = model.train()(tokens)
        assert out.shape == tokens.shape
        torch.testing.assert_close(out, model.eval()(tokens), rtol=0, atol=0)


def test_frames_meet_only_in_a_video_model(backbone: tuple[str, Backbone]) -> None:
    name, model = backbone
    tokens = _tokens(model)
    changed = tokens.clone()
    changed[:, 1] += torch.randn(2, 4, model.width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, 0], after[:, 0]) == (name != "videomae_s")
    assert model.video == (name == "videomae_s")
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_tokens_of_a_frame_attend_to_each_other(backbone: tuple[str, Backbone]) -> None:
    _, model = backbone
    tokens = _tokens(model)
    changed = tokens.clone()
    changed[0, 0, 0] += 1 - 2 * (torch.arange(model.width) % 2)
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert not torch.equal(before[0, 0, 1:], after[0, 0, 1:])
    assert torch.equal(before[1], after[1])  # another window


@torch.no_grad()
def mixing(encode: Callable[[torch.Tensor], torch.Tensor], width: int) -> tuple[float, float]:
    """How an encoder of (B, N, D) tokens treats a token whose neighbours are drawn anew: how far it moves, as a share of its length, and
    the cosine between its output and LayerNorm of its input, which is 1 for an encoder that does nothing."""
    rng = torch.Generator().manual_seed(3)
    tokens, others = (torch.randn(8, 64, width, generator=rng) for _ in range(2))
    others[:, 0] = tokens[:, 0]
    before, after = encode(tokens)[:, 0], encode(others)[:, 0]
    moved = (after - before).norm(dim=-1) / before.norm(dim=-1)
    cosine = torch.cosine_similarity(before, torch.nn.functional.layer_norm(tokens[:, 0], (width,)), dim=-1)
    return float(moved.mean()), float(cosine.mean())


def test_random_weights_mix_the_tokens(backbone: tuple[str, Backbone]) -> None:
    """With the libraries' deviation of 0.02, a narrow one is the identity, and a table's row about it measures no backbone."""
    _, model = backbone
    moved, cosine = mixing(lambda tokens: model(tokens[:, None])[:, 0], model.width)
    assert moved >= 0.1
    assert cosine < 0.95


@pytest.mark.parametrize("name", ["vilt_b32", "vilt_test"])
def test_random_weights_of_a_vilt_mix_the_tokens(name: str) -> None:
    vilt = create_vilt(name, "random", 0).eval()
    moved, cosine = mixing(lambda tokens: vilt.layernorm(vilt.encoder(tokens).last_hidden_state), vilt.config.hidden_size)
    assert moved >= 0.1
    assert cosine < 0.95


def test_shuffled_weights_are_the_same_numbers_and_nothing_learnt(tiny_vit: nn.Module, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tiny_vit.state_dict().items()}, tmp_path / "vit.safetensors")
    given, shuffled, again, other = (
        create_backbone(TINY, str(tmp_path / "vit.safetensors"), seed, shuffled=is_shuffled)
        for seed, is_shuffled in ((0, False), (0, True), (0, True), (1, True))
    )
    for name, value in given.named_parameters():
        mixed = shuffled.get_parameter(name)
        assert torch.equal(value.flatten().sort().values, mixed.flatten().sort().values), name
        assert torch.equal(mixed, again.get_parameter(name))
        if len(value.unique()) > 20:
            assert not torch.equal(mixed, value), name
            assert not torch.equal(mixed, other.get_parameter(name)), name
    tokens = _tokens(given)
    with torch.no_grad():
        assert torch.cosine_similarity(given(tokens), shuffled(tokens), dim=-1).mean() < 0.5


def test_native_positions_are_skipped(backbone: tuple[str, Backbone]) -> None:
    """Without positions, exchanging tokens exchanges outputs."""
    _, model = backbone
    tokens = _tokens(model)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens[:, :, order]), model(tokens)[:, :, order], atol=1e-4, rtol=1e-4)


def test_clip_keeps_its_norm_pre_and_its_quick_gelu() -> None:
    model = create_backbone("clip_b", "random", 0)
    assert isinstance(model.norm_pre, nn.LayerNorm)
    x = torch.linspace(-4, 4, 41)
    for block in model.blocks:
        torch.testing.assert_close(block.mlp.act(x), x * torch.sigmoid(1.702 * x))
    # A layer norm forgets scale and shift of its input; without one in front the sum of residuals would not.
    tokens = _tokens(model)
    with torch.no_grad():
        torch.testing.assert_close(model(3 * tokens + 1), model(tokens), atol=1e-3, rtol=1e-3)


def test_random_dinov2_has_blocks_that_act() -> None:
    model = create_backbone("dinov2_s", "random", 0)
    scales = [module.gamma for module in model.modules() if isinstance(module, LayerScale)]
    assert len(scales) == 24
    assert all(torch.equal(gamma, torch.ones_like(gamma)) for gamma in scales)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("with_classifier", [True, False])
def test_weights_from_a_file_give_timms_own_output(
    tmp_path: Path, tiny_vit: nn.Module, suffix: str, with_classifier: bool
) -> None:
    """With the class token, fed with the patch tokens and positions of an image, it is timm's model."""
    weights = {k: v for k, v in tiny_vit.state_dict().items() if with_classifier or not k.startswith("head")}
    path = tmp_path / f"tiny.{suffix}"
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    model = create_backbone(TINY, str(path), 0, use_cls=True).eval()
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = tiny_vit.patch_embed(image) + tiny_vit.pos_embed[:, 1:]
        expected = tiny_vit.forward_features(image)[:, 1:]
        torch.testing.assert_close(model(tokens[:, None])[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_class_token_takes_part_only_if_asked(tiny_vit: nn.Module, tmp_path: Path) -> None:
    save_file(tiny_vit.state_dict(), tmp_path / "tiny.safetensors")
    path = str(tmp_path / "tiny.safetensors")
    without, with_token = (create_backbone(TINY, path, 0, use_cls=use) for use in (False, True))
    tokens = _tokens(without)
    with torch.no_grad():
        assert not torch.allclose(without(tokens), with_token(tokens), atol=1e-4)
    assert not any(p.requires_grad for p in with_token.parameters())


def test_videomae_is_the_librarys_encoder_over_all_tokens_and_a_norm(tmp_path: Path) -> None:
    reference = VideoMAEModel(VideoMAEConfig(**SMALL_VIDEO)).eval()
    reference.save_pretrained(tmp_path)
    model = create_backbone("videomae_s", str(tmp_path), 0).eval()
    assert (model.width, model.heads, len(model.blocks)) == (32, 4, 2)
    lengths = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape))
    tokens = _tokens(model, frames=3, tokens=5)
    with torch.no_grad():
        out = model(tokens)
        states = reference.encoder(tokens.reshape(2, 15, 32)).last_hidden_state
    expected = nn.functional.layer_norm(states, (32,), eps=reference.config.layer_norm_eps)
    torch.testing.assert_close(out, expected.view(2, 3, 5, 32), atol=1e-5, rtol=1e-5)
    assert lengths == [(2, 15, 32)]


def test_videomae_keeps_a_checkpoints_own_norm(tmp_path: Path) -> None:
    reference = VideoMAEModel(VideoMAEConfig(**SMALL_VIDEO, use_mean_pooling=False))
    nn.init.normal_(reference.layernorm.weight)
    reference.save_pretrained(tmp_path)
    assert torch.equal(create_backbone("videomae_s", str(tmp_path), 0).norm.weight, reference.layernorm.weight)


def test_videomae_takes_a_fine_tuned_checkpoint(tmp_path: Path) -> None:
    """As published: an encoder under a prefix, with biases by their old names, and a classifier that is not needed."""
    reference = VideoMAEForVideoClassification(VideoMAEConfig(**SMALL_VIDEO, num_labels=3))
    for layer in reference.videomae.encoder.layer:
        nn.init.normal_(layer.attention.attention.query.bias)
        nn.init.normal_(layer.attention.attention.value.bias)
    reference.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old_names = {"attention.query.bias": "attention.q_bias", "attention.value.bias": "attention.v_bias"}
    weights: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        for new, old in old_names.items():
            name = name.replace(new, old)
        weights[name] = value
    save_file(weights, file, metadata={"format": "pt"})
    blocks = create_backbone("videomae_s", str(tmp_path), 0).blocks
    expected = reference.videomae.encoder.layer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in blocks.state_dict().items())


@pytest.mark.parametrize("name", ["dinov2_s", "clip_b", "videomae_s", TINY])
def test_pretrained_weights_that_cannot_be_had(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(WeightsError) as error:
        create_backbone(name, "pretrained", 0)
    assert time.perf_counter() - started < 30  # no retries over a network that is not there
    for hint in ("pretrained", "model.weights=random", "HF_HOME", "model.weights=PATH"):
        assert hint in str(error.value)


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("dinov2_x", "random", r"dinov2_x is unknown.*dinov2_s"),
        ("vit_tiny_patch16_225", "random", r"unknown.*vit_tiny_patch16_224"),
        ("resnet18", "random", "ResNet.*plain ViTs"),
        ("resnet18", "pretrained", "ResNet.*plain ViTs"),
        ("vit_small_patch16_18x2_224", "random", "ParallelThingsBlock.*plain ViTs"),
    ],
)
def test_what_is_no_backbone(name: str, weights: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        create_backbone(name, weights, 0)


def test_class_token_of_a_model_that_has_none() -> None:
    with pytest.raises(ConfigError, match="no class token"):
        create_backbone("videomae_s", "random", 0, use_cls=True)


def test_test_vit_has_random_weights_alone() -> None:
    with pytest.raises(WeightsError, match=r"model\.weights=random"):
        create_backbone("vit_test", "pretrained", 0)


def _broken(kind: str, folder: Path, vit: nn.Module) -> str:
    path = folder / "weights.pth"
    weights: Any = vit.state_dict()
    if kind == "not there":
        return str(folder / "nothing.pth")
    if kind == "no checkpoint":
        path.write_text("hello")
        return str(path)
    if kind == "a block is missing":
        weights = {k: v for k, v in weights.items() if not k.startswith("blocks.11.")}
    elif kind == "another model":
        weights = {"foo": torch.zeros(3)}
    elif kind == "another width":
        weights = timm.create_model("vit_small_patch16_224").state_dict()
    torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize("kind", ["not there", "no checkpoint", "a block is missing", "another model", "another width"])
def test_a_file_that_is_no_checkpoint_of_this_model(kind: str, tmp_path: Path, tiny_vit: nn.Module) -> None:
    """Nothing is ever left random because a file lacks it."""
    path = _broken(kind, tmp_path, tiny_vit)
    with pytest.raises(WeightsError, match="weights") as error:
        create_backbone(TINY, path, 0)
    assert path in str(error.value)


def test_a_video_checkpoint_with_missing_weights(tmp_path: Path) -> None:
    VideoMAEModel(VideoMAEConfig(**SMALL_VIDEO)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "layer.1" not in k}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="missing"):
        create_backbone("videomae_s", str(tmp_path), 0)


@pytest.mark.parametrize("kind", ["adapter", "lora"])
@pytest.mark.parametrize("name", ["vit_test", "dinov2_s", "videomae_s"])
def test_peft_starts_as_the_frozen_model_and_adds_what_it_says(name: str, kind: str) -> None:
    rank = 4
    plain, tuned = create_backbone(name, "random", 0), create_backbone(name, "random", 0)
    tuned.add_peft(kind, rank)
    tokens = _tokens(plain)
    with torch.no_grad():
        before = plain(tokens)
        torch.testing.assert_close(tuned(tokens), before, rtol=0, atol=0)
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    width, depth = plain.width, len(plain.blocks)
    # Adapter: down and up with biases. LoRA: A (r, D) and B, on one fused or on three projections.
    by_block = {
        "adapter": 2 * width * rank + width + rank,
        "lora": 3 * 2 * width * rank if name == "videomae_s" else rank * (width + 3 * width),
    }
    assert sum(p.numel() for p in trainable) == depth * by_block[kind]
    frozen = sum(p.numel() for p in tuned.parameters()) - sum(p.numel() for p in trainable)
    assert frozen == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        for parameter in trainable:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        assert not torch.allclose(tuned(tokens), before, atol=1e-3)


@pytest.mark.parametrize("name", ["vit_test", "dinov2_s", "videomae_s"])
def test_adapters_come_before_the_attentions_residual_sum(name: str) -> None:
    """An adapter that returns zero takes the attention out of its block: what is left is x + MLP(LN(x))."""
    model = create_backbone(name, "random", 0)
    model.add_peft("adapter", 4)
    for module in model.modules():
        if hasattr(module, "adapter"):
            module.adapter.forward = torch.zeros_like  # type: ignore[method-assign]
    block = model.blocks[0]
    x = _tokens(model)[:, 0]
    with torch.no_grad():
        if name == "videomae_s":
            expected = x + block.output.dense(block.intermediate(block.layernorm_after(x)))
        else:
            expected = x + block.ls2(block.mlp(block.norm2(x)))
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
