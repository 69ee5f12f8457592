"""The generated city: the same everywhere, labelled, and with more to learn than the hour of the week."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from stlab.data import load_dataset
from stlab.inspection.data_summary import summarise
from stlab.report.figures.data_set import data_set_figure
from stlab.study.spec import DataSpec

CITY = DataSpec(path="synthetic:city")


def test_it_is_the_same_everywhere_and_says_what_it_is() -> None:
    dataset = load_dataset(CITY)
    # Written down once: a city that differs by a single trip is another data set, and rows of the two do not compare.
    assert dataset.sha256 == "3e6fec62088d612de142f99b3ff0307ac8ca01f380e4db496d216f82b19686e8"
    assert (dataset.name, dataset.synthetic, dataset.info.shape) == ("synthetic city", True, (2, 8, 8))
    assert "synthetic" in dict(summarise(CITY).lines())["data"]
    values = dataset.scaler.inverse(dataset.windows("train").series.double()).numpy()
    assert len(values) == 6 * 7 * 24
    np.testing.assert_allclose(values, np.round(values), atol=1e-4)
    assert dataset.nonnegative
    assert dataset.info.season_count >= 4


def test_the_last_hours_tell_more_than_the_hour_of_the_week() -> None:
    """A least-squares line from the last six seasonal residuals to the next beats the season by a tenth, on the test
    segment."""
    dataset = load_dataset(CITY)

    def residuals(segment: str) -> tuple[np.ndarray, np.ndarray]:
        windows = dataset.windows(segment)
        batch = windows.gather(torch.arange(len(windows)))
        before = (batch.history - batch.history_season).double().numpy()
        ahead = (batch.target - batch.target_season).double().numpy()
        city = np.broadcast_to(before.mean(axis=(3, 4), keepdims=True), before.shape)
        features = np.concatenate([before, city], axis=1)
        return np.moveaxis(features, 1, -1).reshape(-1, 12), np.moveaxis(ahead, 1, -1).reshape(-1, 6)

    x, y = residuals("train")
    line, *_ = np.linalg.lstsq(x, y, rcond=None)
    x, y = residuals("test")
    assert np.sqrt(np.mean((y - x @ line) ** 2)) < 0.9 * np.sqrt(np.mean(y**2))


def test_its_picture_says_that_it_is_synthetic() -> None:
    figure = data_set_figure(load_dataset(CITY))
    assert isinstance(figure, Figure)
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert any("synthetic" in text for text in texts)
    maps = [image.get_array() for axes in figure.axes for image in axes.get_images()]
    assert len(maps) == 2
    np.testing.assert_allclose(
        maps[0], load_dataset(CITY).train.values[:, 0].astype(np.float64).mean(axis=0), rtol=1e-6
    )
