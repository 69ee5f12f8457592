"""What `stlab data inspect` finds odd: each kind put into sound data, which has none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.dates
import numpy as np
import pytest

from stlab.data import load_dataset
from stlab.data.formats.content import Series
from stlab.data.formats.readers import read_content
from stlab.data.protocol.split import segments_of
from stlab.inspection.data_summary import coverage_of
from stlab.inspection.findings import findings
from stlab.report.figures.data_set import data_set_figure
from stlab.study.spec import DataSpec

WEEKS, NODES = 8, 20
STEPS = WEEKS * 168


def sound() -> np.ndarray:
    """(T, N) hourly flows: a daily wave and noise, no level that moves."""
    draw = np.random.default_rng(0)
    wave = 100 + 40 * np.sin(2 * np.pi * np.arange(STEPS) / 24)[:, None] * draw.uniform(0.5, 1.5, NODES)
    return wave + draw.normal(0, 5, (STEPS, NODES))


def found(values: np.ndarray, null: float | None = None, left_out: str = "") -> list[str]:
    times = np.datetime64("2024-01-01", "s") + np.arange(STEPS) * np.timedelta64(3600, "s")
    names = tuple(f"s{node}" for node in range(NODES))
    series = Series(
        values.astype(np.float32)[..., None], times, "net", "net", channel_names=("flow",), node_names=names, null=null, left_out=left_out
    )
    return findings(series, "sensors", segments_of(STEPS, (0.6, 0.2, 0.2), 1.0))


def test_sound_data_has_nothing_odd() -> None:
    assert found(sound()) == []


def gaps(values: np.ndarray) -> None:
    values[100:150] = np.nan
    values[300:302] = np.nan


def stuck(values: np.ndarray) -> None:
    values[200:230, 3] = 42.0
    values[200:223, 5] = 42.0  # 23 hours: no day


def outliers(values: np.ndarray) -> None:
    values[77, 4] = 3000.0


def negative(values: np.ndarray) -> None:
    values[[5, 6, 7], 2] = -1.0


def level(values: np.ndarray) -> None:
    values[int(STEPS * 0.8) :] *= 1.3


def one_place(values: np.ndarray) -> None:
    values[int(STEPS * 0.8) :, 7] *= 0.5


def zeros(values: np.ndarray) -> None:
    values[::2] = 0
    values[1::4] = 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gaps, "flow: 52 steps have no reading anywhere, in 2 gaps, the longest of 50 steps (2.1 days). Set data.missing"),
        (stuck, "flow: 1 place (s3) said the same for a day or longer"),
        (outliers, "flow: 1 readings are more than ten times as far from their place's median as 98 % of its readings, the first at "
         "2024-01-04T05:00:00, s4: 3000"),
        (negative, "flow: 3 readings are negative, where all others are not"),
        (level, "flow: at the same hours of the week, the test segment has 30 % more than the train segment. Models that know"),
        (one_place, "flow: 1 of 20 places that are not nearly empty shift by 20 % or more from the train to the test segment, at the "
         "same hours of the week (most: s7: 50 % less)"),
        (zeros, "flow: 75 % of the readings are 0"),
    ],
)  # fmt: skip
def test_each_kind_is_found_alone(change: Callable[[np.ndarray], None], words: str) -> None:
    values = sound()
    change(values)
    sentences = found(values)
    assert [sentence for sentence in sentences if words in sentence], sentences
    assert len(sentences) == 1, sentences


def test_a_value_that_means_none_is_a_gap_and_not_stuck() -> None:
    values = sound()
    values[100:150] = 0
    (sentence,) = found(values, null=0.0)
    assert "50 steps have no reading anywhere" in sentence
    assert found(values, left_out="a gap.")[0] == "a gap. Set data.missing: interpolate, or look why they are gone."


def test_findings_stand_on_the_terminal_and_missing_readings_in_the_picture(say: Callable[..., Any]) -> None:
    values = sound()[:, :4]
    values[50:60] = np.nan
    times = np.datetime64("2024-01-01T00", "s") + np.arange(STEPS) * np.timedelta64(3600, "s")
    np.savez("net.npz", data=values.astype(np.float32)[..., None], timestamps=times)
    answer = say("data", "inspect", "net.npz", "--set", "data.family=sensors", "--set", "data.missing=zero")
    assert answer.code == 0, answer
    assert "finding" in answer.out
    assert "10 steps have no reading anywhere, in 1 gaps" in answer.out
    spec = DataSpec(path="net.npz", family="sensors", missing="zero")
    coverage = coverage_of(read_content(spec), spec)
    assert coverage is not None
    np.testing.assert_array_equal(coverage.missing, np.isnan(values).all(axis=1))
    figure = data_set_figure(load_dataset(spec), coverage)
    panel = next(axes for axes in figure.axes if "missing readings by day and hour" in axes.get_title(loc="left"))
    (image,) = panel.get_images()
    shown = np.asarray(image.get_array())  # hours down, days across
    np.testing.assert_array_equal(shown.T.reshape(-1)[:STEPS], 100 * coverage.missing)
    lines = [line.get_xdata()[0] for line in panel.get_lines()]
    first_steps = [times[int(STEPS * share)] for share in (0.6, 0.8)]
    np.testing.assert_allclose(lines, [matplotlib.dates.date2num(time) for time in first_steps], atol=1 / 24)
