"""Errors in the data's unit, held against plain float64 numpy over everything at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stlab.data import Scaler, load_dataset
from stlab.study.spec import DataSpec
from stlab.training import metrics
from stlab.training import workers as group
from stlab.training.metrics import ErrorSums, evaluate, to_unit
from stmodels.types import Batch, Forecast

B, Q = 23, 4


def arrays(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forecast, truth and mask, (B, Q, *S)."""
    draw = np.random.default_rng(seed)
    truth = draw.gamma(2.0, 20.0, (B, Q, *shape)).astype(np.float32)
    forecast = (truth + draw.normal(0, 5, truth.shape)).astype(np.float32)
    return forecast, truth, draw.random(truth.shape) > 0.3


def reference(forecast: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """The supplement's Equations 4-5 and the mean absolute percentage error, over what is seen."""
    error = forecast.astype(np.float64)[seen] - truth.astype(np.float64)[seen]
    sizable = truth[seen] != 0
    return {
        "mae": np.abs(error).mean(),
        "rmse": np.sqrt(np.mean(error**2)),
        "mape": 100 * np.mean(np.abs(error[sizable]) / np.abs(truth[seen][sizable].astype(np.float64))),
    }


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 1)], ids=["grid", "sensors"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cuts", [(B,), (10, 10, 3), (1, 22)], ids=str)
def test_errors_are_one_sum_over_a_count(shape: tuple[int, ...], masked: bool, cuts: tuple[int, ...]) -> None:
    forecast, truth, seen = arrays(shape)
    truth[3, 1] = 0.0
    sums = ErrorSums(Q, torch.device("cpu"))
    start = 0
    for size in cuts:
        part = slice(start, start + size)
        mask = torch.from_numpy(seen[part]) if masked else None
        sums.add(torch.from_numpy(forecast[part]), torch.from_numpy(truth[part]), mask)
        start += size
    seen = seen if masked else np.ones_like(seen)
    errors = sums.errors(scale=1000.0, with_mape=True)
    for name, value in reference(forecast, truth, np.ones_like(seen)).items():
        if name != "mape":  # without a mask, whatever the mask is
            assert errors[f"{name}_unmasked"] == pytest.approx(1000 * value, rel=1e-6)
    expected = reference(forecast, truth, seen)
    assert errors["mae"] == pytest.approx(1000 * expected["mae"], rel=1e-6)
    assert errors["rmse"] == pytest.approx(1000 * expected["rmse"], rel=1e-6)
    assert errors["mape"] == pytest.approx(expected["mape"], rel=1e-6)  # a percentage has no scale
    for step, row in enumerate(errors["horizon"]):
        expected = reference(forecast[:, step], truth[:, step], seen[:, step])
        assert row["horizon"] == step + 1
        assert row["count"] == seen[:, step].sum()
        assert row["mae"] == pytest.approx(1000 * expected["mae"], rel=1e-6)
        assert row["rmse"] == pytest.approx(1000 * expected["rmse"], rel=1e-6)
        assert row["mape"] == pytest.approx(expected["mape"], rel=1e-6)


def test_what_is_masked_may_be_anything() -> None:
    forecast, truth, seen = arrays((5, 1))
    broken_truth, broken_forecast = truth.copy(), forecast.copy()
    broken_truth[~seen], broken_forecast[~seen] = np.nan, np.inf
    sums = ErrorSums(Q, torch.device("cpu"))
    sums.add(torch.from_numpy(broken_forecast), torch.from_numpy(broken_truth), torch.from_numpy(seen))
    expected = reference(forecast, truth, seen)
    errors = sums.errors(1.0, True)
    assert {name: errors[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_step_without_readings_has_no_error_and_spoils_no_other() -> None:
    forecast, truth, seen = arrays((5, 1))
    seen[:, 2] = False
    sums = ErrorSums(Q, torch.device("cpu"))
    sums.add(torch.from_numpy(forecast), torch.from_numpy(truth), torch.from_numpy(seen))
    errors = sums.errors(1.0, with_mape=True)
    assert np.isnan([errors["horizon"][2]["mae"], errors["horizon"][2]["rmse"]]).all()
    assert (errors["horizon"][2]["mape"], errors["horizon"][2]["count"]) == (None, 0)
    assert errors["mae"] == pytest.approx(reference(forecast, truth, seen)["mae"], rel=1e-6)
    nothing = ErrorSums(Q, torch.device("cpu")).errors(1.0, with_mape=True)
    assert np.isnan([nothing["mae"], nothing["rmse"]]).all()
    assert nothing["mape"] is None


class Noisy(nn.Module):
    """Forecasts the target and a fixed disturbance, so that the right errors can be computed beside it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(batch.target + self.size * torch.sin(batch.start.float() + 1)[:, None, None, None, None])


def noisy_reference(path: Path, size: float, span: tuple[int, int], clamp: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Errors of ``Noisy`` on a segment of the small grid, in numpy; its scaler is the min-max of the train segment."""
    data = np.load(path)["data"].astype(np.float64)
    spread = (data[:168].max() - data[:168].min()) / 2
    starts = np.arange(span[0], span[1] - 11)
    truth = np.stack([data[s + 6 : s + 12] for s in starts])
    forecast = clamp(truth + size * spread * np.sin(starts + 1)[:, None, None, None, None])
    return reference(forecast, truth, np.ones_like(truth, dtype=bool))


@pytest.mark.parametrize("segment", [("validation", (168, 204)), ("test", (204, 240))], ids=lambda s: s[0])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluate_measures_in_the_unit_clamped_at_zero(small_grid: Path, segment: Any, batch_size: int) -> None:
    dataset = load_dataset(DataSpec(path=str(small_grid), scale=10.0))
    name, span = segment
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    errors = evaluate(
        Noisy(0.5), dataset, dataset.windows(name), batch_size, contextlib.nullcontext, keep=lambda *x: kept.append(x)
    )
    expected = noisy_reference(small_grid, 0.5, span, lambda x: np.maximum(x, 0))
    assert errors["mae"] == pytest.approx(10 * expected["mae"], rel=1e-5)
    assert errors["rmse"] == pytest.approx(10 * expected["rmse"], rel=1e-5)
    assert errors["mape"] is None  # grids hold true zeros
    unclamped = noisy_reference(small_grid, 0.5, span, lambda x: x)
    assert abs(unclamped["mae"] - expected["mae"]) > 1e-2 * expected["mae"]  # the clamp does matter here
    assert torch.equal(torch.cat([x[0] for x in kept]), torch.arange(span[1] - span[0] - 11))
    assert min(x[1].min() for x in kept) == 0


def test_negative_data_is_not_clamped_and_unist_clamps_to_its_range(small_grid: Path) -> None:
    dataset = load_dataset(DataSpec(path=str(small_grid)))
    scaled = torch.linspace(-2, 2, 9)
    unit = scaled.double().numpy() * dataset.scaler.spread + dataset.scaler.center
    np.testing.assert_allclose(to_unit(dataset, scaled), np.maximum(unit, 0), rtol=1e-6)
    signed = dataclasses.replace(dataset, nonnegative=False)
    np.testing.assert_allclose(to_unit(signed, scaled), unit, rtol=1e-5)
    ranged = dataclasses.replace(signed, clamp=(3.0, 11.0))
    np.testing.assert_allclose(to_unit(ranged, scaled), np.clip(unit, 3, 11), rtol=1e-5)


def test_readings_of_zero_have_no_percentage_error() -> None:
    """A zero that comes back from scaled space is seldom exactly zero in float32; it still has no relative error."""
    truth = np.random.default_rng(0).poisson(3.0, (8, 2, 5, 1)).astype(np.float32)
    scaler = Scaler("z-score", center=53.7, spread=20.3)
    target = torch.from_numpy(((truth.astype(np.float64) - scaler.center) / scaler.spread).astype(np.float32))
    dataset = SimpleNamespace(
        info=SimpleNamespace(horizon=2, family="sensors"), scaler=scaler, clamp=None, nonnegative=True, scale=1.0
    )

    class AllWindows:
        starts = torch.arange(8)

        def __len__(self) -> int:
            return 8

        def gather(self, index: Tensor) -> Batch:
            return Batch(target[index], target[index], index)

    class OneMore(nn.Module):
        def forward(self, batch: Batch) -> Forecast:
            return Forecast(batch.target + 1 / scaler.spread)

    errors = evaluate(OneMore(), dataset, AllWindows(), 3, contextlib.nullcontext)
    assert errors["mape"] == pytest.approx(100 * np.mean(1 / truth[truth > 0]), rel=1e-5)


@pytest.mark.parametrize("world", [2, 4, 30], ids="{} workers".format)
def test_workers_share_the_windows_out(small_grid: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """25 windows: 30 workers leave five without any, which no model is asked to forecast."""

    class NeverEmpty(Noisy):
        def forward(self, batch: Batch) -> Forecast:
            assert len(batch.history)
            return super().forward(batch)

    dataset = load_dataset(DataSpec(path=str(small_grid)))
    windows = dataset.windows("validation")
    alone = evaluate(Noisy(0.5), dataset, windows, 7, contextlib.nullcontext)
    sums: list[Tensor] = []
    monkeypatch.setattr(group, "_size", 1)  # is left as it was
    monkeypatch.setattr(metrics.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics.dist, "get_world_size", lambda: world)
    monkeypatch.setattr(metrics.dist, "all_reduce", sums.append)
    for rank in range(world):
        monkeypatch.setattr(metrics.dist, "get_rank", lambda rank=rank: rank)
        evaluate(NeverEmpty(0.5), dataset, windows, 7, contextlib.nullcontext)
    together = ErrorSums(6, torch.device("cpu"))
    together.sums = torch.stack(sums).sum(0)
    errors = together.errors(1.0, with_mape=False)
    assert errors["rmse"] == pytest.approx(alone["rmse"], rel=1e-12)
    assert [row["count"] for row in errors["horizon"]] == [row["count"] for row in alone["horizon"]]
