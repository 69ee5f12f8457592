"""Checkpoints: everything a trial needs to go on exactly as if it had never stopped.

``checkpoint/<epoch>/`` holds the trainable weights and the best ones so far (safetensors), the optimiser and ``state.json``, which is
written last: a folder without it was cut short and is passed over. The newest two are kept. Random numbers and the order of
the data need no state of their own: both are functions of the seed and the epoch.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from stlab.results import TrialDirectory

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """How far a trial has come, at the end of an epoch."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_error: float = float("inf")
    """The least validation error so far, of the kind that selects."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """A row an epoch, as in epochs.parquet."""
    peak_memory_bytes: int = 0


def trainable_state(model: nn.Module) -> Weights:
    """Copies, on the CPU, of all that is not frozen: parameters that require gradients, and buffers."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items() if name not in frozen}


def load_trainable_state(model: nn.Module, weights: Weights) -> None:
    """The inverse of :func:`trainable_state`.

    Raises:
        RuntimeError: the weights are not this model's.
    """
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name not in frozen]
    if missing or unexpected:
        raise RuntimeError(f"checkpoint of another model: missing {missing[:3]}, unexpected {unexpected[:3]}")


class Checkpoints:
    """The checkpoints of one trial."""

    KEPT = 2  # the last one, and the one before it in case the last is damaged

    def __init__(self, directory: TrialDirectory) -> None:
        self.store = directory.store
        self.prefix = f"{directory.prefix}/checkpoint"

    def _epochs(self) -> list[str]:
        return [name for name in self.store.names(self.prefix) if name.isdigit()]

    def save(self, model: nn.Module, optimiser: torch.optim.Optimizer, best: Weights, progress: Progress) -> None:
        folder = f"{self.prefix}/{progress.epoch:06d}"
        state = io.BytesIO()
        torch.save(optimiser.state_dict(), state)
        self.store.write(f"{folder}/weights.safetensors", safetensors.torch.save(trainable_state(model)))
        self.store.write(f"{folder}/best.safetensors", safetensors.torch.save(best))
        self.store.write(f"{folder}/optimiser.pt", state.getvalue())
        self.store.write_json(f"{folder}/state.json", asdict(progress))
        for old in self._epochs()[: -self.KEPT]:
            self.store.delete_folder(f"{self.prefix}/{old}")

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Weights, Progress] | None:
        """Load the newest whole checkpoint into model and optimiser; None where there is none."""
        untouched = trainable_state(model)
        for name in reversed(self._epochs()):
            folder = f"{self.prefix}/{name}"
            try:
                progress = Progress(**json.loads(self.store.read(f"{folder}/state.json")))
                weights = safetensors.torch.load(self.store.read(f"{folder}/weights.safetensors"))
                best = safetensors.torch.load(self.store.read(f"{folder}/best.safetensors"))
                state = torch.load(io.BytesIO(self.store.read(f"{folder}/optimiser.pt")), weights_only=True)
                load_trainable_state(model, weights)
                optimiser.load_state_dict(state)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the one before it is tried, and that is said
                logger.warning("checkpoint %s cannot be used (%s: %s); trying the one before it", folder, type(error).__name__, error)
                load_trainable_state(model, untouched)  # a checkpoint that does not fit may have been loaded in part
                continue
            return best, progress
        return None

    def save_best(self, best: Weights) -> None:
        """The selected weights of a finished trial."""
        self.store.write(f"{self.prefix}/best.safetensors", safetensors.torch.save(best))

    def load_best(self, model: nn.Module) -> None:
        """Raises FileNotFoundError where the trial has not been trained."""
        load_trainable_state(model, safetensors.torch.load(self.store.read(f"{self.prefix}/best.safetensors")))
