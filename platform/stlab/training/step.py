"""One optimiser step: forward, loss, backward, clipped gradients, AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stlab.data import Windows
from stlab.training.batches import MicroBatch
from stlab.training.loss import term_gradients, term_norms, training_loss
from stlab.training.setup import TrainingSetup


class StepValues(NamedTuple):
    """The figures of a step, on the device. Nobody has waited for them."""

    logged: dict[str, Tensor]
    """``loss``, ``loss.<term>``, ``grad_norm``, and ``clipped``, which is 1 where the gradients were too long. Losses are this worker's
    part of the batch's mean."""
    term_norms: dict[str, Tensor]
    """``grad_norm.<term>`` of the whole batch where it was asked for and there are several terms."""


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def make_optimiser(setup: TrainingSetup) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters."""
    train = setup.train
    is_fused = setup.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(trainable(setup.model), lr=train.lr, weight_decay=train.weight_decay, fused=is_fused)


class OptimiserStep:
    """Takes optimiser steps, one a call.

    Workers see the same global batch and take their share of it. Gradients of a worker's micro-batches are summed up, and averaged
    with those of the other workers in the backward pass of the last one.
    """

    def __init__(self, setup: TrainingSetup, optimiser: torch.optim.Optimizer, windows: Windows) -> None:
        self.setup, self.optimiser, self.windows = setup, optimiser, windows
        self.parameters = trainable(setup.model)
        self.compiled: Any = torch.compile(setup.model) if setup.train.compile else setup.model
        self.has_peers = setup.batches.workers > 1
        self.runner: Any = DistributedDataParallel(self.compiled) if self.has_peers else self.compiled

    def __call__(self, index: Tensor, learning_rate: float, horizon: int | None = None, with_term_norms: bool = False) -> StepValues:
        """One step on the global batch that consists of the train windows ``index``.

        Args:
            horizon: how many steps of the target the loss covers; all of them if None.
            with_term_norms: whether to measure the gradient norm of each loss term by itself, which takes a backward pass a term.
        """
        parts = self.setup.batches.micro_batches(self.windows, index, horizon)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        for part in parts:
            with self._summing_up(is_last=part is parts[-1]):
                terms, loss = self._forward(part)
                if with_term_norms and len(terms) > 1:
                    _add(gradients, term_gradients(self._terms_apart(terms, part), self.parameters, part.weight))
                (loss * part.weight).backward()
            _add(means, {name: value.detach() * part.weight for name, value in _named(loss, terms).items()})
        norms = term_norms(gradients)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.setup.train.clip_norm)
        self.optimiser.step()
        clipped = (norm.detach() > self.setup.train.clip_norm).float()
        return StepValues({**means, "grad_norm": norm.detach(), "clipped": clipped}, norms)

    def _forward(self, part: MicroBatch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss terms of a micro-batch and their weighted sum."""
        with self.setup.autocast():
            terms = self.setup.model.loss_terms(self.runner(part.batch), part.batch)
            return terms, training_loss(terms, self.setup.loss_weights)

    def _summing_up(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Only the backward pass of the last micro-batch waits for the gradients of the other workers."""
        return self.runner.no_sync() if self.has_peers and not is_last else contextlib.nullcontext()

    def _terms_apart(self, terms: dict[str, Tensor], part: MicroBatch) -> dict[str, Tensor]:
        """The loss terms with a graph that can be gone through once for each."""
        if not self.setup.train.compile:
            return terms
        # A compiled backward pass may free its buffers, so it runs only once. The terms get a forward pass of their own, which leaves
        # the state of the random numbers as it was.
        device, model = self.setup.device, self.setup.model
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self.setup.autocast():
            return model.loss_terms(model(part.batch), part.batch)


def _named(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss, **{f"loss.{name}": term for name, term in terms.items()}}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add each value to its sum. The first value is its sum as it is."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
