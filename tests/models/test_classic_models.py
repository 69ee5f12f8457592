"""HA and ARIMA, against pandas, statsmodels, the protocol's anchors and their definitions."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.tsa.arima.model import ARIMA as Statsmodels

from stlab.catalog import config_values, create_config, create_model
from stlab.data import Dataset, load_dataset
from stlab.errors import ModelError
from stlab.study.spec import DataSpec
from stlab.training.metrics import evaluate
from stmodels.base import Forecaster
from stmodels.classic.arima import Coefficients, fit, forecast
from tests.models.nodes import nodes_info

_BIKES = Path(__file__).parents[2] / ".." / "shared" / "data" / "nycbike1.npz"


@pytest.fixture(scope="module")
def bikes() -> Dataset:
    if not _BIKES.exists():
        pytest.skip("the shared data sets are not beside this checkout")
    return load_dataset(DataSpec(path=str(_BIKES)))


def _fitted(dataset: Dataset, name: str, **fields: Any) -> Forecaster:
    config = create_config({"name": name, **fields})
    model, train = create_model(config_values(config), dataset.info), dataset.windows("train", past=config.past(dataset.info))
    if config.prepared_from() is not None:
        model.adopt(model.prepare(train.readings()))
    model.fit(train)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "fields", "rmse", "mae"),
    [
        ("ha", {"over": "week"}, 7.186, 3.038),
        ("ha", {"over": "day"}, 8.426, 3.674),
        ("ha", {"over": "days", "days": 7}, 8.562, 3.710),
        ("ha", {"over": "days", "days": 3}, 10.627, 4.538),
        ("ha", {"over": "window"}, 18.869, 9.406),
        ("arima", {}, 12.874, 6.237),
        ("arima", {"order": [3, 0, 0]}, 13.343, 6.562),
        ("arima", {"order": [2, 0, 0]}, 13.409, 6.611),
        ("arima", {"order": [1, 0, 0]}, 13.994, 6.769),
        ("arima", {"order": [3, 1, 0]}, 17.256, 7.990),
    ],
)
def test_the_anchors_are_met(bikes: Dataset, name: str, fields: dict[str, Any], rmse: float, mae: float) -> None:
    model = _fitted(bikes, name, **fields)
    past = create_config({"name": name, **fields}).past(bikes.info)
    errors = evaluate(model, bikes, bikes.windows("test", past=past), 64, nullcontext)
    assert errors["rmse"] == pytest.approx(rmse, abs=5e-4)
    assert errors["mae"] == pytest.approx(mae, abs=5e-4)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Nine days of hours from a Thursday, so that some slots of the week are missing in the train segment, with gaps."""
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-01-04", periods=9 * 24, freq="h")
    values = 50 + 10 * np.sin(2 * np.pi * times.hour.to_numpy() / 24)[:, None] + rng.normal(0, 3, (len(times), 3))
    values[rng.random(values.shape) < 0.05] = 0
    values[:, 2] = 20
    path = tmp_path_factory.mktemp("classic") / "net.npz"
    np.savez(path, data=values[..., None].astype(np.float32), timestamps=times.to_numpy().astype("datetime64[s]"))
    return load_dataset(DataSpec(path=str(path), family="sensors"))


def test_ha_is_a_group_by_with_the_next_coarser_mean_where_a_slot_is_missing(network: Dataset) -> None:
    train = network.windows("train").readings()
    frame = pd.DataFrame(train.values[..., 0].double().numpy()).where(train.mask[..., 0].numpy())
    slot = train.slot.numpy()
    by_week, by_day = frame.groupby(slot).mean(), frame.groupby(slot % 24).mean()
    test = network.windows("test")
    batch = test.gather(torch.arange(len(test)))
    found = _fitted(network, "ha")(batch).value[..., 0].double().numpy()
    missed = 0
    for (b, q), at in np.ndenumerate(batch.target_slot.numpy()):
        for node in range(3):
            expected = by_week[node].get(at, np.nan)
            missed += np.isnan(expected)
            expected = by_day[node][at % 24] if np.isnan(expected) else expected
            assert found[b, q, node] == pytest.approx(expected, abs=1e-5)
    assert missed > 0


def test_ha_of_days_needs_days() -> None:
    with pytest.raises(ModelError, match="a day of 6 steps lies within"):
        create_model(config_values(create_config({"name": "ha", "over": "days"})), nodes_info(slots=6))
    assert create_config({"name": "ha", "over": "days", "days": 3}).past(nodes_info(slots=24)) == 60


def _simulated(ar: list[float], ma: list[float], steps: int, seed: int = 0, constant: float = 0.5) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x, e = np.zeros(steps + 200), rng.normal(size=steps + 200)
    for t in range(5, len(x)):
        x[t] = constant + e[t] + sum(w * x[t - i] for i, w in enumerate(ar, 1)) + sum(w * e[t - j] for j, w in enumerate(ma, 1))
    return torch.from_numpy(x[200:, None])


def test_least_squares_finds_the_coefficients_of_an_ar_2() -> None:
    found = fit(_simulated([0.5, 0.3], [], 5000), None, (2, 0, 0), "least_squares")
    np.testing.assert_allclose(found.ar[0], [0.5, 0.3], atol=0.05)
    assert found.constant.item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("estimator", ["least_squares", "likelihood"])
