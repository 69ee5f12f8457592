"""How hard each term of the loss pulls at the trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stlab.training.workers import world_size


def term_gradients(terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], share: float | Tensor) -> dict[str, Tensor]:
    """Each term's gradient, unweighted and not clipped, as one vector times ``share``; parts of a batch are added up.

    Neither ``parameter.grad`` nor the graph is changed: a backward pass of the whole loss may follow. Under DDP its hooks stay silent.

    Args:
        terms: scalars with a graph.
        share: what these windows count for; see the training loop.
    """
    gradients = {}
    for name, term in terms.items():
        found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) if term.requires_grad else ()
        flat = torch.cat([gradient.detach().float().reshape(-1) for gradient in found if gradient is not None] or [term.new_zeros(1)])
        gradients[name] = flat * share
    return gradients


def term_norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``grad_norm.<term>``: the L2 norm of each term's gradient over all workers of the trial."""
    norms = {}
    for name, flat in gradients.items():
        if (world := world_size()) > 1:
            flat = flat / world
            dist.all_reduce(flat)
        norms[f"grad_norm.{name}"] = flat.norm()
    return norms
