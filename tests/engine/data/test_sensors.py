"""Sensor data under the protocol: scaler, season, masks and few-shot against plain float64 numpy, and known figures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlab.catalog import config_class
from stlab.data import Dataset, load_dataset
from stlab.errors import DataError
from stlab.study.identity import trial_id
from stlab.study.plan import make_plan
from stlab.study.spec import DataSpec, ResourcesSpec, StudySpec, TrainSpec, TrialSpec
from stlab.training.metrics import evaluate
from stmodels.baselines.config import BaselineConfig
from stmodels.baselines.model import Baseline
from stmodels.types import Batch

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
HOURS = 5 * 168
NODES = 4
SLOTS_A_DAY = 24
P = Q = 12


def real(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"the real data file {name} is not here")
    return SHARED / name


def traffic(seed: int = 0) -> np.ndarray:
    """(T, N) hourly counts with missing readings (0), a sensor that is dead in the train segment, and one that never
    gives a reading at 03:00, nor on Tuesdays at 05:00."""
    draw = np.random.default_rng(seed)
    hour = np.arange(HOURS) % SLOTS_A_DAY
    values = draw.poisson(30 + 20 * np.sin(hour / SLOTS_A_DAY * 2 * np.pi)[:, None] * [1, 2, 1, 1.0] + 40.0)
    values[draw.random(values.shape) < 0.15] = 0
    values[: int(0.6 * HOURS), 2] = 0
    values[hour == 3, 1] = 0
    values[np.arange(HOURS) % 168 == 24 + 5, 1] = 0
    return values.astype(np.float32)


def saved(folder: Path, values: np.ndarray, start: str | None = "2024-01-01", name: str = "net.npz") -> Path:
    times = {}
    if start is not None:  # 2024-01-01 is a Monday
        times["timestamps"] = np.datetime64(start, "s") + np.arange(len(values)) * np.timedelta64(3600, "s")
    np.savez(folder / name, data=values, **times)
    return folder / name


def load(path: Path, **changes: Any) -> Dataset:
    return load_dataset(DataSpec(path=str(path), family="sensors", **changes))


def all_of(dataset: Dataset, segment: str) -> Batch:
    windows = dataset.windows(segment)
    return windows.gather(torch.arange(len(windows)))


def test_the_scaler_is_the_z_score_of_the_train_readings(tmp_path: Path) -> None:
    values = traffic()
    dataset = load(saved(tmp_path, values))
    readings = values[: int(0.6 * HOURS)].astype(np.float64)
    readings = readings[readings != 0]
    assert dataset.scaler.kind == dataset.protocol["scaler"] == "z-score"
    assert dataset.scaler.center == pytest.approx(readings.sum() / len(readings), rel=1e-12)
    spread = np.sqrt(((readings - readings.sum() / len(readings)) ** 2).sum() / len(readings))
    assert dataset.scaler.spread == pytest.approx(spread, rel=1e-12)
    unmasked = values[: int(0.6 * HOURS)].astype(np.float64)
    everything = load(saved(tmp_path, values), null="none")
    assert everything.scaler.center == pytest.approx(unmasked.mean(), rel=1e-12)
    assert everything.scaler.spread == pytest.approx(unmasked.std(), rel=1e-12)
    assert dataset.info.zero == pytest.approx(-dataset.scaler.center / dataset.scaler.spread)


def test_windows_keep_raw_readings_and_masks_tell_the_missing(tmp_path: Path) -> None:
    values = traffic()
    dataset = load(saved(tmp_path, values))
    for segment, start, end in (("train", 0, 504), ("validation", 504, 672), ("test", 672, 840)):
        batch = all_of(dataset, segment)
        assert len(batch.history) == end - start - (P + Q) + 1
        for i in (0, 7, len(batch.history) - 1):
            history, target = values[start + i :][:P], values[start + i + P :][:Q]
            for got, expected in ((batch.history[i], history), (batch.target[i], target)):
                assert got.shape == (12, NODES, 1)
                np.testing.assert_allclose(dataset.scaler.inverse(got[..., 0]).numpy(), expected, atol=1e-4)
            np.testing.assert_array_equal(batch.target_mask[i, ..., 0].numpy(), target != 0)


def _season(values: np.ndarray, train_end: int, step: int, node: int) -> float:
    """Mean of the other train readings: of the node at the slot of the week, else of the day; else of all nodes."""
    t = np.arange(train_end)
    others = np.broadcast_to((t != step)[:, None], (train_end, NODES)) & (values[:train_end] != 0)
    train = values[:train_end].astype(np.float64)
    for same in (t % 168 == step % 168, t % 24 == step % 24):
        found = train[same & others[:, node], node]
        if len(found):
            return float(found.mean())
    own = np.zeros_like(others)
    own[:, node] = t == step
    return float(train[(values[:train_end] != 0) & ~own].mean())


def test_the_season_and_its_deviations_are_of_readings_alone(tmp_path: Path) -> None:
    values = traffic()
    train_end = int(0.6 * HOURS)
    dataset = load(saved(tmp_path, values))
    expected = np.array([[_season(values, train_end, t, n) for n in range(NODES)] for t in range(HOURS)])
    assert dataset.info.season_count == 3
    for segment, start in (("train", 0), ("validation", 504), ("test", 672)):
        batch = all_of(dataset, segment)
        for i in range(0, len(batch.history), 5):
            for got, first in ((batch.history_season, start + i), (batch.target_season, start + i + P)):
                season = dataset.scaler.inverse(got[i, ..., 0].double()).numpy()
                np.testing.assert_allclose(season, expected[first : first + 12], atol=1e-4)
    train, seen = values[:train_end].astype(np.float64), values[:train_end] != 0
    spread = dataset.scaler.spread
    assert dataset.info.residual_std == pytest.approx((train - expected[:train_end])[seen].std() / spread, rel=1e-9)
    changes = (train[1:] - train[:-1])[seen[1:] & seen[:-1]]
    assert dataset.info.flow_std == pytest.approx(changes.std() / spread, rel=1e-9)


def test_gaps_filled_with_zero_are_missing_readings(tmp_path: Path) -> None:
    values = traffic()
    holed = np.where(values == 0, np.nan, values)
    missing, marked = load(saved(tmp_path, holed, name="nan.npz"), missing="zero"), load(saved(tmp_path, values))
    assert missing.scaler == marked.scaler
    assert missing.info == marked.info
    for one, two in zip(all_of(missing, "test"), all_of(marked, "test"), strict=True):
        assert one is two is None or torch.equal(one, two)
    with pytest.raises(DataError, match="are not finite"):
        load(saved(tmp_path, holed))


def test_any_number_can_mean_no_reading(tmp_path: Path) -> None:
    values = traffic()
    marked = np.where(values == 0, np.float32(-1), values)
    dataset, zeros = load(saved(tmp_path, marked, name="minus.npz"), null=-1), load(saved(tmp_path, values))
    assert dataset.protocol["mask"] == -1.0
    assert dataset.scaler == zeros.scaler
    assert dataset.info == zeros.info
    assert dataset.nonnegative  # the marker is no reading
    assert torch.equal(all_of(dataset, "test").target_mask, all_of(zeros, "test").target_mask)
    assert load(saved(tmp_path, values), null="none").protocol["mask"] is None
    with pytest.raises(ValueError, match="finite"):
        DataSpec(path="x", family="sensors", null=float("nan"))


def test_segments_without_readings_or_change_are_refused(tmp_path: Path) -> None:
    nothing = traffic()
    nothing[:600] = 0
    with pytest.raises(DataError, match=r"no reading in the train segment.*data\.null: none"):
        load(saved(tmp_path, nothing))
    flat = np.where(traffic() == 0, 0, np.float32(7))
    with pytest.raises(DataError, match="every reading in the train segment is 7"):
        load(saved(tmp_path, flat))
    with pytest.raises(DataError, match="At least 118 steps"):  # 70 + 24 + 24
        load(saved(tmp_path, traffic()[:117]))
    assert len(load(saved(tmp_path, traffic()[:118])).windows("validation")) == 1


def test_few_shot_refits_and_leaves_validation_and_test(tmp_path: Path) -> None:
    values = traffic()
    path = saved(tmp_path, values)
    full, few = load(path), load(path, train_ratio=0.2)
    end = int(0.2 * 504)
    readings = values[:end].astype(np.float64)
    assert few.scaler.center == pytest.approx(readings[readings != 0].mean(), rel=1e-12)
    assert few.scaler.spread == pytest.approx(readings[readings != 0].std(), rel=1e-12)
    assert len(few.windows("train")) == end - 24 + 1
    assert few.info.season_count == 0  # 100 hours are no week
    assert few.protocol == full.protocol
    for segment in ("validation", "test"):
        one, two = all_of(few, segment), all_of(full, segment)
        assert torch.equal(one.start, two.start)
        assert torch.equal(one.target_mask, two.target_mask)
        torch.testing.assert_close(few.scaler.inverse(one.target), full.scaler.inverse(two.target), atol=1e-3, rtol=0)


def test_nothing_after_the_train_segment_changes_what_is_fitted(tmp_path: Path) -> None:
    values, later = traffic(), traffic()
    later[504:] = traffic(seed=1)[504:] * 9
    one, two = load(saved(tmp_path, values, name="a.npz")), load(saved(tmp_path, later, name="b.npz"))
    assert (one.scaler, one.info) == (two.scaler, two.info)
    for a, b in zip(all_of(one, "train"), all_of(two, "train"), strict=True):
        assert a is b is None or torch.equal(a, b)
    assert torch.equal(all_of(one, "test").target_season, all_of(two, "test").target_season)


def _errors(dataset: Dataset, name: str) -> dict[str, float]:
    model = Baseline(BaselineConfig(name=name), dataset.info)  # type: ignore[arg-type]
    model.fit(dataset.windows("train"))
    return evaluate(model, dataset, dataset.windows("test"), 64, nullcontext)


_COPIES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "last_value": lambda x, t, day: np.repeat(x[t - 1 : t], 12, axis=0),
    "last_window": lambda x, t, day: x[t - 12 : t],
    "same_slot_yesterday": lambda x, t, day: x[t - day : t - day + 12],
}


def _copied(values: np.ndarray, name: str, day: int) -> tuple[float, float, float]:
    """RMSE, MAE and MAPE over the readings of all test windows, in float64: sums of errors over a count."""
    x = values.astype(np.float64)
    first = int(len(x) * 0.8) + 12
    pairs = [(_COPIES[name](x, t, day), x[t : t + 12]) for t in range(first, len(x) - 11)]
    forecast, truth = (np.stack(part) for part in zip(*pairs, strict=True))
    error = (forecast - truth)[truth != 0]
    relative = np.abs(error) / truth[truth != 0]
    return float(np.sqrt((error**2).mean())), float(np.abs(error).mean()), float(100 * relative.mean())


@pytest.mark.parametrize(
    ("name", "rmse", "mae"),
    [("last_value", 4.677, 2.444), ("last_window", 6.976, 3.834), ("same_slot_yesterday", 3.457, 1.921)],
)
def test_copies_meet_the_figures_of_the_real_file(name: str, rmse: float, mae: float) -> None:
    path = real("metrla_week.npz")
    dataset = load(path)
    with np.load(path) as file:
        plain = _copied(file["data"][:, :, 0], name, 288)
    errors = _errors(dataset, name)
    assert len(dataset.windows("test")) == 381
    assert dataset.info.season_count == 0  # one week: no mean by slot of the week
    assert (errors["rmse"], errors["mae"]) == (pytest.approx(rmse, abs=5.1e-4), pytest.approx(mae, abs=5.1e-4))
    assert (errors["rmse"], errors["mae"], errors["mape"]) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", ["last_value", "last_window", "same_slot_yesterday"])
def test_missing_readings_count_in_no_error(tmp_path: Path, name: str) -> None:
    values = traffic()
    errors = _errors(load(saved(tmp_path, values)), name)
    plain = _copied(values, name, 24)
    assert (errors["rmse"], errors["mae"], errors["mape"]) == pytest.approx(plain, rel=1e-5)
    assert sum(step["count"] for step in errors["horizon"]) == sum(
        int((values[t : t + 12] != 0).sum()) for t in range(672 + 12, HOURS - 11)
    )


def test_the_bikes_of_new_york_as_128_nodes() -> None:
    path = real("nycbike1.npz")
    dataset, other = load(path), load(path, channel=1)
    with np.load(path) as file:
        data = file["data"].astype(np.float64)
    assert dataset.info.shape == (128, 1)
    assert dataset.protocol["mask"] is None
    train = data[: int(0.6 * len(data))]
    for found, channel in ((dataset, 0), (other, 1)):
        assert found.scaler.center == pytest.approx(train[:, channel].mean(), rel=1e-9)
        assert found.scaler.spread == pytest.approx(train[:, channel].std(), rel=1e-9)
    target = dataset.scaler.inverse(all_of(dataset, "test").target[5, 0, :, 0].double()).numpy()
    np.testing.assert_allclose(target, data[int(0.8 * len(data)) + 5 + 12, 0].ravel(), atol=1e-4)
    assert all_of(dataset, "test").target_mask is None
    assert _errors(dataset, "slot_of_week_mean")["rmse"] < _errors(dataset, "last_value")["rmse"]


def test_what_lies_beside_the_readings_is_no_part_of_a_trials_identity(tmp_path: Path) -> None:
    config = config_class("last_value")(name="last_value")

    def identity(**data: Any) -> str:
        trial = TrialSpec(
            study="s", variant="v", seed=0, model={"name": "last_value"}, train=TrainSpec(),
            data=DataSpec(**{"path": "a.npz", "family": "sensors", **data}), resources=ResourcesSpec(),
        )  # fmt: skip
        return trial_id(trial, config, "hash of values and times")

    plain = identity()
    assert identity(path="b.npz", node_ids="ids.txt", distances="edges.csv") == plain
    assert identity(start="2018-01-01", step_minutes=5) == plain  # times are in the hash of the content
    assert identity(horizon=6) != plain
    assert identity(channel=1) != plain


def test_paths_beside_the_data_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[DataSpec] = []

    def facts(data: DataSpec) -> Any:
        seen.append(data)
        raise DataError("enough")

    study = StudySpec.model_validate(
        {
            "name": "s",
            "base": {
                "data": {"path": "a.npz", "family": "sensors", "node_ids": "ids.txt", "distances": "edges.csv"},
                "model": {"name": "last_value"},
            },
        }
    )
    with pytest.raises(DataError, match="enough"):
        make_plan(study, facts)
    assert (seen[0].path, seen[0].node_ids, seen[0].distances) == tuple(
        str(tmp_path / name) for name in ("a.npz", "ids.txt", "edges.csv")
    )
