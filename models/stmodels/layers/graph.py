"""A network as matrices for graph convolutions. Each form has a name, so that none is mistaken for another.

Legend: N nodes, A (N, N) weights of the edges, the edge from node i to node j at [i, j].
"""

from __future__ import annotations

import torch
from torch import Tensor


def mix(matrix: Tensor, x: Tensor) -> Tensor:
    """y_i = Σ_j matrix_ij x_j: (N, N), (…, N, c) → (…, N, c)."""
    return torch.einsum("ij,...jc->...ic", matrix, x)


def symmetric(adjacency: Tensor) -> Tensor:
    """The larger of both directions, without the edges of nodes to themselves; float64."""
    both = torch.maximum(adjacency, adjacency.T).double()
    return both - both.diag().diag()


def normalised_laplacian(adjacency: Tensor) -> Tensor:
    """L = I − D^(−½) A D^(−½) of the symmetric network, in float64. An isolated node has a row of I alone."""
    both = symmetric(adjacency)
    degree = both.sum(1)
    root = torch.where(degree > 0, degree.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0)
    return _identity(both) - root[:, None] * both * root


def combinatorial_laplacian(adjacency: Tensor) -> Tensor:
    """L = D − A of the symmetric network, in float64."""
    both = symmetric(adjacency)
    return both.sum(1).diag() - both


def rescaled(laplacian: Tensor) -> Tensor:
    """2 L / λ_max − I, with eigenvalues in [−1, 1]; −I for a network without edges, of which L is 0."""
    largest = torch.linalg.eigvalsh(laplacian)[-1]
    identity = _identity(laplacian)
    return 2 * laplacian / largest - identity if largest > 1e-12 else -identity


def chebyshev(scaled: Tensor, count: int) -> Tensor:
    """T_0 … T_(count − 1) of a rescaled Laplacian, or of a learnt network: (count, N, N). T_k = 2 L̃ T_(k−1) − T_(k−2)."""
    polynomials = [_identity(scaled), scaled]
    while len(polynomials) < count:
        polynomials.append(2 * scaled @ polynomials[-1] - polynomials[-2])
    return torch.stack(polynomials[:count])


def walks(adjacency: Tensor) -> Tensor:
    """D^(−1) A and D^(−1) Aᵀ, each with its own degrees, so that :func:`mix` takes weighted means: (2, N, N) float32.

    Rows sum to 1, those of nodes without edges to 0.
    """
    both = torch.stack([adjacency, adjacency.T]).double()
    degree = both.sum(-1, keepdim=True)
    return torch.where(degree > 0, both / degree.clamp_min(torch.finfo(torch.float64).tiny), 0).float()


def within_hops(adjacency: Tensor, hops: int) -> Tensor:
    """Which nodes can be reached in at most so many edges, in either direction, a node itself always: (N, N) bool."""
    edges = (symmetric(adjacency) > 0).float() + _identity(adjacency.float())
    reached = _identity(edges)
    for _ in range(min(hops, len(edges))):
        reached = (reached @ edges).clamp_max(1)
    return reached > 0


def laplacian_eigenvectors(adjacency: Tensor, count: int) -> Tensor:
    """The eigenvectors of the normalised Laplacian with the smallest eigenvalues above 0, in columns: (N, count) float32.

    Each component has a trivial one with the eigenvalue 0, which is left out; so has a node without edges.

    The largest entry of each is positive, so that machines agree on signs. Columns that a small network does not have are 0.
    """
    is_alone = symmetric(adjacency).sum(1) == 0
    values, vectors = torch.linalg.eigh(normalised_laplacian(adjacency) - is_alone.double().diag())
    return _columns(vectors[:, values > 1e-8], count)


def widest_eigenvectors(adjacency: Tensor, count: int) -> Tensor:
    """The eigenvectors of the normalised Laplacian with the largest eigenvalues, in columns and otherwise as above: (N, count) float32."""
    _, vectors = torch.linalg.eigh(normalised_laplacian(adjacency))
    return _columns(vectors.flip(1), count)


def _columns(vectors: Tensor, count: int) -> Tensor:
    """The first ones, with the largest entry positive, and zeros for those that there are not."""
    vectors = vectors[:, :count]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return torch.cat([vectors, vectors.new_zeros(len(vectors), count - vectors.shape[1])], dim=1).float()


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