def test_both_estimators_find_a_moving_average(estimator: str) -> None:
    found = fit(_simulated([0.6], [0.4], 4000), None, (1, 0, 1), estimator)
    assert found.ar[0, 0].item() == pytest.approx(0.6, abs=0.06)
    assert found.ma[0, 0].item() == pytest.approx(0.4, abs=0.06)


def test_an_ar_1_forecasts_powers_of_phi() -> None:
    fitted = Coefficients(*(torch.tensor(x, dtype=torch.float64) for x in ([0.3], [[0.7]], [[]])))
    history = torch.tensor([1.0, 2, 4], dtype=torch.float64).view(1, 3, 1)
    mean = 0.3 / (1 - 0.7)
    expected = [mean + 0.7**h * (4 - mean) for h in range(1, 6)]
    np.testing.assert_allclose(forecast(history, fitted, 0, 5)[0, :, 0], expected)


@pytest.mark.parametrize("order", [(3, 0, 1), (1, 1, 1)])
def test_the_recursion_forecasts_as_statsmodels_does(order: tuple[int, int, int]) -> None:
    """Over a history so long that the shocks before it do not matter."""
    series = _simulated([0.5, 0.2, -0.1], [0.3], 1500)
    series = series.cumsum(0) if order[1] else series
    fitted = fit(series, None, order, "likelihood")
    reference = Statsmodels(series[:, 0].numpy(), order=order).fit()
    future = _simulated([0.5, 0.2, -0.1], [0.3], 200, seed=1)
    future = future.cumsum(0) if order[1] else future
    expected = reference.apply(future[:, 0].numpy()).forecast(12)
    np.testing.assert_allclose(forecast(future[None], fitted, order[1], 12)[0, :, 0], expected, atol=1e-2 * float(future.std()))


def test_a_straight_line_is_continued_by_one_difference() -> None:
    line = torch.arange(200, dtype=torch.float64)[:, None] * 0.5 + torch.randn(200, 1, dtype=torch.float64) * 1e-3
    fitted = fit(line, None, (1, 1, 0), "least_squares")
    np.testing.assert_allclose(forecast(line[None, -6:], fitted, 1, 4)[0, :, 0] - line[-1, 0], [0.5, 1.0, 1.5, 2.0], atol=0.02)


def test_scaled_data_are_forecast_scaled() -> None:
    series = _simulated([0.5, 0.3], [], 400)
    one, other = fit(series, None, (2, 0, 0), "least_squares"), fit(40 * series, None, (2, 0, 0), "least_squares")
    torch.testing.assert_close(
        forecast(40 * series[None, :6], other, 0, 6), 40 * forecast(series[None, :6], one, 0, 6), rtol=1e-4, atol=1e-4
    )


def test_a_series_that_does_not_change_is_forecast_as_its_mean(network: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    model = _fitted(network, "arima", estimate="least_squares")
    test = network.windows("test")
    batch = test.gather(torch.arange(3))
    found = network.scaler.inverse(model(batch).value.double().numpy())[:, :, 2]
    np.testing.assert_allclose(found, 20, atol=1e-3)
    assert "1 of 3 series do not change" in caplog.text


def test_explosive_roots_are_shrunk() -> None:
    series = (1.02 ** torch.arange(300, dtype=torch.float64))[:, None] + torch.randn(300, 1, dtype=torch.float64) * 0.01
    found = fit(series, None, (1, 0, 0), "least_squares")
    assert found.ar.item() <= 1 + 1e-9


def test_the_order_is_chosen_by_likelihood(network: Dataset) -> None:
    model = _fitted(network, "arima", order="aic", sample=2)
    assert model.ar.shape == (3, 3)
    assert model(network.windows("test").gather(torch.arange(2))).value.isfinite().all()


@pytest.mark.parametrize("order", [(0, 1, 0), (0, 1, 1), (0, 0, 1)])
def test_an_order_without_autoregression_is_forecast(order: tuple[int, int, int]) -> None:
    series = _simulated([], [0.4], 400).cumsum(0) if order[1] else _simulated([], [0.4], 400)
    fitted = fit(series, None, order, "least_squares")
    found = forecast(series[None, -12:], fitted, order[1], 3)
    assert found.isfinite().all()
    if order == (0, 1, 0):
        np.testing.assert_allclose(found[0, :, 0] - series[-1, 0], float(series.diff(dim=0).mean()) * np.arange(1, 4), rtol=1e-4)


def test_a_moving_average_that_cannot_be_inverted_is_shrunk() -> None:
    from stmodels.classic.arima import _tamed

    found = _tamed(Coefficients(*(torch.tensor(x, dtype=torch.float64) for x in ([0.0], [[0.5]], [[2.0]]))))
    assert found.ma.item() == pytest.approx(1.0)
    kept = _tamed(Coefficients(*(torch.tensor(x, dtype=torch.float64) for x in ([0.0], [[0.5]], [[-0.7]]))))
    assert kept.ma.item() == pytest.approx(-0.7)


def test_an_order_longer_than_the_history_is_refused() -> None:
    with pytest.raises(ModelError, match=r"needs 7 steps of history, and data\.history is 6"):
        create_model(config_values(create_config({"name": "arima", "order": [6, 1, 0]})), nodes_info(history=6))
