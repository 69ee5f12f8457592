"""Files: what is read, how it is hashed, what is refused and in which words."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlab.data import load_dataset
from stlab.data.formats.content import content_hash
from stlab.errors import DataError
from stlab.inspection.data_summary import summarise
from stlab.study.spec import DataSpec
from tests.support.unist_file import unist_file

HOURS = np.datetime64("2024-03-04", "s") + np.arange(200) * np.timedelta64(3600, "s")
SHAPE = (200, 2, 3, 4)


def grid(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(9, SHAPE).astype(np.float32)


def saved(folder: Path, **arrays: Any) -> str:
    path = folder / "city.npz"
    np.savez(path, **arrays)
    return str(path)


def refuses(path: str, *words: str, **changes: Any) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(DataSpec(path=path, **changes))
    message = str(caught.value)
    assert message.startswith(str(Path(path)))
    for word in words:
        assert word in message, message


def test_one_content_has_one_hash_in_any_container(tmp_path: Path) -> None:
    data = grid()
    hashes = set()
    np.savez_compressed(tmp_path / "a.npz", data=data, timestamps=HOURS)
    np.savez(
        tmp_path / "b.npz", timestamps=HOURS.astype("datetime64[ns]"), data=np.asfortranarray(data.astype(np.float64))
    )
    np.savez(tmp_path / "c.npz", data=data.astype(">f4"), timestamps=HOURS, extra=np.zeros(3))
    np.savez(tmp_path / "d.npz", data=data.astype(np.int16), timestamps=HOURS)
    np.savez(tmp_path / "e.npz", data=data.astype(np.float16), timestamps=HOURS)
    for name in "abcde":
        hashes.add(load_dataset(DataSpec(path=str(tmp_path / f"{name}.npz"))).sha256)
    assert len(hashes) == 1
    others = {
        content_hash(data + 1, HOURS),
        content_hash(data, HOURS + 1),
        content_hash(data, None),
        content_hash(data[:, :1], HOURS),
    }
    assert len(others | hashes) == 5


def test_the_fingerprint_is_plain_json_and_names_kinds(tmp_path: Path) -> None:
    dataset = load_dataset(DataSpec(path=saved(tmp_path, data=grid(), timestamps=HOURS)))
    assert json.loads(json.dumps(dataset.protocol)) == dataset.protocol
    assert dataset.protocol == {
        "protocol": "forecast",
        "data_sha256": dataset.sha256,
        "family": "grid",
        "channels": 2,
        "channel": None,
        "history": 6,
        "horizon": 6,
        "split": [0.7, 0.15, 0.15],
        "scaler": "min-max",
        "mask": None,
        "scale": 1.0,
        "missing": "none",
    }
    assert (dataset.name, dataset.synthetic, dataset.leaks, dataset.clamp) == ("city", False, False, None)


def test_wrong_arrays(tmp_path: Path) -> None:
    refuses(saved(tmp_path, values=grid(), timestamps=HOURS), "no array `data`", "values, timestamps")
    refuses(saved(tmp_path, data=grid()[:, 0]), "3 axes", "(200, 3, 4)", "(T, C, H, W)", "data[:, None]")
    refuses(saved(tmp_path, data=grid()[:, :, :0]), "axis H", "length 0")
    refuses(saved(tmp_path, data=grid().astype(str)), "`data`", "not real numbers")
    refuses(saved(tmp_path, data=grid().astype(object)), "`data`", "pickled", "refused", "float32")
    refuses(saved(tmp_path, data=np.full(SHAPE, 3.0)), "every value", "is 3")
    refuses(saved(tmp_path, data=np.broadcast_to(grid()[:1], SHAPE)), "changes", "nothing to learn")
    large = grid().astype(np.float64)
    large[7, 1, 2, 3] = 1e39
    refuses(saved(tmp_path, data=large), "1 values", "float32", "[T=7, C=1, H=2, W=3]", "1e+39")
    large[7, 1, 2, 3] = np.inf
    refuses(saved(tmp_path, data=large), "1 of 4800", "[T=7, C=1, H=2, W=3]", "inf")


def test_missing_values_are_counted_and_placed(tmp_path: Path) -> None:
    data = grid()
    data[5, 0, 1, 2] = np.nan
    data[9, 1] = np.nan
    path = saved(tmp_path, data=data, timestamps=HOURS)
    refuses(path, "13 of 4800", "[T=5, C=0, H=1, W=2]", "2024-03-04T05:00:00", "data.missing", "zero", "interpolate")
    zero = load_dataset(DataSpec(path=path, missing="zero"))
    assert not zero.leaks
    assert zero.protocol["missing"] == "zero"
    np.testing.assert_array_equal(zero.train.values, np.nan_to_num(data[:140]))


def test_interpolation_is_numpys_and_stays_in_its_segment(tmp_path: Path) -> None:
    data = grid()
    rng = np.random.default_rng(3)
    gaps = rng.random(SHAPE) < 0.3
    gaps[136:144, 0, 0, 0] = True  # across the end of the train segment, 140
    gaps[:5, 1, 1, 1] = True
    holed = np.where(gaps, np.nan, data)
    dataset = load_dataset(DataSpec(path=saved(tmp_path, data=holed, timestamps=HOURS), missing="interpolate"))
    assert dataset.leaks  # a gap is closed from both sides
    assert dataset.protocol["missing"] == "interpolate"
    series = dataset.scaler.inverse(dataset.windows("train").series.double()).numpy()
    for end, start in ((140, 0), (170, 140), (200, 170)):
        for cell in np.ndindex(SHAPE[1:]):
            known = np.flatnonzero(~gaps[(slice(end), *cell)])
            expected = np.interp(np.arange(end), known, data[(known, *cell)].astype(np.float64))
            np.testing.assert_allclose(series[(slice(start, end), *cell)], expected[start:], atol=1e-4)
    gaps[:140, 1, 2, 3] = True
    refuses(
        saved(tmp_path, data=np.where(gaps, np.nan, data)), "1 series", "[C=1, H=2, W=3]", "zero", missing="interpolate"
    )


def test_wrong_timestamps(tmp_path: Path) -> None:
    data = grid()
    refuses(saved(tmp_path, data=data, timestamps=HOURS[:-1]), "(199,)", "200 steps")
    refuses(saved(tmp_path, data=data, timestamps=np.arange(200)), "int64", "datetime64")
    gap = HOURS.copy()
    gap[50:] += 3600
    refuses(saved(tmp_path, data=data, timestamps=gap), "irregular", "index 49", "index 50", "7200", "3600 s")
    back = HOURS.copy()
    back[60:] -= 3600
    refuses(
        saved(tmp_path, data=data, timestamps=back), "does not increase", "index 60", "index 59", "2024-03-06T11:00:00"
    )
    holed = HOURS.copy()
    holed[3] = np.datetime64("NaT")
    refuses(saved(tmp_path, data=data, timestamps=holed), "index 3", "NaT")
    refuses(saved(tmp_path, data=data, timestamps=HOURS.astype("datetime64[ms]") + 5), "whole second")
    seven = HOURS[0] + np.arange(200) * np.timedelta64(7 * 3600, "s")
    refuses(saved(tmp_path, data=data, timestamps=seven), "25200 s", "does not divide a day")


def test_too_few_steps_say_how_many_are_needed(tmp_path: Path) -> None:
    path = saved(tmp_path, data=grid()[:60])
    # 77 steps: boundaries 53 and 65, so 12 steps of validation and of test; 76: 53 and 64, one too few for validation
    refuses(path, "60 steps are too few", "6 + 6 = 12", "At least 77 steps")
    refuses(path, "train_ratio 0.01", train_ratio=0.01)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, data=grid(), timestamps=HOURS))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuses(str(path), "truncated")
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    refuses(str(path), "damaged")
    path.write_bytes(b"")
    refuses(str(path), "truncated", "0 bytes")
    path.write_bytes(pickle.dumps({"data": 1}))
    refuses(str(path), "no .npz archive")
    with path.open("wb") as stream:
        np.save(stream, grid())
    refuses(str(path), "single array", "np.savez")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    saved(tmp_path, data=grid())
    refuses(str(tmp_path / "ctiy.npz"), "no such file", f"Did you mean {tmp_path / 'city.npz'}")
    refuses(str(tmp_path / "zzzzzzzzz.json"), "no such file", "there is city.npz")
    refuses(str(tmp_path / "nowhere" / "city.npz"), "no folder")
    refuses(str(tmp_path), "a folder", "city.npz")
    (tmp_path / "city.xyz").touch()
    refuses(str(tmp_path / "city.xyz"), "'.xyz'", ".npz", ".json")
    refuses("synthetic:town", "synthetic:city")
    refuses(saved(tmp_path, data=grid()), "protocol", "ready-made", protocol="unist")


def test_unist_windows_are_scaled_and_clamped_over_all_segments(tmp_path: Path) -> None:
    path, arrays = unist_file(tmp_path)
    dataset = load_dataset(DataSpec(path=path, protocol="unist", train_ratio=0.5))
    low, high = min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values())
    assert dataset.clamp == (low, high)
    assert dataset.leaks
    assert (dataset.name, dataset.info.shape, dataset.info.slots_per_day, dataset.info.lookback) == (
        "BikeNYC_short",
        (1, 4, 3),
        24,
        6,
    )
    for segment, key, n in (("train", "train", 20), ("validation", "val", 8), ("test", "test", 9)):
        windows = dataset.windows(segment)
        batch = windows.gather(torch.arange(len(windows)))
        assert len(windows) == n
        scaled = 2 * (arrays[key][:n, :, None] - low) / (high - low) - 1
        np.testing.assert_allclose(batch.history.numpy(), scaled[:, :6], atol=1e-6)
        np.testing.assert_allclose(batch.target.numpy(), scaled[:, 6:], atol=1e-6)
        np.testing.assert_array_equal(batch.target_slot.numpy(), np.arange(n)[:, None] + np.arange(6, 12))
        assert windows.series is None
        assert batch.target_season is None
        assert windows.times(torch.arange(2)) is None
    flow = np.diff(arrays["train"][:20], axis=1).std() / ((high - low) / 2)
    assert dataset.info.flow_std == pytest.approx(flow, rel=1e-9)
    assert json.loads(json.dumps(dataset.protocol))["split"] == "ready-made"


def test_unist_timestamps_as_text_and_as_half_hours(tmp_path: Path) -> None:
    text = load_dataset(DataSpec(path=unist_file(tmp_path, form="text", name="TaxiBJ_short.json")[0], protocol="unist"))
    windows = text.windows("test")
    first = windows.gather(torch.tensor([3]))
    assert text.info.slots_per_day == 48
    assert first.target_slot.tolist() == [[9, 10, 11, 12, 13, 14]]  # a Monday, half hours 3 + 6 …
    assert str(windows.times(torch.tensor([3]))[0, 0]) == "2024-03-04T04:30:00"
    half = load_dataset(DataSpec(path=unist_file(tmp_path, form="half-hours", name="Crowd_short.json")[0], protocol="unist"))
    i = 9  # as UniST's loader: ((i % 336 // 48 + 2) % 7, i % 48)
    expected = (i % 336 // 48 + 2) % 7 * 48 + i % 48
    assert half.windows("test").gather(torch.tensor([3])).target_slot[0, 0] == expected


def test_unist_files_that_cannot_be_used(tmp_path: Path) -> None:
    path, _ = unist_file(tmp_path)
    refuses(path, "protocol: unist", "leak")
    refuses(path, "12 steps", "data.history 6", "data.horizon 3", protocol="unist", horizon=3)
    refuses(path, "train windows is none", protocol="unist", train_ratio=0.01)
    text = Path(path).read_text()
    Path(path).write_text(text[:5000])
    refuses(path, "cut short", protocol="unist")
    Path(path).write_text(re.sub(r'"X_val"', '"X_valid"', text))
    refuses(path, "X_val", "there: timestamps, X_train, X_valid, X_test", protocol="unist")
    ragged, _ = unist_file(tmp_path, X_val=[[[[[1.0, 2.0], [3.0]]]], []])
    refuses(ragged, "`X_val[0]`", "ragged", protocol="unist")
    short, _ = unist_file(tmp_path, timestamps={"train": [[0] * 12], "val": [[0] * 12], "test": [[0] * 12]})
    refuses(short, "timestamps.train", "(1, 12)", "(40, 12)", protocol="unist")
    holed, _ = unist_file(
        tmp_path,
        X_val=[np.full((2, 12, 4, 3), np.nan).tolist(), []],
        timestamps={
            "train": np.zeros((40, 12), int).tolist(),
            "val": np.zeros((2, 12), int).tolist(),
            "test": np.zeros((9, 12), int).tolist(),
        },
    )
    refuses(holed, "288 values of the validation windows", "[0, 0, 0, 0, 0]", protocol="unist")


def test_a_summary_says_what_a_file_holds_even_with_gaps(tmp_path: Path) -> None:
    data = grid()
    data[5, 0, 1, 2] = np.nan
    summary = summarise(DataSpec(path=saved(tmp_path, data=data, timestamps=HOURS)))
    assert (summary.shape, summary.missing, summary.step_seconds, summary.slots_per_day) == (SHAPE, 1, 3600, 24)
    assert [(s.name, s.steps, s.windows, s.start) for s in summary.segments] == [
        ("train", 140, 129, "2024-03-04T00:00:00"),
        ("validation", 30, 19, "2024-03-09T20:00:00"),
        ("test", 30, 19, "2024-03-11T02:00:00"),
    ]
    assert summary.channels[0].mean == pytest.approx(np.nanmean(data[:, 0].astype(np.float64)))
    assert not summary.by_slot_of_week  # 140 hours of training are less than a week
    assert len(summary.problems) == 1
    assert "not finite" in summary.problems[0]
    assert json.loads(json.dumps(summary.to_dict()))["by_slot_of_week"] is False
    assert ("problem", summary.problems[0]) in summary.lines()


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_a_summary_of_a_short_file_names_what_is_lacking(tmp_path: Path, steps: int) -> None:
    summary = summarise(DataSpec(path=saved(tmp_path, data=grid()[:steps], timestamps=HOURS[:steps])))
    assert "At least 77 steps" in summary.problems[0]
    assert summary.lines()


def test_a_summary_of_unist_windows(tmp_path: Path) -> None:
    path, _ = unist_file(tmp_path, form="text")
    summary = summarise(DataSpec(path=path))
    assert "protocol: unist" in summary.problems[0]
    assert [(s.name, s.windows, s.steps) for s in summary.segments] == [
        ("train", 40, None),
        ("validation", 8, None),
        ("test", 9, None),
    ]
    assert summary.shape == (57, 12, 1, 4, 3)
    assert (
        summarise(DataSpec(path=path, protocol="unist")).sha256
        == load_dataset(DataSpec(path=path, protocol="unist")).sha256
    )
