"""STD-MAE: what the autoencoders see, what each stage trains, and that the long history is the past."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stlab.catalog import config_values, create_config
from stlab.data import Dataset, load_dataset
from stlab.errors import UserError
from stlab.inspection.contract import random_batch
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec
from stlab.training import run_trial
from stmodels.graph.std_mae import STDMAE, MaskedAutoencoder
from stmodels.graph.std_mae_config import STDMAEConfig
from stmodels.types import Batch
from tests.models.nodes import nodes_info, small, value

_INFO = nodes_info()


def _windows(count: int = 3) -> Batch:
    return random_batch(_INFO, count, past=12)  # 24 steps are read, two patches of 12


def _model(**fields: object) -> STDMAE:
    return small("std_mae", _INFO, **fields)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    times = np.datetime64("2024-01-01", "s") + np.arange(300) * np.timedelta64(3600, "s")
    values = 50 + 10 * np.sin(2 * np.pi * np.arange(300) / 24)[:, None] + rng.normal(0, 1, (300, 4))
    path = tmp_path_factory.mktemp("std_mae") / "net.npz"
    np.savez(path, data=values[..., None].astype(np.float32), timestamps=times)
    return path


@pytest.fixture(scope="module")
def dataset(network: Path) -> Dataset:
    return load_dataset(DataSpec(path=str(network), family="sensors", graph="correlation", graph_neighbours=2))


def test_the_past_is_what_comes_before_the_history(dataset: Dataset) -> None:
    for segment in ("train", "validation", "test"):
        plain, deep = dataset.windows(segment), dataset.windows(segment, past=30)
        batch = deep.gather(torch.tensor([0, len(deep) - 1]))
        for row, start in enumerate(batch.start.tolist()):
            torch.testing.assert_close(batch.past[row], deep.series[start - 30 : start])
            torch.testing.assert_close(batch.history[row], deep.series[start : start + 12])
        # Only windows at the start of the series are left out, and these are windows of the train segment.
        assert deep.starts.tolist() == [start for start in plain.starts.tolist() if start >= 30]
        assert (len(deep) < len(plain)) == (segment == "train")


def test_a_past_longer_than_the_train_segment_leaves_no_window(dataset: Dataset) -> None:
    assert len(dataset.windows("train", past=200)) == 0
    assert len(dataset.windows("test", past=200)) == len(dataset.windows("test"))


@pytest.mark.parametrize(("axis", "place"), [("patches", 2), ("nodes", 1)])
def test_an_autoencoder_sees_nothing_hidden(axis: str, place: int) -> None:
    config = STDMAEConfig(token_width=8, heads=2, feedforward=8, encoder_layers=2, patch=3, long_history=12)
    autoencoder = MaskedAutoencoder(config, 5, 4, axis).eval()
    patches = torch.randn(2, 5, 4, 3)
    count = patches.shape[place]
    hidden = torch.tensor([i == 1 for i in range(count)])
    moved = patches.index_fill(place, torch.tensor([1]), 9.0)
    with torch.no_grad():
        torch.testing.assert_close(autoencoder.rebuild(moved, hidden), autoencoder.rebuild(patches, hidden))
        seen = patches.index_fill(place, torch.tensor([0]), 9.0)
        assert not torch.allclose(autoencoder.rebuild(seen, hidden), autoencoder.rebuild(patches, hidden), atol=1e-3)


@pytest.mark.parametrize(("axis", "others"), [("patches", {(1, 0), (1, 1), (1, 2), (1, 3)}), ("nodes", {(n, 2) for n in range(5)})])
def test_an_autoencoder_attends_along_its_axis(axis: str, others: set[tuple[int, int]]) -> None:
    config = STDMAEConfig(token_width=8, heads=2, feedforward=8, encoder_layers=1, patch=3, long_history=12)
    autoencoder = MaskedAutoencoder(config, 5, 4, axis).eval()
    patches = torch.randn(1, 5, 4, 3)
    moved = patches.clone()
    moved[:, 1, 2] += torch.randn(3)
    with torch.no_grad():
        gap = (autoencoder.encode(moved) - autoencoder.encode(patches)).abs().amax(-1)[0]
    assert {tuple(at) for at in (gap > 1e-6).nonzero().tolist()} == others


@pytest.mark.parametrize("stage", ["temporal", "spatial"])
def test_the_loss_of_a_stage_counts_hidden_patches_alone(stage: str) -> None:
    model, batch = _model(), _windows()
    model.begin(stage)
    forecast = model(batch)
    assert forecast.aux is not None
    patches, hidden = forecast.aux["patches"], forecast.aux["hidden"]
    place = 2 if stage == "temporal" else 1
    visible = (~hidden).nonzero().flatten()
    loss = model.loss_terms(forecast, batch)["forecast"]
    spoilt = forecast._replace(value=forecast.value.index_fill(place, visible, 99.0))
    torch.testing.assert_close(model.loss_terms(spoilt, batch)["forecast"], loss)
    own = (forecast.value - patches).index_select(place, hidden.nonzero().flatten()).abs().mean()
    torch.testing.assert_close(loss, own)


@pytest.mark.parametrize(("rate", "count", "expected"), [(0.25, 72, 18), (0.25, 4, 1), (0.1, 4, 1), (0.9, 4, 3)])
def test_the_share_that_is_hidden(rate: float, count: int, expected: int) -> None:
    assert int(_model(mask_rate=rate).draw_hidden(count, torch.device("cpu")).sum()) == expected


def test_each_stage_trains_its_part() -> None:
    model = _model()
    parts = {"temporal": {"temporal"}, "spatial": {"spatial"}, "": {"wavenet", "adapters"}}
    for stage, expected in parts.items():
        model.begin(stage)
        assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == expected


def test_frozen_autoencoders_have_no_dropout() -> None:
    """Without gradients is not yet without dropout, and ``train()`` would bring it back."""
    model, batch = _model(token_dropout=0.5), _windows()
    model.begin("")
    patches = model.patches(batch)
    with torch.no_grad():
        before = model.eval().temporal.encode(patches)
        torch.testing.assert_close(model.train().temporal.encode(patches), before)
        assert model.wavenet.training
        model.begin("temporal")
        assert not torch.allclose(model.train().temporal.encode(patches), before)


def test_without_states_the_forecast_is_graph_wavenets() -> None:
    model, batch = _model(), _windows()
    model.begin("")
    for part in model.adapters.modules():
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    torch.testing.assert_close(value(model, batch), value(model.wavenet, batch))


def test_the_long_history_matters() -> None:
    model, batch = _model(), _windows()
    model.begin("")
    assert not torch.allclose(value(model, batch._replace(past=batch.past + torch.randn_like(batch.past))), value(model, batch), atol=1e-6)


def test_published_code_attends_along_time_twice() -> None:
    model, other, batch = _model(), _model(spatial_axis="time"), _windows()
    assert not torch.allclose(value(model, batch), value(other, batch), atol=1e-6)


def test_a_trial_trains_its_stages_and_cannot_be_loaded_alone(network: Path, tmp_path: Path) -> None:
    fields = {"name": "std_mae", **STDMAEConfig.SMALL, "pretrain_epochs": 2}
    spec = TrialSpec(
        study="s", variant="v", seed=0, data=DataSpec(path=str(network), family="sensors", graph="correlation"),
        model=config_values(create_config(fields)), train=TrainSpec(max_epochs=2, warmup_epochs=0, batch_size=32),
        resources=ResourcesSpec(),
    )  # fmt: skip
    store = Store(str(tmp_path))
    directory = TrialDirectory(store, "t")
    assert run_trial(spec, {}, directory, test=True) is TrialStatus.FINISHED
    from stlab.inference import load_trial

    with pytest.raises(UserError, match="std_mae reads 12 steps before the history"):
        load_trial(store, "t")


def test_the_long_history_is_three_days_unless_another_is_asked_for() -> None:
    assert STDMAEConfig().steps(nodes_info(slots=288)) == 864
    assert STDMAEConfig().steps(nodes_info(slots=24)) == 72
    assert STDMAEConfig().steps(nodes_info(slots=None)) == 864
    assert STDMAEConfig().steps(nodes_info(slots=288)._replace(train_steps=509)) == 288, "5 % of PEMS04"
    assert STDMAEConfig().steps(nodes_info(slots=288)._replace(train_steps=100)) == 288
    assert STDMAEConfig().information() == "period"
    assert STDMAEConfig(long_history=2016).past(nodes_info(slots=288)) == 2004
