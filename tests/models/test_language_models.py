"""OFA, ST-LLM and STG-LLM: the trunk, what of it is tuned, and what a token sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from stlab.errors import ModelError
from stmodels.layers.gpt2 import Gpt2Trunk
from stmodels.rng import initialise
from stmodels.types import ring
from tests.models.nodes import at_nodes, nodes_info, nodes_that_change, small, value, windows

_NAMES = ("ofa", "st_llm", "stg_llm")
_ORDER = torch.tensor([3, 0, 4, 1, 2])


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(3)
    GPT2Model(GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


def test_the_trunk_is_the_first_blocks_of_the_checkpoint(checkpoint: str) -> None:
    trunk = Gpt2Trunk("gpt2", checkpoint, 0, blocks=2).eval()
    whole = GPT2Model.from_pretrained(checkpoint).eval()
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        states = whole(inputs_embeds=x, output_hidden_states=True).hidden_states
        torch.testing.assert_close(trunk(x), whole.ln_f(states[2]))


@pytest.mark.parametrize("causal", [True, False])
def test_a_token_sees_those_before_it_or_all(causal: bool) -> None:
    trunk = Gpt2Trunk("gpt2_test", "random", 0, 2, causal).eval()
    x = torch.randn(1, 6, 32)
    moved = x.clone()
    moved[:, 3] = torch.randn(32)  # a shift of all channels would be lost in the norms
    with torch.no_grad():
        changed = ((trunk(moved) - trunk(x)).abs().amax((0, 2)) > 1e-6).tolist()
    assert changed == ([False] * 3 + [True] * 3 if causal else [True] * 6)


def test_a_checkpoint_with_too_few_blocks_is_refused(checkpoint: str) -> None:
    with pytest.raises(ModelError, match=r"model\.blocks=4, and .* has 3 blocks: choose as many or fewer"):
        small("ofa", nodes_info(), backbone="gpt2", weights=checkpoint, blocks=4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "gpt2", "weights": "/nowhere"}, "there is no such"),
        ({"backbone": "gpt2", "weights": "pretrained"}, "cannot be loaded"),
        ({"backbone": "gpt2_test", "weights": "pretrained"}, "has no weights but"),
    ],
)
def test_weights_that_cannot_be_had_are_an_error(fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=words):
        small("st_llm", nodes_info(), **fields)


@pytest.mark.parametrize("name", _NAMES)
def test_the_seed_of_a_trial_leaves_the_trunk_alone(name: str, checkpoint: str) -> None:
    """Also what is tuned of it starts from the weights that it has."""
    model = small(name, nodes_info(), backbone="gpt2", weights=checkpoint, blocks=2)
    whole = GPT2Model.from_pretrained(checkpoint).state_dict()
    initialise(model, seed=5)
    for key, tensor in model.trunk.gpt2.state_dict().items():
        torch.testing.assert_close(tensor, whole[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", _NAMES)
def test_norms_and_positions_are_tuned_and_feed_forward_networks_are_not(name: str) -> None:
    info = nodes_info()
    model, batch = small(name, info).train(), windows(info)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.loss_terms(model(batch), batch)["forecast"].backward()
    optimiser.step()
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    trunk = {key.removeprefix("trunk.gpt2.") for key in moved if key.startswith("trunk.")}
    last = {f"h.1.attn.{layer}.{kind}" for layer in ("c_attn", "c_proj") for kind in ("weight", "bias")}
    assert {"wpe.weight", "ln_f.weight", "h.0.ln_1.weight", "h.1.ln_2.bias"} <= trunk
    assert trunk & last == (last if name == "st_llm" else set())
    assert not any("mlp" in key or "h.0.attn" in key for key in trunk)


def test_nodes_are_tokens_of_which_each_sees_those_before_it() -> None:
    for name in ("st_llm", "stg_llm"):
        info = nodes_info()
        assert nodes_that_change(small(name, info), windows(info), 2) == {2, 3, 4}
        assert nodes_that_change(small(name, info, causal=False), windows(info), 2) == set(range(5))


def test_without_order_and_positions_stg_llm_knows_no_order_of_nodes() -> None:
    info = nodes_info()
    model, batch = small("stg_llm", info, causal=False), windows(info)
    with torch.no_grad():
        model.trunk.gpt2.wpe.weight.zero_()
    torch.testing.assert_close(value(model, at_nodes(batch, _ORDER)), value(model, batch)[:, :, _ORDER], atol=1e-5, rtol=1e-4)


def test_ofa_cuts_one_patch_more_of_the_last_reading() -> None:
    """12 steps and 2 repeated ones are 6 patches of 4 with the stride 2."""
    info = nodes_info()
    model = small("ofa", info)
    seen: list[torch.Tensor] = []
    model.embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    value(model, windows(info))
    assert seen[0].shape == (3, 5, 6, 4)
    assert torch.equal(seen[0][..., -1, 1:], seen[0][..., -1, 1:2].expand(3, 5, 3))


@pytest.mark.parametrize("name", ["st_llm", "stg_llm"])
def test_more_nodes_than_positions_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"makes 1025 tokens .* 1,024 positions"):
        small(name, nodes_info(1025, network=ring(2)))
