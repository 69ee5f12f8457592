"""The training loss: how a model's loss terms are weighted, and how strongly each term pulls at the trainable parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stlab.training.workers import world_size
from stmodels.layers.losses import mean_absolute, mean_huber, mean_squared

if TYPE_CHECKING:
    from stlab.data import Dataset
    from stlab.study.spec import TrainSpec
    from stmodels.base import Forecaster


def set_criterion(model: Forecaster, train: TrainSpec, dataset: Dataset) -> None:
    """Give a model the criterion that ``train.loss`` names, or its own."""
    model.__dict__.pop("criterion", None)  # of an earlier stage
    if train.loss == "huber":
        model.criterion = functools.partial(mean_huber, delta=train.huber_delta / dataset.scaler.spread)
    elif train.loss != "model":
        model.criterion = {"mse": mean_squared, "mae": mean_absolute}[train.loss]


def training_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The function that is minimised: the weighted sum of a model's loss terms. This is the only place where λ meets the loss.

    Args:
        weights: weights by name, from the model's :meth:`~stmodels.config.ModelConfig.loss_weights`. A term that has none has the weight 1.
    """
    loss: Tensor = sum(weights.get(name, 1.0) * term for name, term in terms.items())  # type: ignore[assignment]
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
