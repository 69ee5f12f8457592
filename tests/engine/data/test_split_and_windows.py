"""Segments, windows, scaler and season, held against plain float64 numpy and pandas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stlab.data import load_dataset
from stlab.data.protocol.split import boundaries, steps_needed
from stlab.errors import DataError
from stlab.study.spec import DataSpec

P = Q = 6
START = np.datetime64("2014-08-04T23:07:00", "s")  # off the hour: slots have to cope


def write(
    folder: Path, data: np.ndarray, name: str = "series.npz", start: np.datetime64 | None = START, step: int = 3600
) -> str:
    times = {} if start is None else {"timestamps": start + np.arange(len(data)) * np.timedelta64(step, "s")}
    np.savez(folder / name, data=data, **times)
    return str(folder / name)


def counts(steps: int, seed: int = 0, shape: tuple[int, ...] = (2, 3, 2)) -> np.ndarray:
    return np.random.default_rng(seed).poisson(20, (steps, *shape)).astype(np.float32)


@pytest.fixture
def month(tmp_path: Path) -> tuple[np.ndarray, str]:
    data = counts(30 * 24)
    return data, write(tmp_path, data)


def all_of(windows: object) -> object:
    return windows.gather(torch.arange(len(windows)))


@pytest.mark.parametrize(
    ("steps", "split", "expected"),
    [
        (1369, (0.70, 0.15, 0.15), (958, 1163)),
        (1440, (0.70, 0.15, 0.15), (1008, 1224)),  # 0.7 + 0.15 in binary is below 0.85
        (20, (0.70, 0.15, 0.15), (14, 17)),
        (2016, (0.60, 0.20, 0.20), (1209, 1612)),
        (1000, (0.29, 0.42, 0.29), (290, 710)),  # 0.29 * 1000 in binary is 289.99…
    ],
)
def test_a_boundary_is_the_floor_of_the_exact_share(
    steps: int, split: tuple[float, ...], expected: tuple[int, int]
) -> None:
    assert boundaries(steps, split) == expected


@pytest.mark.parametrize("segment", ["train", "validation", "test"])
def test_windows_are_the_slices_of_their_segment(month: tuple[np.ndarray, str], segment: str) -> None:
    data, path = month
    dataset = load_dataset(DataSpec(path=path))
    start, end = {"train": (0, 504), "validation": (504, 612), "test": (612, 720)}[segment]
    windows = dataset.windows(segment)
    low, high = data[:504].min(), data[:504].max()
    scaled = (data.astype(np.float64) - low) / (high - low) * 2 - 1
    assert len(windows) == end - start - (P + Q) + 1
    batch = all_of(windows)
    for i, first in enumerate(range(start, end - (P + Q) + 1)):
        np.testing.assert_allclose(batch.history[i].numpy(), scaled[first : first + P], atol=1e-6)
        np.testing.assert_allclose(batch.target[i].numpy(), scaled[first + P : first + P + Q], atol=1e-6)
        assert batch.start[i] == first
    assert windows.first_target == start + P
    assert batch.target_mask is None
    np.testing.assert_allclose(windows.series.numpy(), scaled, atol=1e-6)
    np.testing.assert_allclose(dataset.scaler.inverse(windows.series).numpy(), data, atol=1e-4)
    assert dataset.info.lookback == 504 + P


def test_gather_takes_any_order_and_times_go_with_it(month: tuple[np.ndarray, str]) -> None:
    _, path = month
    windows = load_dataset(DataSpec(path=path)).windows("validation")
    index = torch.tensor([7, 0, 7])
    batch, whole = windows.gather(index), all_of(windows)
    for name, value in batch._asdict().items():
        if value is not None:
            assert torch.equal(value, getattr(whole, name)[index])
    hours = np.timedelta64(3600, "s") * (504 + index.numpy()[:, None] + P + np.arange(Q))
    assert windows.times(index).dtype == np.dtype("datetime64[s]")
    np.testing.assert_array_equal(windows.times(index), START + hours)
    with pytest.raises(IndexError):
        windows.gather(torch.tensor([len(windows)]))


def test_slots_are_pandas_weekday_and_hour(month: tuple[np.ndarray, str]) -> None:
    _, path = month
    windows = load_dataset(DataSpec(path=path)).windows("test")
    batch = all_of(windows)
    times = pd.DatetimeIndex(windows.times(torch.arange(len(windows))).ravel())
    np.testing.assert_array_equal(batch.target_slot.numpy().ravel(), times.day_of_week * 24 + times.hour)
    earlier = times - pd.Timedelta(hours=P)
    np.testing.assert_array_equal(batch.history_slot.numpy().ravel(), earlier.day_of_week * 24 + earlier.hour)


@pytest.mark.parametrize("train_ratio", [1.0, 0.7])
def test_season_is_the_mean_of_the_other_train_readings(tmp_path: Path, train_ratio: float) -> None:
    data = counts(6 * 7 * 24)
    dataset = load_dataset(DataSpec(path=write(tmp_path, data), train_ratio=train_ratio))
    train_end = int(705 * train_ratio)
    times = pd.date_range(START, periods=len(data), freq="h")
    slot = (times.day_of_week * 24 + times.hour).to_numpy()
    spread, center = dataset.scaler.spread, dataset.scaler.center
    residuals = []
    for segment in ("train", "validation", "test"):
        windows = dataset.windows(segment)
        batch = all_of(windows)
        for i in range(0, len(windows), 29):
            for q in range(Q):
                t = int(batch.start[i]) + P + q
                others = np.flatnonzero((slot[:train_end] == slot[t]) & (np.arange(train_end) != t))
                expected = data[others].astype(np.float64).mean(axis=0)
                np.testing.assert_allclose(batch.target_season[i, q].numpy() * spread + center, expected, atol=1e-4)
                plain = data[:train_end][slot[:train_end] == slot[t]].astype(np.float64).mean(axis=0)
                np.testing.assert_allclose(batch.target_profile[i, q].numpy() * spread + center, plain, atol=1e-4)
            if i >= P:  # the history of this window is the target of the window P steps earlier
                assert torch.equal(batch.history_season[i], batch.target_season[i - P])
    for t in range(train_end):
        others = np.flatnonzero((slot[:train_end] == slot[t]) & (np.arange(train_end) != t))
        residuals.append(data[t] - data[others].astype(np.float64).mean(axis=0))
    assert dataset.info.season_count == min(np.bincount(slot[:train_end]))
    assert dataset.info.residual_std == pytest.approx(np.std(residuals) / spread, rel=1e-9)
    assert dataset.info.residual_flow_std == pytest.approx(np.std(np.diff(residuals, axis=0)) / spread, rel=1e-9)
    assert dataset.info.flow_std == pytest.approx(
        np.std(np.diff(data[:train_end].astype(np.float64), axis=0)) / spread, rel=1e-9
    )


def test_a_slot_seen_once_is_left_out_by_the_hour_of_the_other_days(tmp_path: Path) -> None:
    data = counts(12 * 24)  # train: 8.4 days, so most slots of the week occur once
    dataset = load_dataset(DataSpec(path=write(tmp_path, data, start=np.datetime64("2024-01-01", "s"))))
    assert dataset.info.season_count == 1
    batch = all_of(dataset.windows("train"))
    t = 2 * 24 + 9  # Wednesday 09:00; the train segment has no other
    train = data[: int(288 * 0.7)].astype(np.float64)
    others = [d * 24 + 9 for d in range(9) if d != 2 and d * 24 + 9 < len(train)]
    expected = train[others].mean(axis=0)
    season = batch.target_season[t - P, 0].numpy() * dataset.scaler.spread + dataset.scaler.center
    np.testing.assert_allclose(season, expected, atol=1e-4)
    profile = batch.target_profile[t - P, 0].numpy() * dataset.scaler.spread + dataset.scaler.center
    days = [d * 24 + 9 for d in range(9) if d * 24 + 9 < len(train)]
    np.testing.assert_allclose(profile, train[days].mean(axis=0), atol=1e-4)  # the only reading would be the target itself


def test_no_season_without_a_week_of_training_or_without_times(tmp_path: Path) -> None:
    few_days = load_dataset(DataSpec(path=write(tmp_path, counts(8 * 24), "few.npz")))
    no_times = load_dataset(DataSpec(path=write(tmp_path, counts(40 * 24), "no_times.npz", start=None)))
    for dataset in (few_days, no_times):
        batch = all_of(dataset.windows("train"))
        assert batch.history_season is None
        assert batch.target_season is None
        assert dataset.info.season_count == 0
        assert dataset.info.residual_std is None
    assert few_days.info.slots_per_day == 24
    assert no_times.info.slots_per_day is None
    assert all_of(no_times.windows("test")).target_slot is None
    assert no_times.windows("test").times(torch.arange(3)) is None


def test_nothing_after_the_train_segment_changes_what_is_fitted(tmp_path: Path) -> None:
    data = counts(40 * 24)
    train_end = int(len(data) * 0.7)
    changed = data.copy()
    changed[train_end:] = counts(len(data) - train_end, seed=1) * 50
    one, two = (load_dataset(DataSpec(path=write(tmp_path, d, f"{i}.npz"))) for i, d in enumerate((data, changed)))
    assert one.scaler == two.scaler
    assert one.info == two.info
    assert one.nonnegative == two.nonnegative
    assert one.sha256 != two.sha256
    for segment in ("train", "validation", "test"):
        for name in ("history_season", "target_season", "target_profile"):
            assert torch.equal(getattr(all_of(one.windows(segment)), name), getattr(all_of(two.windows(segment)), name))
    assert all(
        torch.equal(a, b)
        for a, b in zip(all_of(one.windows("train")), all_of(two.windows("train")), strict=True)
        if a is not None
    )


def test_nothing_after_the_history_is_in_what_a_model_may_read(tmp_path: Path) -> None:
    data = counts(40 * 24)
    spec = DataSpec(path=write(tmp_path, data, "a.npz"))
    before = load_dataset(spec).windows("validation")
    start = int(before.starts[10])
    data[start + P :] += 1000
    after = load_dataset(DataSpec(path=write(tmp_path, data, "b.npz"))).windows("validation")
    one, two = (w.gather(torch.tensor([10])) for w in (before, after))
    for name in ("history", "history_slot", "history_season", "target_slot", "target_season", "target_profile"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_few_shot_takes_the_start_of_the_train_segment_and_refits(tmp_path: Path) -> None:
    data = counts(1000) + np.arange(1000, dtype=np.float32)[:, None, None, None]
    path = write(tmp_path, data)
    full, few = load_dataset(DataSpec(path=path)), load_dataset(DataSpec(path=path, train_ratio=0.29))
    assert len(few.windows("train")) == 203 - (P + Q) + 1
    assert few.scaler.inverse(torch.ones(())) == data[:203].max()
    for segment in ("validation", "test"):
        assert torch.equal(few.windows(segment).starts, full.windows(segment).starts)
        targets = [d.scaler.inverse(all_of(d.windows(segment)).target) for d in (few, full)]
        torch.testing.assert_close(*targets)
    assert few.protocol == full.protocol


def test_the_null_value_is_masked_in_targets(tmp_path: Path) -> None:
    data = counts(300)
    data[::7] = 0
    path = write(tmp_path, data)
    windows = load_dataset(DataSpec(path=path, null=0.0)).windows("test")
    start = int(windows.starts[4])
    assert torch.equal(
        windows.gather(torch.tensor([4])).target_mask[0], torch.from_numpy(data[start + P : start + P + Q] != 0)
    )


def test_negative_train_values_lift_the_clamp(tmp_path: Path) -> None:
    data = counts(300)
    assert load_dataset(DataSpec(path=write(tmp_path, data, "a.npz"))).nonnegative
    data[5] = -1
    assert not load_dataset(DataSpec(path=write(tmp_path, data, "b.npz"))).nonnegative


def test_the_fewest_steps_that_are_named_do_and_one_less_does_not(tmp_path: Path) -> None:
    for changes in ({}, {"train_ratio": 0.05}, {"history": 3, "horizon": 1}, {"split": (0.8, 0.1, 0.1)}):
        spec = DataSpec(path="unused", **changes)
        needed = steps_needed(spec)
        assert all(
            len(load_dataset(spec.model_copy(update={"path": write(tmp_path, counts(t), start=None)})).windows("test"))
            for t in range(needed, needed + 12)
        )
        load_dataset(spec.model_copy(update={"path": write(tmp_path, counts(needed), "enough.npz", start=None)}))
        with pytest.raises(DataError, match=f"At least {needed} steps"):
            load_dataset(spec.model_copy(update={"path": write(tmp_path, counts(needed - 1), "short.npz", start=None)}))


def test_a_dataset_is_frozen_and_knows_its_segments(month: tuple[np.ndarray, str]) -> None:
    dataset = load_dataset(DataSpec(path=month[1]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="train, validation, test"):
        dataset.windows("holdout")


def test_the_published_anchors_of_the_real_file() -> None:
    """RMSE/MAE of the hour of the week, the last value and the last window (protocol: "Deterministic anchors")."""
    path = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "nycbike1.npz"
    if not path.exists():
        pytest.skip("the real data file is not here")
    dataset = load_dataset(DataSpec(path=str(path)))
    windows = dataset.windows("test")
    assert len(windows) == 195
    batch = all_of(windows)
    forecasts = {
        (7.186, 3.038): batch.target_season,
        (17.781, 8.022): batch.history[:, -1:].expand_as(batch.target),
        (22.029, 10.804): batch.history,
        (11.172, 4.594): torch.stack([windows.series[s + P - 24 : s + P - 24 + Q] for s in windows.starts]),
        (8.876, 3.628): torch.stack([windows.series[s + P - 168 : s + P - 168 + Q] for s in windows.starts]),
    }
    for (rmse, mae), forecast in forecasts.items():
        error = ((forecast - batch.target) * dataset.scaler.spread).double()
        assert error.square().mean().sqrt().item() == pytest.approx(rmse, abs=5.1e-4)
        assert error.abs().mean().item() == pytest.approx(mae, abs=5.1e-4)
