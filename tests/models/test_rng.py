"""Named randomness: variants of one seed start from the same weights wherever they share a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stmodels.rng import generator, initialise, named_seed, permutation, seeded

Models = Callable[..., nn.Module]


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    """Frozen weights by the name they bear without adapters around them."""
    return {
        name.replace(".inner.", ".").replace(".base_layer.", "."): p.detach()
        for name, p in model.named_parameters()
        if not p.requires_grad
    }


def _is_constant(tensor: Tensor) -> bool:
    """Norms and biases that start at 0 or 1 whatever the seed."""
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())


def test_shared_modules_start_alike_in_all_variants(variants: dict[str, dict[str, Any]], small_model: Models) -> None:
    start = {name: _trainable(small_model(seed=3, **switches)) for name, switches in variants.items()}
    shared = {}
    for one, other in [("#2", "#3"), ("#3", "#4"), ("#4", "full"), ("#2", "full"), ("#3", "full")]:
        same = [n for n in start[one] if n in start[other] and start[one][n].shape == start[other][n].shape]
        assert all(torch.equal(start[one][n], start[other][n]) for n in same), (one, other)
        shared[one, other] = {name.split(".")[0] for name in same}
    assert set(start["#3"]) <= set(start["#4"]) <= set(start["full"])
    assert "decode" in shared["#2", "#3"]


def test_adding_a_switch_moves_no_other_modules_start(small_model: Models) -> None:
    base = _trainable(small_model(seed=1))
    for switches in ({"calendar": True}, {"cross_prompt_layers": 3}, {"peft": "lora"}, {"prompts": 4}):
        changed = _trainable(small_model(seed=1, **switches))
        same = [name for name in base if name in changed]
        assert len(same) > 30
        assert all(torch.equal(base[name], changed[name]) for name in same)


@pytest.mark.parametrize("peft", ["adapter", "lora"])
def test_seed_decides_every_trainable_weight(small_model: Models, peft: str) -> None:
    one, again, other = (_trainable(small_model(seed=seed, peft=peft, calendar=True)) for seed in (0, 0, 1))
    for name, weight in one.items():
        assert torch.equal(weight, again[name]), name
        assert torch.equal(weight, other[name]) == _is_constant(weight), name


@pytest.mark.parametrize("peft", ["adapter", "lora"])
@pytest.mark.parametrize("backbone", ["vit_test", "videomae_s"])
def test_initialise_draws_everything_trainable_and_nothing_frozen(
    small_model: Models, peft: str, backbone: str
) -> None:
    model = small_model(peft=peft, calendar=True, seasonal_residual=True, backbone=backbone)
    start = {name: p.clone() for name, p in _trainable(model).items()}
    frozen = {name: p.clone() for name, p in _frozen(model).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(torch.nan)
    initialise(model, 0)
    for name, weight in _trainable(model).items():
        assert weight.isfinite().all(), name
        assert torch.equal(weight, start[name]), name  # whatever was there before
    assert all(torch.equal(weight, frozen[name]) for name, weight in _frozen(model).items())


@pytest.mark.parametrize("backbone", ["vit_test", "vit_tiny_patch16_224"])
def test_random_backbone_follows_its_own_seed(small_model: Models, backbone: str) -> None:
    """All trials of a study share one backbone, whatever their seed, variant or adapters."""
    plain = _frozen(small_model(seed=0, backbone=backbone, peft="none"))
    for seed, switches in [(5, {"peft": "none"}), (0, {"peft": "adapter"}), (5, {"peft": "lora"})]:
        same = _frozen(small_model(seed=seed, backbone=backbone, **switches))
        assert same.keys() == plain.keys()
        assert all(torch.equal(weight, same[name]) for name, weight in plain.items())
    other = _frozen(small_model(seed=0, backbone=backbone, peft="none", weights_seed=1))
    assert all(torch.equal(w, other[name]) == _is_constant(w) for name, w in plain.items())


def test_building_and_initialising_leave_the_global_generator_alone(small_model: Models) -> None:
    """Frozen weights and initialise() are drawn apart: the global generator decides nothing about a model."""
    torch.manual_seed(11)
    model = small_model(peft="lora")
    before = torch.get_rng_state()
    initialise(model, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    other = small_model(peft="lora")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_seeded_restores_the_state_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(0, "a"):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(0, "a"):
        inside = torch.rand(3)
    assert torch.equal(inside, torch.rand(3, generator=generator(0, "a")))


def test_names_and_seeds_make_different_generators() -> None:
    seeds = {named_seed(seed, name) for seed in range(20) for name in ("embed.st", "embed.flow", "", "data order/1")}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_data_order_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    order = permutation(50, seed=0, epoch=1)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, permutation(50, 0, 1))
    assert not torch.equal(order, permutation(50, 0, 2))
    assert not torch.equal(order, permutation(50, 1, 1))
