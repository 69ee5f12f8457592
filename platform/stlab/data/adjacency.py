"""The matrix of a network: which nodes belong together, from the edges of its roads, the cells of a grid, or its train readings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec


_MOST_NODES = 5000  # the matrix of more takes 100 MB, which only those should pay who ask for it


def adjacency(
    series: Series, spec: DataSpec, train: NDArray[np.float32], seen: NDArray[np.bool_] | None
) -> NDArray[np.float32] | None:
    """(N, N) weights ≥ 0, the edge from node i to node j at [i, j], as ``data.graph`` asks for; None for no network.

    Args:
        train: (n, N, 1) readings of the train segment.
        seen: where there is a reading; None means everywhere.

    Raises:
        DataError: the data do not have what the network is made from.
    """
    kind = spec.graph
    if kind == "auto" and train.shape[1] > _MOST_NODES:
        kind = "none"
    elif kind == "auto":
        kind = "connection" if series.edges is not None else "grid4" if series.grid_shape is not None else "none"
    if kind in ("connection", "gaussian"):
        if series.edges is None:
            raise DataError(f"{series.source}: data.graph={kind} is made from the edges of a network. Give their file: data.distances.")
        nodes = train.shape[1]
        return connection(series.edges, nodes) if kind == "connection" else gaussian(series.edges, nodes, spec.graph_threshold)
    if kind == "grid4":
        if series.grid_shape is None:
            raise DataError(f"{series.source}: data.graph=grid4 is for the cells of a grid; these are sensors. Set another.")
        return grid4(*series.grid_shape)
    return correlation(train[..., 0], None if seen is None else seen[..., 0], spec.graph_neighbours) if kind == "correlation" else None


def connection(edges: NDArray[np.float64], nodes: int) -> NDArray[np.float32]:
    """1 where an edge connects two nodes, in either direction; no node is its own neighbour."""
    matrix = np.zeros((nodes, nodes), np.float32)
    ends = edges[:, :2].astype(np.int64).T
    matrix[ends[0], ends[1]] = matrix[ends[1], ends[0]] = 1
    np.fill_diagonal(matrix, 0)
    return matrix


def gaussian(edges: NDArray[np.float64], nodes: int, threshold: float) -> NDArray[np.float32]:
    """exp(−(cost / σ)²) of each edge, in its direction, where that is at least ``threshold``; σ is the deviation of all costs.

    DCRNN (Li et al. 2018), section 4.1: it keeps the edge of a node to itself where the file has one, as that of METR-LA does.
    """
    matrix = np.zeros((nodes, nodes), np.float32)
    ends, costs = edges[:, :2].astype(np.int64).T, edges[:, 2]
    # Costs that are all equal say nothing about near and far.
    weights = np.exp(-np.square(costs / costs.std())) if costs.std() > 0 else np.ones(len(costs))
    matrix[ends[0], ends[1]] = np.where(weights >= threshold, weights, 0)
    return matrix


def grid4(height: int, width: int) -> NDArray[np.float32]:
    """1 where two cells of a grid share a side. Cells are counted row by row."""
    cells = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate([
        np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()], 1), np.stack([cells[:-1].ravel(), cells[1:].ravel()], 1)
    ])  # fmt: skip
    return connection(np.column_stack([pairs, np.ones(len(pairs))]), cells.size)


def correlation(train: NDArray[np.float32], seen: NDArray[np.bool_] | None, neighbours: int) -> NDArray[np.float32]:
    """1 between each node and those whose train readings correlate most with its own, by \\|Pearson's r\\|, in either direction.

    A missing reading counts as its node's mean. A node whose readings do not change correlates with none.

    Args:
        train: (n, N).
        neighbours: how many nodes each chooses; it may be chosen by more.
    """
    values = np.ma.masked_array(train.astype(np.float64), False if seen is None else ~seen)
    centred = (values - values.mean(axis=0)).filled(0.0)
    lengths = np.sqrt(np.square(centred).sum(axis=0))
    strength = np.abs(centred.T @ centred) / np.maximum(np.outer(lengths, lengths), np.finfo(np.float64).tiny)
    np.fill_diagonal(strength, -1)
    order = np.argsort(-strength, axis=1, kind="stable")[:, :neighbours]
    nodes = len(strength)
    rows = np.repeat(np.arange(nodes), order.shape[1])
    is_real = strength[rows, order.ravel()] > 0
    return connection(np.column_stack([rows, order.ravel(), np.ones(len(rows))])[is_real], nodes)
