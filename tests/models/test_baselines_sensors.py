"""Reference forecasts on sensor networks, against plain numpy in float64, scikit-learn, and the figures of the protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge as SklearnRidge

from stlab.data import Dataset, load_dataset
from stlab.study.spec import DataSpec
from stlab.training.metrics import evaluate
from stmodels.baselines.config import BaselineConfig
from stmodels.baselines.model import Baseline

Array = NDArray[np.float64]
_METR_LA = Path(__file__).parents[2] / ".." / "shared" / "data" / "metrla_week.npz"
_DAY, _WEEK = 24, 168
_P = _Q = 12


def _speeds(weeks: int, missing: float = 0.0) -> Array:
    """Speeds (T, 5) that fall and rise with the hour, with a disturbance that all nodes share and that decays."""
    rng = np.random.default_rng(11)
    steps = weeks * _WEEK
    shared = np.zeros(steps)
    for t in range(1, steps):
        shared[t] = 0.8 * shared[t - 1] + rng.normal(0, 2)
    rhythm = 55 + 12 * np.cos(2 * np.pi * np.arange(steps) / _DAY)
    speeds = rhythm[:, None] * rng.uniform(0.7, 1.2, 5) + shared[:, None] + rng.normal(0, 1.5, (steps, 5))
    speeds = speeds.astype(np.float32).astype(np.float64)
    speeds[rng.random(speeds.shape) < missing] = 0
    return speeds


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Dataset]:
    def load(speeds: Array, dated: bool = True, **fields: Any) -> Dataset:
        times = np.datetime64("2024-01-01", "s") + np.arange(len(speeds)) * np.timedelta64(3600, "s")
        np.savez(tmp_path / "speeds.npz", data=speeds.astype(np.float32), **({"timestamps": times} if dated else {}))
        return load_dataset(DataSpec(path=str(tmp_path / "speeds.npz"), family="sensors", **fields))

    return load


def _forecast(name: str, dataset: Dataset, segment: str = "test") -> Array:
    """All of a segment's forecasts in the data's unit, (windows, Q, N)."""
    model = Baseline(BaselineConfig(name=name), dataset.info)  # type: ignore[arg-type]
    model.fit(dataset.windows("train"))
    windows = dataset.windows(segment)
    value = model(windows.gather(torch.arange(len(windows)))).value
    return dataset.scaler.inverse(value.double().numpy())[..., 0]


def _starts(steps: int, segment: str) -> Array:
    """First step of every window, by the protocol: 60/20/20, rounded down."""
    first, last = int(0.6 * steps), int(0.8 * steps)
    low, high = {"train": (0, first), "test": (last, steps)}[segment]
    return np.arange(low, high - _P - _Q + 1)


@pytest.mark.parametrize("dated", [True, False])
def test_what_is_copied(network: Callable[..., Dataset], dated: bool) -> None:
    speeds = _speeds(4)
    dataset, starts = network(speeds, dated), _starts(len(speeds), "test")
    expected = {
        "last_window": [speeds[s : s + _P] for s in starts],
        "last_value": [np.repeat(speeds[s + _P - 1][None], _Q, 0) for s in starts],
    }
    if dated:
        expected["same_slot_yesterday"] = [speeds[s + _P - _DAY : s + _P + _Q - _DAY] for s in starts]
        expected["same_slot_last_week"] = [speeds[s + _P - _WEEK : s + _P + _Q - _WEEK] for s in starts]
    for name, value in expected.items():
        np.testing.assert_allclose(_forecast(name, dataset), np.stack(value), atol=1e-3, err_msg=name)


def test_slot_of_week_mean(network: Callable[..., Dataset]) -> None:
    speeds = _speeds(5)
    train = int(0.6 * len(speeds))
    mean = np.stack([speeds[:train][np.arange(train) % _WEEK == slot].mean(0) for slot in range(_WEEK)])
    expected = np.stack([mean[np.arange(s + _P, s + _P + _Q) % _WEEK] for s in _starts(len(speeds), "test")])
    np.testing.assert_allclose(_forecast("slot_of_week_mean", network(speeds)), expected, atol=1e-3)


def _differences(speeds: Array, segment: str) -> tuple[Array, Array, Array]:
    """Of every window and node: features, what follows the last reading, and that reading."""
    features, ahead, last = [], [], []
    for s in _starts(len(speeds), segment):
        now = speeds[s + _P - 1]
        own = speeds[s : s + _P - 1] - now
        for node in range(speeds.shape[1]):
            features.append(np.concatenate([own[:, node], own.mean(1)]))
            ahead.append(speeds[s + _P : s + _P + _Q, node] - now[node])
            last.append(now[node])
    return np.array(features), np.array(ahead), np.array(last)


def _by_scikit_learn(x: Array, y: Array, seen: NDArray[np.bool_], test: Array) -> Array:
    """Of each horizon step by itself, on the rows that have a reading there."""
    columns = []
    for step in range(y.shape[1]):
        rows = seen[:, step]
        scale = x[rows].std(0)
        reference = SklearnRidge(alpha=1.0, solver="cholesky").fit(x[rows] / scale, y[rows, step])
        columns.append(reference.predict(test / scale))
    return np.stack(columns, 1)


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("dated", [True, False])
def test_ridge_without_a_season_against_scikit_learn(
    network: Callable[..., Dataset], missing: float, dated: bool
) -> None:
    """Two weeks at 60 % are less than two readings of some slots of the week. Missing readings ahead are no target."""
    speeds = _speeds(2, missing)
    dataset = network(speeds, dated)
    x, y, last = _differences(speeds, "train")
    test, _, now = _differences(speeds, "test")
    expected = now[:, None] + _by_scikit_learn(x, y, y + last[:, None] != 0, test)
    found = np.moveaxis(_forecast("ridge", dataset), 1, -1).reshape(-1, _Q)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_ridge_of_a_single_reading_is_the_mean_change(network: Callable[..., Dataset]) -> None:
    """A history of one step has no differences: what is left is the constant."""
    dataset = network(_speeds(2), dated=False, history=1)
    windows = dataset.windows("train").gather(torch.arange(len(dataset.windows("train"))))
    change = (windows.target.double() - windows.history.double()).mean((0, 2, 3)).numpy()  # (Q,)
    test = dataset.windows("test").gather(torch.arange(3))
    expected = dataset.scaler.inverse(test.history[..., 0].double().numpy() + change[:, None])
    np.testing.assert_allclose(_forecast("ridge", dataset)[:3], expected, atol=2e-3)


def test_ridge_of_an_unmasked_series_counts_zeros(network: Callable[..., Dataset]) -> None:
    speeds = _speeds(2, missing=0.1)
    x, y, _ = _differences(speeds, "train")
    test, _, now = _differences(speeds, "test")
    expected = now[:, None] + _by_scikit_learn(x, y, np.ones_like(y, dtype=bool), test)
    found = np.moveaxis(_forecast("ridge", network(speeds, null="none")), 1, -1).reshape(-1, _Q)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_seasonal_ridge_against_scikit_learn(network: Callable[..., Dataset]) -> None:
    """The same regression of seasonal residuals as on grids, with the mean over nodes for the city's."""
    speeds = _speeds(6)
    train = int(0.6 * len(speeds))
    slots = np.arange(len(speeds)) % _WEEK
    season, profile = np.empty_like(speeds), np.empty_like(speeds)
    for t in range(len(speeds)):
        same = np.flatnonzero(slots[:train] == slots[t])
        season[t], profile[t] = speeds[same[same != t]].mean(0), speeds[same].mean(0)
    deviation = (speeds[:train] - season[:train]).std()

    def problem(segment: str) -> tuple[Array, Array, Array]:
        features, ahead, base = [], [], []
        for s in _starts(len(speeds), segment):
            x, m, f = speeds[s : s + _P], season[s : s + _P], season[s + _P : s + _P + _Q]
            known = profile[s + _P : s + _P + _Q]
            city = np.repeat((x - m).mean(1, keepdims=True), 5, 1)
            ratios = [
                (x.sum(0) + deviation) / (m.sum(0) + deviation),
                np.repeat((x.sum() + deviation) / (m.sum() + deviation), 5),
                np.repeat((x[-1].sum() + deviation) / (m[-1].sum() + deviation), 5),
            ]
            features.append(np.concatenate([x - m, city, *(known * np.clip(r - 1, -1, 2) for r in ratios)]).T)
            ahead.append((speeds[s + _P : s + _P + _Q] - f).T)
            base.append(f.T)
        return np.concatenate(features), np.concatenate(ahead), np.concatenate(base)

    x, y, _ = problem("train")
    test, _, base = problem("test")
    expected = base + _by_scikit_learn(x, y, np.ones_like(y, dtype=bool), test)
    found = np.moveaxis(_forecast("ridge", network(speeds)), 1, -1).reshape(-1, _Q)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_seasonal_ridge_with_gaps_beats_the_season(network: Callable[..., Dataset]) -> None:
    dataset = network(_speeds(6, missing=0.1))
    assert dataset.info.season_count >= 2
    assert _rmse("ridge", dataset) < _rmse("slot_of_week_mean", dataset)


