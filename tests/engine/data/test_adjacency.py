"""The matrix of a network against its definition, written out, and against pandas; where there is none, an error says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stlab.data import load_dataset
from stlab.errors import DataError
from stlab.study.spec import DataSpec

NODES, STEPS = 6, 400
EDGES = [(0, 1, 100.0), (1, 2, 250.0), (2, 0, 900.0), (3, 4, 120.0), (4, 4, 0.0)]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sensors; the fourth follows the first, the fifth runs against it, and the last never changes."""
    draw = np.random.default_rng(2)
    values = 50 + 10 * np.sin(np.arange(STEPS) / 5)[:, None] + draw.normal(0, 8, (STEPS, NODES))
    values[:, 3] = values[:, 0] + draw.normal(0, 1, STEPS)
    values[:, 4] = 90 - values[:, 0] + draw.normal(0, 2, STEPS)
    values[:, 5] = 40
    values[draw.random(values.shape) < 0.05] = 0  # missing readings
    folder = tmp_path_factory.mktemp("net")
    np.savez(folder / "net.npz", data=values[..., None].astype(np.float32))
    pd.DataFrame(EDGES, columns=["from", "to", "cost"]).to_csv(folder / "edges.csv", index=False)
    return folder


def matrix(net: Path, **data: Any) -> np.ndarray | None:
    found = load_dataset(DataSpec(path=str(net / "net.npz"), family="sensors", **data)).info.adjacency
    return None if found is None else found.numpy()


def test_connected_nodes_see_each_other(net: Path) -> None:
    expected = np.zeros((NODES, NODES))
    for i, j in ((0, 1), (1, 2), (2, 0), (3, 4)):
        expected[i, j] = expected[j, i] = 1
    for graph in ("auto", "connection"):
        np.testing.assert_array_equal(matrix(net, graph=graph, distances=str(net / "edges.csv")), expected)
    assert matrix(net) is None
    assert matrix(net, graph="none", distances=str(net / "edges.csv")) is None


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.7])
def test_near_nodes_weigh_more_as_in_dcrnn(net: Path, threshold: float) -> None:
    """Its script: distances that are not given are infinite, σ is the deviation of the finite ones, what is below the threshold is 0."""
    distances = np.full((NODES, NODES), np.inf)
    for i, j, cost in EDGES:
        distances[i, j] = cost
    kernel = np.exp(-np.square(distances / distances[~np.isinf(distances)].std()))
    kernel[kernel < threshold] = 0
    found = matrix(net, graph="gaussian", graph_threshold=threshold, distances=str(net / "edges.csv"))
    np.testing.assert_allclose(found, kernel, rtol=1e-6)


def test_cells_of_a_grid_see_the_four_beside_them() -> None:
    found = load_dataset(DataSpec(path="synthetic:city", family="sensors")).info.adjacency
    assert found is not None
    for cell in range(64):
        row, column = divmod(cell, 8)
        beside = {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)}
        expected = {8 * r + c for r, c in beside if 0 <= r < 8 and 0 <= c < 8}
        assert set(np.flatnonzero(found[cell])) == expected


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_nodes_choose_those_whose_train_readings_correlate(net: Path, ratio: float) -> None:
    with np.load(net / "net.npz") as file:
        values = file["data"][..., 0].astype(np.float64)
    train = pd.DataFrame(values[: int(ratio * int(0.6 * STEPS))]).replace(0, np.nan)
    strength = train.fillna(train.mean()).corr().abs().fillna(0).to_numpy().copy()
    np.fill_diagonal(strength, -1)
    expected = np.zeros((NODES, NODES))
    for i in range(NODES):
        for j in np.argsort(-strength[i])[:2]:
            if strength[i, j] > 0:
                expected[i, j] = expected[j, i] = 1
    found = matrix(net, graph="correlation", graph_neighbours=2, train_ratio=ratio)
    np.testing.assert_array_equal(found, expected)
    assert found is not None
    assert found[0, 3] == found[0, 4] == 1
    assert not found[5].any(), "what never changes correlates with nothing"


@pytest.mark.parametrize(
    ("graph", "words"), [("gaussian", "data.distances"), ("connection", "data.distances"), ("grid4", "cells of a grid")]
)
def test_data_without_what_the_network_is_made_from_are_refused(net: Path, graph: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        matrix(net, graph=graph)
