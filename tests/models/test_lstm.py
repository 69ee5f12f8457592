"""The LSTM layer against torch's, and the LSTM forecaster: it learns, keeps nodes apart, and is trained like any model."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stlab.catalog import config_class, config_values, create_model
from stlab.errors import ModelError
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec
from stlab.training import run_trial
from stmodels.errors import ConfigError
from stmodels.layers import lstm as layer
from stmodels.layers.losses import mean_absolute, mean_squared
from stmodels.layers.lstm import LSTM
from stmodels.rng import initialise
from stmodels.series.lstm import LSTMForecaster
from stmodels.series.lstm_config import LSTMConfig
from stmodels.types import Batch, SeriesInfo


def _pair(inputs: int, hidden: int, layers: int = 1, wide: bool = False) -> tuple[LSTM, nn.LSTM]:
    """Ours, and torch's with the same weights, in fp32 or in fp64."""
    torch.manual_seed(5)
    ours = LSTM(inputs, hidden, layers)
    theirs = nn.LSTM(inputs, hidden, layers)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.double() if wide else theirs


def _results(run: Callable[[], tuple[Tensor, tuple[Tensor, Tensor]]], model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, last states, and the gradients of a function that reads all three."""
    output, (hidden, cell) = run()
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weight).sum().backward()
    first = [x.grad, *(p.grad for p in model.parameters())]
    x.grad, found = None, [g.clone() for g in first if g is not None]
    model.zero_grad()
    output, (hidden, cell) = run()
    (hidden.square().sum() + cell.sin().sum()).backward()
    return [output, hidden, cell, *found, *(g for g in (x.grad, *(p.grad for p in model.parameters())) if g is not None)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whether the fast path was: a number a call."""
    calls: list[int] = []
    product = layer._product

    def noted(*arguments: Any) -> Tensor:
        calls.append(len(calls))
        return product(*arguments)

    monkeypatch.setattr(layer, "_product", noted)
    return calls


@pytest.mark.skipif(not layer._has_onednn(), reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize(("sequences", "tile"), [(64, 512), (150, 64), (129, 128)])
@pytest.mark.parametrize(("steps", "inputs", "hidden", "layers"), [(12, 1, 64, 1), (5, 7, 9, 3), (1, 3, 4, 2)])
def test_fast_path_is_an_lstm(
    monkeypatch: pytest.MonkeyPatch, taken: list[int], sequences: int, tile: int, steps: int, inputs: int, hidden: int, layers: int
) -> None:
    """Against nn.LSTM in float64, forward and backward, to the rounding of fp32."""
    monkeypatch.setattr(layer, "_TILE", tile)
    ours, theirs = _pair(inputs, hidden, layers, wide=True)
    x = torch.randn(steps, sequences, inputs, requires_grad=True)
    y = x.detach().double().requires_grad_()
    for found, expected in zip(
        _results(lambda: ours(x), ours, x), _results(lambda: theirs(y), theirs, y), strict=True
    ):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-6 * max(scale, 1))
    assert taken


@pytest.mark.skipif(not layer._has_onednn(), reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize(("steps", "layers"), [(12, 1), (4, 2), (1, 1)])
def test_the_same_input_at_every_step(taken: list[int], steps: int, layers: int) -> None:
    ours, theirs = _pair(6, 8, layers, wide=True)
    x = torch.randn(100, 6, requires_grad=True)
    y = x.detach().double().requires_grad_()
    for found, expected in zip(
        _results(lambda: ours.repeat(x, steps), ours, x),
        _results(lambda: theirs(y.expand(steps, -1, -1)), theirs, y),
        strict=True,
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-6 * max(expected.abs().max().item(), 1))
    assert taken


@pytest.mark.parametrize("how", ["few", "autocast", "float64", "states"])
def test_elsewhere_it_is_torchs(taken: list[int], how: str) -> None:
    if how == "autocast" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("PyTorch has no LSTM in bf16 on this processor")
    ours, theirs = _pair(3, 4)
    x, states = torch.randn(6, 10 if how == "few" else 100, 3), ()
    if how == "float64":
        ours, theirs, x = ours.double(), theirs.double(), x.double()
    if how == "states":
        states = (tuple(torch.randn(2, 1, 100, 4)),)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert torch.equal(ours(x, *states)[0], theirs(x, *states)[0])
        if not states:
            assert torch.equal(ours.repeat(x[0], 5)[0], theirs(x[0].expand(5, -1, -1))[0])
    assert not taken


def test_a_compiled_model_keeps_it() -> None:
    """Dynamo cannot trace it, and leaves it whole: same numbers, same gradients."""
    ours, _ = _pair(3, 4)
    x = torch.randn(6, 100, 3)
    plain = ours(x)[0]
    compiled = torch.compile(lambda x: ours(x)[0] + ours.repeat(x[0], 6)[0], backend="eager")(x)
    assert torch.equal(compiled, plain + ours.repeat(x[0], 6)[0])
    compiled.sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    ours, _ = _pair(1, 8)
    x = torch.randn(12, 700, 1)
    one = ours(x)[0]
    other = ours(torch.where(torch.arange(700)[:, None] == 3, x, -x))[0]
    torch.testing.assert_close(other[:, 3], one[:, 3], rtol=0, atol=1e-6)
    assert not torch.allclose(other[:, 4], one[:, 4], atol=1e-2)


# --- the forecaster ------------------------------------------------------------------------------------------------------


@pytest.fixture
def network(series_info: Callable[..., SeriesInfo]) -> Callable[..., SeriesInfo]:
    def make(**changes: Any) -> SeriesInfo:
        return series_info(**{"family": "sensors", "shape": (5, 1), "history": 12, "horizon": 12, **changes})

    return make


def _model(info: SeriesInfo, **fields: Any) -> LSTMForecaster:
    model = LSTMForecaster(LSTMConfig(**fields), info)
    initialise(model, 0)
    return model


@pytest.mark.parametrize(("history", "horizon", "shape"), [(12, 12, (5, 1)), (4, 7, (3, 1)), (1, 1, (90, 1))])
@pytest.mark.parametrize("fields", [{}, {"time_of_day": True, "layers": 2, "hidden": 8}])
def test_shapes(
    network: Callable[..., SeriesInfo], batch_of: Callable[..., Batch], history: int, horizon: int, shape: Any, fields: Any
) -> None:
    info = network(history=history, horizon=horizon, shape=shape)
    batch = batch_of(info)
    model = _model(info, **fields)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = model(batch).value
            loss = model.loss_terms(model(batch), batch)["forecast"]
        assert value.shape == batch.target.shape
        assert loss.dtype == torch.float32
        model.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters()]
        assert all(g is not None and (g.abs().sum() > 0 or history == 1) for g in grads)  # one step has no recurrence


@pytest.mark.parametrize("time_of_day", [False, True])
def test_nodes_are_kept_apart(
    network: Callable[..., SeriesInfo], batch_of: Callable[..., Batch], time_of_day: bool
) -> None:
    info = network(shape=(40, 1))
    batch, model = batch_of(info), _model(info, time_of_day=time_of_day)
    order = torch.randperm(40)
    permuted = batch._replace(history=batch.history[:, :, order], target=batch.target[:, :, order])
    torch.testing.assert_close(model(permuted).value, model(batch).value[:, :, order], rtol=0, atol=1e-6)


def test_time_of_day_is_read_of_history_and_target(
    network: Callable[..., SeriesInfo], batch_of: Callable[..., Batch]
) -> None:
    info = network()
    batch = batch_of(info)
    with_time, without = _model(info, time_of_day=True), _model(info)
    for field in ("history_slot", "target_slot"):
        slots = getattr(batch, field)
        later = batch._replace(**{field: (slots + 1) % 168})
        next_day = batch._replace(**{field: (slots + 24) % 168})
        assert not torch.equal(with_time(later).value, with_time(batch).value)
        assert torch.equal(with_time(next_day).value, with_time(batch).value)
        assert torch.equal(without(later).value, without(batch).value)
    blind = batch._replace(target=torch.full_like(batch.target, torch.nan))
    assert torch.equal(with_time(blind).value, with_time(batch).value)


def test_overfits_eight_windows(network: Callable[..., SeriesInfo], batch_of: Callable[..., Batch]) -> None:
    info = network()
    batch = batch_of(info, size=8)
    torch.manual_seed(0)
    model = _model(info)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(500):
        loss = model.loss_terms(model(batch), batch)["forecast"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize("seen", [1.0, 0.6, 0.0])
def test_masked_means_are_plain_ones(seen: float) -> None:
    rng = np.random.default_rng(2)
    error, mask = rng.normal(0, 2, (4, 12, 5, 1)), rng.random((4, 12, 5, 1)) < seen
    unseen = torch.from_numpy(np.where(mask, error, np.nan)).float().requires_grad_()
    for mean, power in ((mean_absolute, 1), (mean_squared, 2)):
        expected = (np.abs(error[mask]) ** power).mean() if mask.any() else 0.0
        found = mean(unseen, torch.from_numpy(mask))
        assert found.item() == pytest.approx(expected, rel=1e-5)
        (gradient,) = torch.autograd.grad(found, unseen)
        slope = np.where(mask, power * np.sign(error) * np.abs(error) ** (power - 1), 0) / max(1, mask.sum())
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-4)
        whole = mean(torch.from_numpy(error).bfloat16(), None)
        assert whole.dtype == torch.float32
        assert whole.item() == pytest.approx((np.abs(error) ** power).mean(), rel=2e-2)


def test_its_loss_leaves_missing_readings_out(
    network: Callable[..., SeriesInfo], batch_of: Callable[..., Batch]
) -> None:
    info = network()
    batch = batch_of(info)
    mask = torch.rand(batch.target.shape) < 0.7
    batch = batch._replace(target_mask=mask)
    model = _model(info)
    forecast = model(batch)
    error = (forecast.value - batch.target).detach().double().numpy()
    expected = np.abs(error[mask.numpy()]).mean()
    assert model.loss_terms(forecast, batch)["forecast"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "fields", "says"),
    [
        ({"family": "grid", "shape": (2, 8, 8)}, {}, "sensor networks .* family 'grid'"),
        ({"slots_per_day": None}, {"time_of_day": True}, "time_of_day needs timestamps"),
    ],
)
def test_what_it_cannot_run_on(network: Callable[..., SeriesInfo], changes: Any, fields: Any, says: str) -> None:
    values = config_values(LSTMConfig(**fields))
    with pytest.raises(ModelError, match=says):
        create_model(values, network(**changes))
    with pytest.raises(ConfigError, match=r"model\.hidden must be at least 1"):
        LSTMConfig(hidden=0)