def _rmse(name: str, dataset: Dataset) -> float:
    return float(_errors(name, dataset)["rmse"])


def _errors(name: str, dataset: Dataset) -> dict[str, Any]:
    model = Baseline(BaselineConfig(name=name), dataset.info)  # type: ignore[arg-type]
    model.fit(dataset.windows("train"))
    return dict(evaluate(model, dataset, dataset.windows("test"), 64, contextlib.nullcontext))


# --- the protocol's figures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metr_la() -> Dataset:
    if not _METR_LA.exists():
        pytest.skip(f"{_METR_LA.name} is not beside this checkout (../shared/data)")
    return load_dataset(DataSpec(path=str(_METR_LA), family="sensors"))


@pytest.mark.parametrize(
    ("name", "rmse", "mae"),
    [("same_slot_yesterday", 3.457, 1.921), ("last_value", 4.677, 2.444), ("last_window", 6.976, 3.834)],
)
def test_figures_on_los_angeles(name: str, rmse: float, mae: float, metr_la: Dataset) -> None:
    assert len(metr_la.windows("test")) == 381
    errors = _errors(name, metr_la)
    assert (round(errors["rmse"], 3), round(errors["mae"], 3)) == (rmse, mae)


def test_ridge_on_los_angeles(metr_la: Dataset) -> None:
    """One week has no season; the regression still says more than the last value does."""
    assert metr_la.info.season_count < 2
    assert _rmse("ridge", metr_la) < 0.95 * 4.677
