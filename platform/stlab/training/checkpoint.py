"""Checkpoints: everything a trial needs to go on exactly as if it had never stopped.

``checkpoint/<epochs>/``, or ``<epochs>.<steps>/`` within an epoch, holds the trainable weights and the best ones so far (safetensors),
the optimiser and ``state.json``. Within an epoch it also holds what the steps have logged and the state of the random numbers
(``midway.safetensors``). ``state.json`` is written last and has the SHA-256 of the other files, so a folder without it was cut short
and is passed over. The newest two checkpoints are kept. A damaged one does not count as one of them and stays beside them as
``<name>.damaged-1``. At an epoch's end the random numbers need no state of their own: like the order of the data, they are a function
of the seed and the epoch.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from stlab.errors import StorageError, first_line
from stlab.storage import TrialDirectory
from stlab.training.memory import is_out_of_memory

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
    notes: list[str] = field(default_factory=list)
    """Notes for the user about the way to this point."""
    decay_from: int = 0
    """The epoch after which training went back to the best weights, to lower the learning rate (``train.decay_epochs``); 0: not yet."""
    decay_rate: float = 0.0
    """The learning rate from which it is lowered."""


@dataclass
class Midway:
    """The state of a trial within an epoch, between two optimiser steps."""

    seconds: float
    """Seconds that the epoch's steps have taken so far."""
    names: list[str]
    """Names of the log's columns."""
    read: Tensor
    """(steps, columns): the log's rows that were read already, means over the workers."""
    waiting: list[Tensor]
    """For each worker, (steps, columns): its own rows that were not read yet."""
    norms: dict[str, Tensor]
    """Gradient norms of the epoch's first batch."""
    random: list[dict[str, Tensor]]
    """For each worker: device type → state of the generator."""

    @property
    def steps(self) -> int:
        return len(self.read) + len(self.waiting[0])

    def tensors(self) -> Weights:
        named = {"read": self.read, **{f"norm/{name}": norm for name, norm in self.norms.items()}}
        named |= {f"waiting/{rank}": rows for rank, rows in enumerate(self.waiting)}
        named |= {f"random/{rank}/{kind}": state for rank, states in enumerate(self.random) for kind, state in states.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    @classmethod
    def of(cls, seconds: float, names: list[str], tensors: Weights) -> Midway:
        """The inverse of :meth:`tensors`."""
        workers = range(sum(name.startswith("waiting/") for name in tensors))

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        waiting = [tensors[f"waiting/{rank}"] for rank in workers]
        return cls(seconds, names, tensors["read"], waiting, under("norm/"), [under(f"random/{rank}/") for rank in workers])


@dataclass
class Restored:
    """The content of a checkpoint besides the state of model and optimiser."""

    best: Weights
    progress: Progress
    midway: Midway | None


def trainable_state(model: nn.Module) -> Weights:
    """Copies on the CPU of everything that is not frozen: parameters that are trained in some stage, and buffers."""
    frozen = _frozen(model)
    return {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items() if name not in frozen}


def load_trainable_state(model: nn.Module, weights: Weights) -> None:
    """The inverse of :func:`trainable_state`.

    Raises:
        RuntimeError: the weights are not this model's.
    """
    frozen = _frozen(model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name not in frozen]
    if missing or unexpected:
        raise RuntimeError(f"checkpoint of another model: missing {missing[:3]}, unexpected {unexpected[:3]}")


def _frozen(model: nn.Module) -> set[str]:
    stored: frozenset[str] | None = getattr(model, "stored", None)
    return {name for name, p in model.named_parameters() if not (p.requires_grad if stored is None else name in stored)}


class Checkpoints:
    """The checkpoints of one trial, or of a stage that comes before its training: ``checkpoint/<stage>/``."""

    KEPT = 2  # the last one, and the one before it in case the last is damaged

    def __init__(self, directory: TrialDirectory, stage: str = "") -> None:
        self.store = directory.store
        self.prefix = f"{directory.prefix}/checkpoint" + (f"/{stage}" if stage else "")
        self.note: str | None = None
        """A note for the user about the last :meth:`restore`."""
        self._passed_over: list[str] = []
        """Folders that could not be used and still have the name of a checkpoint."""

    def _folders(self) -> list[str]:
        return [name for name in self.store.names(self.prefix) if name.replace(".", "", 1).isdigit()]

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, best: Weights, progress: Progress, midway: Midway | None = None
    ) -> None:
        """Write a checkpoint of an epoch's end, or ``midway`` through the next epoch; then delete all but the newest two.

        Checkpoints that :meth:`restore` passed over no longer count, since a trial that has started again writes lower names.
        """
        name = f"{progress.epoch:06d}" + ("" if midway is None else f".{midway.steps:06d}")
        state = io.BytesIO()
        torch.save(optimiser.state_dict(), state)
        files = {
            "weights.safetensors": safetensors.torch.save(trainable_state(model)),
            "best.safetensors": safetensors.torch.save(best),
            "optimiser.pt": state.getvalue(),
        }
        document: dict[str, Any] = {"progress": asdict(progress)}
        if midway is not None:
            files["midway.safetensors"] = safetensors.torch.save(midway.tensors())
            document["midway"] = {"seconds": midway.seconds, "names": midway.names}
        document["sha256"] = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        self._set_aside([passed for passed in self._passed_over if passed == name])
        for file, content in files.items():
            self.store.write(f"{self.prefix}/{name}/{file}", content)
        self.store.write_json(f"{self.prefix}/{name}/state.json", {**document, "seal": _seal(document)})
        self._set_aside(list(self._passed_over))
        for old in self._folders()[: -self.KEPT]:
            self.store.delete_folder(f"{self.prefix}/{old}")

    def _set_aside(self, passed_over: list[str]) -> None:
        """Keep a damaged checkpoint under another name; delete a folder that was cut short and so never was a checkpoint."""
        for name in passed_over:
            folder = f"{self.prefix}/{name}"
            if self.store.exists(f"{folder}/state.json"):
                taken = sum(other.startswith(f"{name}.damaged-") for other in self.store.names(self.prefix))
                self.store.move(folder, f"{folder}.damaged-{taken + 1}")
                logger.info("checkpoint %s is kept as %s.damaged-%d", folder, name, taken + 1)
            else:
                self.store.delete_folder(folder)
            self._passed_over.remove(name)

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> Restored | None:
        """Load the newest undamaged checkpoint into model and optimiser; None if there is none.

        A damaged one is passed over. That is logged, and :attr:`note` says so.
        """
        untouched = trainable_state(model)
        damaged = []
        self._passed_over = []
        for name in reversed(self._folders()):
            folder = f"{self.prefix}/{name}"
            try:
                restored = self._load(folder, model, optimiser)
            except Exception as error:  # any error in it means that the one before it is tried, and that is logged
                if is_out_of_memory(error) or self._is_the_store(error):
                    raise  # the checkpoint itself may be undamaged
                logger.warning("checkpoint %s cannot be used (%s: %s); trying the one before it", folder, type(error).__name__, error)
                damaged.append(f"checkpoint {name} cannot be used ({first_line(error)})")
                self._passed_over.append(name)
                load_trainable_state(model, untouched)  # a checkpoint that does not fit may have been loaded in part
                continue
            if damaged:
                self.note = f"{'; '.join(damaged)}: gone on from checkpoint {name}"
            return restored
        if damaged:
            self.note = f"{'; '.join(damaged)}: trained from the start"
        return None

    def _is_the_store(self, error: Exception) -> bool:
        """Whether a remote store did not answer. In a local one, a file that cannot be read counts as damaged."""
        is_absent = isinstance(error, FileNotFoundError)
        return isinstance(error, (StorageError, OSError)) and not is_absent and not self.store.is_local

    def _load(self, folder: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> Restored:
        try:
            document = json.loads(self.store.read(f"{folder}/state.json"))
        except FileNotFoundError:
            raise FileNotFoundError("no state.json: its writing was cut short") from None
        if document.pop("seal") != _seal(document):
            raise ValueError("state.json is not as it was written")
        files = {}
        for file, expected in document["sha256"].items():
            files[file] = self.store.read(f"{folder}/{file}")
            if hashlib.sha256(files[file]).hexdigest() != expected:
                raise ValueError(f"{file} is not as it was written")
        best = safetensors.torch.load(files["best.safetensors"])
        midway = None
        if "midway" in document:
            midway = Midway.of(**document["midway"], tensors=safetensors.torch.load(files["midway.safetensors"]))
        progress = Progress(**document["progress"])
        load_trainable_state(model, safetensors.torch.load(files["weights.safetensors"]))
        optimiser.load_state_dict(torch.load(io.BytesIO(files["optimiser.pt"]), weights_only=True))
        return Restored(best, progress, midway)

    def save_best(self, best: Weights) -> None:
        """Write the selected weights of a finished trial."""
        self.store.write(f"{self.prefix}/best.safetensors", safetensors.torch.save(best))

    def load_best(self, model: nn.Module) -> None:
        """Load the selected weights into a model.

        Raises:
            FileNotFoundError: the trial has not been trained, or they are gone.
            RuntimeError: they are damaged, or another model's.
        """
        content = self.store.read(f"{self.prefix}/best.safetensors")
        try:
            weights = safetensors.torch.load(content)
        except (safetensors.SafetensorError, ValueError) as error:
            raise RuntimeError(f"checkpoint/best.safetensors is damaged: {error}") from error
        load_trainable_state(model, weights)


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