@pytest.mark.parametrize("time_of_day", [False, True])
def test_a_trial_of_it(tmp_path: Path, time_of_day: bool) -> None:
    """A rhythm with gaps is learned well within a few epochs; the forecast of the mean is far behind."""
    rng = np.random.default_rng(1)
    steps = 300
    phase = 2 * np.pi * (np.arange(steps)[:, None] / 24 + rng.random(6))
    speeds = (50 + 15 * np.sin(phase) + rng.normal(0, 1, phase.shape)).astype(np.float32)
    speeds[rng.random(speeds.shape) < 0.02] = 0
    times = np.datetime64("2024-01-01", "s") + np.arange(steps) * np.timedelta64(3600, "s")
    np.savez(tmp_path / "speeds.npz", data=speeds, timestamps=times)
    trial = TrialSpec(
        study="small",
        variant="lstm",
        seed=0,
        data=DataSpec(path=str(tmp_path / "speeds.npz"), family="sensors"),
        model=config_values(config_class("lstm")(hidden=32, time_of_day=time_of_day)),
        train=TrainSpec(
            max_epochs=25, lr=1e-2, warmup_epochs=0, weight_decay=0, schedule="plateau", plateau_patience=3, select_by="mae"
        ),
        resources=ResourcesSpec(gpus=0),
    )
    directory = TrialDirectory(Store(tmp_path / "runs"), "a")
    assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED, directory.read("failed.json")
    result, errors = directory.read("result.json") or {}, directory.read("test.json") or {}
    assert result["val_mae"] == min(row["val_mae"] for row in directory.read_epochs())
    assert errors["mae"] < 0.4 * np.abs(speeds[speeds > 0] - speeds[speeds > 0].mean()).mean()


def test_a_copy_keeps_its_weights(network: Callable[..., SeriesInfo], batch_of: Callable[..., Batch]) -> None:
    info = network()
    model, batch = _model(info), batch_of(info)
    assert torch.equal(copy.deepcopy(model)(batch).value, model(batch).value)
    other = LSTMForecaster(LSTMConfig(), info)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch).value, model(batch).value)
    initialise(other, 1)
    assert not torch.equal(other(batch).value, model(batch).value)


def test_bfloat16_on_a_processor_that_has_none() -> None:
    """PyTorch asks oneDNN for an LSTM in bf16, and without AVX-512 there is none."""
    code = """
import torch
from stmodels.layers.lstm import LSTM
lstm = LSTM(3, 8)
x = torch.randn(5, 70, 3, requires_grad=True)
wanted, _ = torch.nn.LSTM.forward(lstm, x)
with torch.autocast("cpu", torch.bfloat16):
    for found in (lstm(x)[0], lstm(x[:, :4])[0], lstm.repeat(x[0], 5)[0]):
        found.float().sum().backward()
    torch.testing.assert_close(lstm(x)[0].float(), wanted, atol=1e-2, rtol=1e-2)
"""
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | older, check=True)
