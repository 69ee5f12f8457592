"""The forms of a network, against numpy, SciPy and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from stmodels.layers.graph import (
    chebyshev,
    combinatorial_laplacian,
    laplacian_eigenvectors,
    mix,
    normalised_laplacian,
    rescaled,
    walks,
    within_hops,
)


def _random(nodes: int = 9, edges: int = 12) -> Tensor:
    rng = np.random.default_rng(0)
    matrix = np.zeros((nodes, nodes), np.float32)
    matrix[rng.integers(0, nodes - 1, edges), rng.integers(0, nodes - 1, edges)] = rng.uniform(0.1, 1, edges)  # the last node is alone
    np.fill_diagonal(matrix, 0)
    return torch.from_numpy(matrix)


def test_the_normalised_laplacian_is_its_definition() -> None:
    a = np.maximum(_random().numpy(), _random().numpy().T).astype(np.float64)
    degree = a.sum(1)
    root = np.array([d**-0.5 if d else 0.0 for d in degree])
    np.testing.assert_allclose(normalised_laplacian(_random()).numpy(), np.eye(9) - np.diag(root) @ a @ np.diag(root), atol=1e-12)


def test_a_rescaled_laplacian_has_eigenvalues_between_minus_1_and_1() -> None:
    for laplacian in (normalised_laplacian(_random()), combinatorial_laplacian(_random())):
        values = torch.linalg.eigvalsh(rescaled(laplacian))
        assert values.min() >= -1 - 1e-9
        assert values.max() == pytest.approx(1)


def test_unscaled_the_polynomials_would_grow() -> None:
    """A public implementation feeds them the Laplacian as it is, with eigenvalues up to 2."""
    laplacian = normalised_laplacian(_random())
    assert np.linalg.norm(chebyshev(laplacian, 3)[2].numpy(), 2) > 2
    assert np.linalg.norm(chebyshev(rescaled(laplacian), 3)[2].numpy(), 2) <= 1 + 1e-6


def test_chebyshev_polynomials_are_those_of_the_eigenvalues() -> None:
    scaled = rescaled(normalised_laplacian(_random()))
    values, vectors = np.linalg.eigh(scaled.numpy())
    for k, found in enumerate(chebyshev(scaled, 5)):
        expected = vectors @ np.diag(np.cos(k * np.arccos(np.clip(values, -1, 1)))) @ vectors.T
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_network_without_edges_is_rescaled_to_minus_the_identity() -> None:
    none = torch.zeros(4, 4)
    torch.testing.assert_close(rescaled(combinatorial_laplacian(none)), -torch.eye(4, dtype=torch.float64))
    assert chebyshev(rescaled(normalised_laplacian(none)), 3).isfinite().all()


def test_a_walk_takes_weighted_means_of_neighbours() -> None:
    a = _random()
    forward, backward = walks(a)
    for found, edges in ((forward, a), (backward, a.T)):
        has_edges = edges.sum(1) > 0
        torch.testing.assert_close(found.sum(1), has_edges.float())
        x = torch.randn(9, 2)
        expected = torch.stack([(row @ x) / row.sum() if row.sum() > 0 else torch.zeros(2) for row in edges])
        torch.testing.assert_close(mix(found, x), expected)


@pytest.mark.parametrize("hops", [0, 1, 2, 3, 20])
def test_nodes_within_some_hops_are_those_of_the_shortest_paths(hops: int) -> None:
    a = _random()
    distance = shortest_path((a.numpy() > 0) | (a.numpy().T > 0), unweighted=True)
    np.testing.assert_array_equal(within_hops(a, hops).numpy(), distance <= hops)


def test_eigenvectors_are_those_of_the_laplacian_without_the_trivial_ones() -> None:
    a = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).fill_diagonal_(0)  # two components, and so two eigenvalues of 0
    found = laplacian_eigenvectors(a, 3).double()
    laplacian = normalised_laplacian(a)
    values = torch.linalg.eigvalsh(laplacian)
    torch.testing.assert_close(laplacian @ found, found * values[2:5], atol=1e-6, rtol=1e-6)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_node_without_edges_has_no_eigenvector() -> None:
    a = torch.block_diag(torch.ones(4, 4).fill_diagonal_(0), torch.zeros(1, 1))
    assert not laplacian_eigenvectors(a, 4)[4].any()


def test_a_small_network_has_columns_of_zeros() -> None:
    assert laplacian_eigenvectors(torch.zeros(1, 1), 8).shape == (1, 8)
    assert not laplacian_eigenvectors(torch.ones(2, 2).fill_diagonal_(0), 8)[:, 1:].any()
