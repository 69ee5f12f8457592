"""The parts that a trial is trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from stlab.data import Dataset, Windows
from stlab.training.batches import BatchPlan
from stlab.training.device import autocast_for
from stmodels.base import Forecaster

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec


@dataclass(frozen=True)
class TrainingSetup:
    """The parts that stay the same from a trial's first step to its test."""

    model: Forecaster
    """On ``device``, with its initial weights drawn."""
    dataset: Dataset
    train: TrainSpec
    seed: int
    """The seed of the data's order and of dropout."""
    device: torch.device
    batches: BatchPlan
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the model's loss terms; a term that is not here has the weight 1."""
    precision: str = "fp32"
    """``fp32`` or ``bf16``."""
    past: int = 0
    """The number of steps before the history that the model reads."""
    pretrains: bool = False
    """Whether the train windows are those of the pre-training (``data.pretrain``)."""

    def windows(self, segment: str) -> Windows:
        """The windows of a segment, on the device, as the model reads them."""
        if segment == "train" and self.pretrains and self.dataset.pretrain:
            return self.dataset.pretrain_windows(self.device)
        return self.dataset.windows(segment, self.device, self.past)

    @property
    def autocast(self) -> Callable[[], Any]:
        """A context to run the model in."""
        return autocast_for(self.precision, self.device)
