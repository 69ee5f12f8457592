"""What of ST-VLM can be chosen, and what is said where it cannot be."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from stmodels.errors import ConfigError, WeightsError
from stmodels.st_vlm.config import CHANNELS, STVLMConfig
from stmodels.st_vlm.model import STVLM
from stmodels.st_vlm.prompt import hash_tokens, token_ids
from stmodels.st_vlm.vilt import create_vilt
from stmodels.types import SeriesInfo

INFO = SeriesInfo(family="sensors", shape=(883, 1), history=12, horizon=12, slots_per_day=288, flow_std=0.3)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"channels": ()}, "model.channels is empty"),
        ({"lora_rank": -1}, "model.lora_rank"),
        ({"lora_alpha": 0.0}, "model.lora_alpha"),
        ({"hidden": 0}, "model.hidden"),
        ({"prompt": "of {cities}"}, "cities.*known: {subject}"),
        ({"prompt": "an open {"}, "no template"),
        ({"prompt": "{nodes:abc}"}, "cannot be filled in"),
        ({"prompt": "{nodes!z}"}, "cannot be filled in"),
        ({"prompt": "{nodes:{foo}}"}, "cannot be filled in"),
        ({"prompt": "{nodes.name}"}, "nodes.name"),
        ({"channels": ("dtw", "fft")}, "no channel fft"),
        ({"fusion": "saff"}, "model.fusion=saff: allowed are saf, joint, none"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        STVLMConfig(**fields)


@pytest.mark.parametrize(
    ("changes", "fields", "match"),
    [
        ({"family": "grid", "shape": (1, 8, 8)}, {}, "data.family=sensors"),
        ({"shape": (5, 3)}, {}, "data.channel"),
        ({"slots_per_day": None}, {"time_of_day": True}, "timestamps"),
    ],
)
def test_data_that_do_not_fit(changes: dict[str, Any], fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        STVLMConfig(**fields).check(INFO._replace(**changes))


def test_a_configuration_survives_json() -> None:
    config = STVLMConfig(channels=("spectrum", "dtw"), weights="random")
    assert config.channels == ("dtw", "spectrum")  # in the order of the image
    assert STVLMConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_the_channels_are_the_volumes() -> None:
    from stmodels import correlation

    assert CHANNELS == correlation.CHANNELS


def test_what_cannot_matter() -> None:
    assert "model.weights_seed" in STVLMConfig().inert()
    assert "model.lora_alpha" in STVLMConfig(lora_rank=0).inert()
    assert {"model.channels", "model.lag"} <= STVLMConfig(fusion="none").inert()
    assert {"model.tokenizer", "model.subject"} <= STVLMConfig(prompt="none").inert()
    assert "model.lag" in STVLMConfig(channels=("dtw",)).inert()
    assert {"model.saf_gain", "model.saf_squash"} <= STVLMConfig(fusion="joint").inert()
    assert STVLMConfig().channels == CHANNELS


def test_the_task_prompt_fits_vilt() -> None:
    text = STVLMConfig().text(INFO)
    assert "883 nodes" in text
    assert "next 12 steps" in text
    assert 30 <= len(hash_tokens(text, 30522)) <= 40


def test_hash_tokens_are_stable_and_tell_words_apart() -> None:
    ids = hash_tokens("Forecast the next 12 steps, the next!", 30522)
    assert (ids[0], ids[-1]) == (101, 102)
    assert (ids[2], ids[3]) == (ids[7], ids[8])  # the, next
    assert len(set(ids[1:-1])) == len(ids) - 4
    assert all(1000 <= i < 30522 for i in ids[1:-1])
    assert hash_tokens("steps", 30522) == hash_tokens("STEPS", 30522)
    assert max(hash_tokens("many words " * 20, 64)) < 64


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(ConfigError, match=r"52 tokens.*40 text positions.*shorten model.prompt"):
        token_ids("word " * 50, "hash", 30522, 40)


def _vocabulary(folder: Path) -> Path:
    """A BERT tokenizer of a few words, as bert-base-uncased keeps its own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "forecast", "lag", "##ged", "steps", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def test_berts_tokenizer_from_a_folder(tmp_path: Path) -> None:
    ids = token_ids("Forecast lagged steps.", str(_vocabulary(tmp_path)), 30522, 40)
    assert ids == [2, 5, 6, 7, 8, 9, 3]
    with pytest.raises(WeightsError, match="knows 5 words"):
        token_ids("Forecast lagged steps.", str(tmp_path), 5, 40)


def test_no_vocabulary_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for tokenizer in ("pretrained", str(tmp_path / "nowhere")):
        with pytest.raises(WeightsError, match=r"model.tokenizer=hash"):
            token_ids("Forecast", tokenizer, 30522, 40)


def test_weights_from_a_folder(tmp_path: Path) -> None:
    """What was saved is what is loaded; a checkpoint that lacks a weight is refused."""
    from safetensors.torch import load_file, save_file

    saved = create_vilt("vilt_test", "random", 5)
    saved.save_pretrained(tmp_path)
    loaded = create_vilt("vilt_b32", str(tmp_path), 0)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    info = INFO._replace(shape=(6, 1))
    STVLM(STVLMConfig(weights=str(tmp_path), tokenizer="hash"), info)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("encoder.layer.1.attention.attention.key.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 weights are missing.*key\.weight"):
        create_vilt("vilt_b32", str(tmp_path), 0)


def test_the_mlm_checkpoint_has_its_parts_under_a_prefix(tmp_path: Path) -> None:
    """dandelin/vilt-b32-mlm is a ViltForMaskedLM: `vilt.` stands before every name."""
    from transformers import ViltConfig, ViltForMaskedLM

    small = ViltConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=100)
    whole = ViltForMaskedLM(small)
    whole.save_pretrained(tmp_path)
    loaded = create_vilt("vilt_b32", str(tmp_path), 0)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, whole.vilt.state_dict()[name]), name


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"model\.weights=random"):
        create_vilt("vilt_b32", "pretrained", 0)
    with pytest.raises(WeightsError, match=r"no weights but `model\.weights=random`"):
        create_vilt("vilt_test", "pretrained", 0)


def test_random_weights_follow_their_own_seed() -> None:
    first, again, other = (create_vilt("vilt_test", "random", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.layer.0.attention.attention.key.weight"], other["encoder.layer.0.attention.attention.key.weight"])
    assert first["embeddings.position_embeddings"].std() > 0  # a patch knows where it is


def test_vilt_b32_is_vilt_b32() -> None:
    """The published sizes: 12 layers of 768 (85.1 M), the words (23.4 M), patches and positions (2.5 M)."""
    with torch.device("meta"):
        from transformers import ViltConfig, ViltModel

        from stmodels.st_vlm.vilt import _config

        config = _config("vilt_b32")
        published = ViltConfig()
        assert config.to_dict() == published.to_dict()
        parameters = sum(p.numel() for p in ViltModel(config, add_pooling_layer=False).parameters())
    assert 110e6 < parameters < 113e6
