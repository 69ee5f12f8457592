"""The training loss: how a model's loss terms are weighted, and how strongly each term pulls at the trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stlab.training.workers import world_size

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec


def training_loss(terms: Mapping[str, Tensor], train: TrainSpec) -> Tensor:
    """The function that is minimised: the weighted sum of a model's loss terms. This is the only place where λ meets the loss.

    The weight of a term is ``train.<term>_loss_weight``, or 1 where the specification has no such field. The λ of ST-VFM is
    ``train.flow_loss_weight``.
    """
    loss: Tensor = sum(getattr(train, f"{name}_loss_weight", 1.0) * term for name, term in terms.items())  # type: ignore[assignment]
    return loss


def term_gradients(terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], weight: float | Tensor) -> dict[str, Tensor]:
    """Each term's gradient as one vector times ``weight``, without the term's own weight in the loss and not clipped.

    Neither ``parameter.grad`` nor the graph is changed, so a backward pass of the whole loss may follow. The hooks of DDP do not run.

    Args:
        terms: scalars with a graph.
        weight: the micro-batch's weight (:class:`stlab.training.batches.MicroBatch`); gradients of several are to be added up.
    """
    gradients = {}
    for name, term in terms.items():
        found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) if term.requires_grad else ()
        flat = torch.cat([gradient.detach().float().reshape(-1) for gradient in found if gradient is not None] or [term.new_zeros(1)])
        gradients[name] = flat * weight
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
