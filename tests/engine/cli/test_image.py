"""``stlab image``: the window and the nodes that were asked for, and the answers to what cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab.report.figures import nodes as node_figures

STEPS, NODES = 200, 30
START = np.datetime64("2024-01-01T00:00", "s")


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Readings of 30 sensors every five minutes; sensor 12 is silent from step 96 on, two readings are missing."""
    draw = np.random.default_rng(2)
    data = 50 + 8 * np.sin(np.arange(STEPS)[:, None] / 9) + draw.standard_normal((STEPS, NODES))
    data[96:, 12] = 20 + draw.random(STEPS - 96)
    data[100, :2] = 0
    path = tmp_path_factory.mktemp("roads") / "roads.npz"
    times = START + np.arange(STEPS) * np.timedelta64(300, "s")
    np.savez(path, data=data[..., None].astype(np.float32), timestamps=times)
    return path


@pytest.fixture(scope="module")
def timeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timeless") / "roads.npz"
    np.savez(path, data=np.random.default_rng(0).random((STEPS, 5, 1)).astype(np.float32) + 1)
    return path


def by_own_means(window: np.ndarray) -> dict[str, np.ndarray]:
    """The three channels of (P, N) scaled readings, in plain float64."""
    steps, nodes = window.shape
    cost = np.zeros((nodes, nodes))
    lagged = np.zeros((nodes, nodes))
    centred = window - window.mean(axis=0)
    for i in range(nodes):
        for j in range(nodes):
            path = np.full((steps + 1, steps + 1), np.inf)
            path[0, 0] = 0.0
            for a in range(steps):
                for b in range(steps):
                    gap = abs(window[a, i] - window[b, j])
                    path[a + 1, b + 1] = gap + min(path[a, b], path[a, b + 1], path[a + 1, b])
            cost[i, j] = path[-1, -1]
            norm = np.sqrt((centred[:, i] ** 2).sum() * (centred[:, j] ** 2).sum())
            lagged[i, j] = np.correlate(centred[:, i], centred[:, j], "full").max() / norm
    spectrum = np.corrcoef(np.abs(np.fft.rfft(centred, axis=0))[1:].T)
    return {
        "dtw": (cost - cost.min()) / (cost.max() - cost.min()),
        "cross_correlation": (lagged + 1) / 2,
        "spectrum": (spectrum + 1) / 2,
    }


def test_the_image_is_that_of_the_window_and_the_nodes(
    roads: Path, say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    image_figure = node_figures.image_figure
    monkeypatch.setattr(node_figures, "image_figure", lambda *given: (drawn.append(given), image_figure(*given))[1])
    answer = say("image", "--data", str(roads), "--at", "2024-01-01T08:00", "--nodes", "10:20,0", "--picture", "x.png")
    assert (answer.code, answer.err) == (0, "")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    (channels, names, marked, title), *_ = drawn
    data = np.load(roads)["data"][..., 0].astype(np.float64)
    train = data[:120][data[:120] != 0]
    nodes = [*range(10, 20), 0]
    expected = by_own_means((data[96:108, nodes] - train.mean()) / train.std())
    assert list(channels) == list(expected)
    for name, image in expected.items():
        np.testing.assert_allclose(channels[name], image, atol=2e-4, err_msg=name)
    assert names == [str(node) for node in nodes]
    assert marked[0] == 2  # node 12
    assert title == "roads, 2024-01-01 08:00 to 08:55, 11 of 30 nodes"
    for says in ("step 96, 12 steps", "11 of 30 nodes", "1 of 132 missing", "stands out  12 (−", "x.png"):
        assert says in answer.out, says


def test_the_first_window_of_all_nodes_is_the_default(timeless: Path, say: Callable[..., Any]) -> None:
    answer = say("image", "--data", str(timeless))
    assert (answer.code, answer.err) == (0, "")
    assert "step 0, 12 steps: steps 0 to 11" in answer.out
    assert Path("roads_image.png").exists()
    again = say("image", "--data", str(timeless), "--at", "188")
    assert again.code == 2
    assert "roads_image.png already exists. Name another file with --picture" in again.err
    last = say("image", "--data", str(timeless), "--at", "188", "--picture", "last.png")
    assert "step 188, 12 steps: steps 188 to 199" in last.out


def test_a_grid_is_a_network_of_its_cells(grid: dict[str, np.ndarray], say: Callable[..., Any]) -> None:
    np.savez("city.npz", **grid)  # type: ignore[arg-type]
    answer = say("image", "--data", "city.npz", "--set", "data.history=6", "--picture", "x.png")
    assert (answer.code, answer.err) == (0, "")
    assert "step 0, 6 steps" in answer.out
    assert "16 nodes; the image is made of these alone" in answer.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--at", "2024-01-01T08:02"), "steps, which are 300 s apart. Give 2024-01-01T08:00:00 or 2024-01-01T08:05:00"),
        (("--at", "2024-01-01T16:35"), "12 steps can start from 2024-01-01T00:00:00 to 2024-01-01T15:40:00"),
        (("--at", "2023-12-31"), "outside the series"),
        (("--at", "noon"), "neither an ISO time, such as 2024-01-01T00:00:00, nor the index of a step"),
        (("--at", "2024-01-01T08:00+02:00"), "no time zone. Leave it out: 2024-01-01T08:00:00"),
        (("--at", "189"), "can start at step 0 to 188; the series has 200 steps"),
        (("--at=-1",), "can start at step 0 to 188"),
        (("--nodes", "5:5"), "'5:5' holds no node, since the end is not included. Give, for example, 0:20"),
        (("--nodes", "20:31"), "there are 30 nodes, 0 to 29; '20:31' goes beyond"),
        (("--nodes", "30"), "there are 30 nodes, 0 to 29"),
        (("--nodes", ""), "'' is neither A:B nor an index"),
        (("--nodes", "a:b"), "'a:b' is neither A:B nor an index"),
        (("--nodes=-3:5",), "'-3:5' is neither A:B nor an index"),
        (("--nodes", "0:4,2"), "node 2 appears twice. Name each node once"),
        (("--set", "data.family=grid"), "the image relates nodes. Leave the family out"),
        (("--set", "data.histroy=6"), "histroy"),
        (("--picture", "absent/x.png"), "there is no folder absent"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_says_why_and_what_to_do(
    roads: Path, say: Callable[..., Any], arguments: tuple[str, ...], says: str
) -> None:
    answer = say("image", "--data", str(roads), *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert not list(Path().glob("*.png"))


def test_a_time_needs_timestamps(timeless: Path, say: Callable[..., Any]) -> None:
    answer = say("image", "--data", str(timeless), "--at", "2024-01-01")
    assert answer.code == 2
    assert "no timestamps. Give the index of a step, 0 to 188, or the times with --set data.start=" in answer.err
    given = ("--set", "data.start=2024-01-01", "--set", "data.step_minutes=5", "--at", "2024-01-01T00:10")
    answer = say("image", "--data", str(timeless), *given)
    assert answer.code == 0
    assert "step 2, 12 steps: 2024-01-01 00:10 to 01:05" in answer.out
