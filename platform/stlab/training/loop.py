"""The training loop: AdamW on a schedule, clipping, early stopping on a validation error, exact resumption."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stlab.data import Dataset, Windows
from stlab.training.checkpoint import Checkpoints, Midway, Progress, Weights, trainable_state
from stlab.training.device import PeakMemory
from stlab.training.gradients import term_gradients, term_norms
from stlab.training.interruption import Pauses, TrialStopped
from stlab.training.memory import micro_batch, parts_of
from stlab.training.metrics import evaluate
from stlab.training.random_state import random_state, set_random_state
from stlab.training.schedule import learning_rate
from stlab.training.step_log import NonFiniteLoss, StepLog
from stlab.training.watchdog import Watchdog
from stlab.training.workers import PeerLost, gathered, world_size
from stmodels.base import Forecaster
from stmodels.rng import named_seed, permutation
from stmodels.types import Batch

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec

Report = Callable[[Mapping[str, Any]], str | None]
"""Told of epochs; where a search may prune the trial, it answers why to stop now, or None."""


class TrialPruned(Exception):
    """The search stopped this trial early: it did worse than others. Not an error."""


def default_batch_size(dataset: Dataset) -> int:
    """UniST's: 64 / 32 / 16 for grids with H+W below 32 / 48 / above; 32 for sensors."""
    if dataset.info.family != "grid":
        return 32
    side = sum(dataset.info.shape[-2:])
    return 64 if side < 32 else 32 if side < 48 else 16


def training_loss(terms: Mapping[str, Tensor], train: TrainSpec) -> Tensor:
    """What is minimised: the sum of a model's loss terms, each times ``train.<term>_loss_weight``, 1 where there is none."""
    loss: Tensor = sum(getattr(train, f"{name}_loss_weight", 1.0) * term for name, term in terms.items())  # type: ignore[assignment]
    return loss


@dataclass
class Fit:
    """One training under way."""

    model: Forecaster
    dataset: Dataset
    train: TrainSpec
    seed: int
    device: torch.device
    autocast: Callable[[], Any]
    checkpoints: Checkpoints
    report: Report
    prunable: bool = False
    """Whether the answer to a report counts."""
    stop: Callable[[], bool] | None = None
    """Whether to write a checkpoint and end now."""
    watchdog: Watchdog | None = None
    """Told of every step and validation batch."""
    micro_batches: int = 1
    """Into how many parts a worker's share of a batch is divided, to need less memory."""

    def __post_init__(self) -> None:
        self.world = world_size()
        self.distributed = self.world > 1
        self.rank = dist.get_rank() if self.distributed else 0
        self.batch_size = self.train.batch_size or default_batch_size(self.dataset)
        self.micro_batch = micro_batch(self.batch_size, self.world, self.micro_batches)
        self.windows: Windows = self.dataset.windows("train", self.device)
        self.validation: Windows = self.dataset.windows("validation", self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.train.lr, weight_decay=self.train.weight_decay, fused=self.device.type in ("cpu", "cuda")
        )
        restored = self.checkpoints.restore(self.model, self.optimiser)
        self.best, self.progress = trainable_state(self.model), Progress()
        self.midway: Midway | None = None
        if restored is not None:
            self.best, self.progress, self.midway = restored.best, restored.progress, restored.midway
        self.compiled: Any = torch.compile(self.model) if self.train.compile else self.model
        self.runner: Any = DistributedDataParallel(self.compiled) if self.distributed else self.compiled
        self.watch = self.watchdog or Watchdog(None, lambda stack: None)
        self.pauses = Pauses(self.train.checkpoint_seconds, self.stop, self.device)
        self.steps = self.progress.step + (self.midway.steps if self.midway is not None else 0)
        """Optimiser steps done."""
        self.is_saved = restored is not None
        self._begin_together()

    def _begin_together(self) -> None:
        """Raise PeerLost where the workers go on from different checkpoints: on a network's folder one may see the newest later."""
        steps = gathered(self.steps)
        if len(set(steps)) > 1:
            raise PeerLost(f"the workers see different checkpoints, after {', '.join(map(str, steps))} steps")

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(len(self.windows) / self.batch_size)

    def run(self) -> Weights:
        """Train until validation stops improving or epochs run out; the best weights. ``progress`` tells the rest.

        Raises:
            NonFiniteLoss: with step and learning rate.
            TrialPruned: the search has no more use for it; its checkpoint is written, so that it could go on.
            TrialStopped: it was told to stop; its checkpoint is written.
            HungStep: a step took too long.
        """
        progress = self.progress
        stop = None
        if progress.rows and self.rank == 0:
            stop = self.report({"kind": "epochs", "rows": progress.rows})
        if self._goes_on():
            self._stop_if(stop)
        memory = PeakMemory(self.device)
        while self._goes_on():
            row = self._epoch(progress)
            error = row[f"val_{self.train.select_by}"]
            if error < progress.best_error:
                progress.best_error, progress.best_epoch = error, progress.epoch
                self.best = trainable_state(self.model)
            progress.rows.append(row)
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, memory.bytes())
            self.is_saved, stop = False, None
            if self.rank == 0:
                stop = self.report({"kind": "epochs", "rows": [row]})
                if stop is not None or self.pauses.is_time():
                    self._save()
            if self._goes_on():
                self._stop_if(stop)
                if self.pauses.due(now=True).stop:
                    self._save()
                    raise TrialStopped
        self._save()
        return self.best

    def _save(self, midway: Midway | None = None) -> None:
        """Write a checkpoint, unless the last one says all there is to say."""
        if self.rank == 0 and not self.is_saved:
            with self.watch.resting():
                self.checkpoints.save(self.model, self.optimiser, self.best, self.progress, midway)
        self.is_saved = True
        self.pauses.saved()

    def _goes_on(self) -> bool:
        epoch, best = self.progress.epoch, self.progress.best_epoch
        return epoch < self.train.max_epochs and epoch - best < self.train.patience

    def _stop_if(self, reason: str | None) -> None:
        """Raise TrialPruned on all workers where the first one was told to stop."""
        if not self.prunable:
            return
        box = [reason]
        if self.distributed:
            dist.broadcast_object_list(box, src=0)
        if box[0] is not None:
            raise TrialPruned(box[0])

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        """One pass over the train windows, or what is left of it, and one over the validation windows; the epoch's row."""
        started = time.perf_counter()
        epoch = progress.epoch + 1
        self.model.train()
        order = permutation(len(self.windows), self.seed, epoch).to(self.device)
        errors_so_far = [row[f"val_{self.train.select_by}"] for row in progress.rows]
        rate = functools.partial(
            learning_rate, steps_an_epoch=self.steps_an_epoch, train=self.train, errors=errors_so_far
        )
        log, norms, before = self._begin(epoch, rate)
        with self.watch.watching():
            for index in order.split(self.batch_size)[len(log) :]:
                log.add(self._step(index, rate(self.steps), None if len(log) else norms))
                self.steps, self.is_saved = progress.step + len(log), False
                self.watch.tick()
                self._pause(log, norms, before + time.perf_counter() - started)
        means = log.means() | {name: norm.item() for name, norm in norms.items()}
        trained = before + time.perf_counter() - started
        errors = self._validate(log, norms, trained)
        if not math.isfinite(errors["rmse"]):
            # A step's loss is taken before its update: what the last update broke shows here, and would be selected below.
            last = self.optimiser.param_groups[0]["lr"]
            raise NonFiniteLoss(
                f"the validation RMSE is {errors['rmse']} after step {self.steps}, learning rate {last:.3g}", self.steps
            )
        progress.epoch, progress.step = epoch, self.steps
        return {
            "epoch": epoch,
            "step": progress.step,
            **means,
            "val_mae": errors["mae"],
            "val_rmse": errors["rmse"],
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": before + time.perf_counter() - started,
            "samples_per_second": len(self.windows) / trained,
            "micro_batch": self.micro_batch,
        }

    def _begin(self, epoch: int, rate: Callable[[int], float]) -> tuple[StepLog, dict[str, Tensor], float]:
        """What the epoch's steps have said, the norms of its first batch, and the seconds it took: nothing, or where it goes on."""
        midway, self.midway = self.midway, None
        # Dropout's numbers follow from seed, epoch and worker, so that they are the same after an interruption.
        name = f"epoch/{epoch}/{self.rank}"
        if midway is None:
            torch.manual_seed(named_seed(self.seed, name))
            return StepLog(self.progress.step, rate), {}, 0.0
        read, waiting = midway.read, midway.waiting[self.rank % len(midway.waiting)]
        torch.manual_seed(named_seed(self.seed, f"{name}/{midway.steps}"))
        if len(midway.random) == self.world:
            set_random_state(midway.random[self.rank], self.device)
        else:  # other workers than before draw other numbers in any case
            read, waiting = torch.cat([read, torch.stack(midway.waiting).mean(0)]), waiting[:0]
        log = StepLog(self.progress.step, rate, midway.names, read, waiting.to(self.device))
        return log, midway.norms, midway.seconds

    def _pause(self, log: StepLog, norms: dict[str, Tensor], seconds: float) -> None:
        """After a step: write a checkpoint where it is time, stop where that is asked."""
        due = self.pauses.due()
        if due.save or due.stop:
            with self.watch.resting():
                self._save(self._midway(log, norms, seconds))
                if self.distributed:  # the first writes, and the others' next step would wait for it
                    dist.all_reduce(torch.zeros(1, device=self.device))
        if due.stop:
            raise TrialStopped

    def _validate(self, log: StepLog, norms: dict[str, Tensor], seconds: float) -> dict[str, Any]:
        """Validation errors. Asked to stop, the trial is left as it was before: validation draws no random number."""

        def ended() -> None:
            self.watch.tick()
            if self.pauses.due().stop:
                raise TrialStopped

        batch_size = self.batch_size if self.micro_batches == 1 else self.micro_batch
        try:
            with self.watch.watching():
                return evaluate(self.compiled, self.dataset, self.validation, batch_size, self.autocast, None, ended)
        except TrialStopped:
            self._save(self._midway(log, norms, seconds))
            raise

    def _midway(self, log: StepLog, norms: dict[str, Tensor], seconds: float) -> Midway:
        """Where the epoch stands, gathered from all workers."""
        read, waiting = log.contents()
        rows, states = zip(*gathered((waiting, random_state(self.device))), strict=True)
        return Midway(seconds, log.names, read, list(rows), norms, list(states))

    def _step(self, index: Tensor, rate: float, norms: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One optimiser step on a global batch; its loss, gradient norm and loss terms, on the device and not waited for.

        ``norms`` takes up the gradient norm of each loss term by itself, where there are several.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        mine = index.tensor_split(self.world)[self.rank]
        parts = self._parts(self.windows.gather(mine if len(mine) else index[:1]), len(mine), len(index))
        self.optimiser.zero_grad(set_to_none=True)
        said: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        for number, (part, share) in enumerate(parts):
            is_last = number == len(parts) - 1
            with self.runner.no_sync() if self.distributed and not is_last else contextlib.nullcontext():
                with self.autocast():
                    terms = self.model.loss_terms(self.runner(part), part)
                    loss = training_loss(terms, self.train)
                if norms is not None and len(terms) > 1:
                    _add(gradients, term_gradients(self._terms_apart(terms, part), self.parameters, share))
                (loss * share).backward()
            _add(said, {name: term.detach() * share for name, term in _named(loss, terms).items()})
        if norms is not None:
            norms.update(term_norms(gradients))
        norm = nn.utils.clip_grad_norm_(self.parameters, self.train.clip_norm)
        self.optimiser.step()
        return {**said, "grad_norm": norm.detach()}

    def _parts(self, batch: Batch, mine: int, everyone: int) -> list[tuple[Batch, float | Tensor]]:
        """This worker's windows in parts that memory has room for, and what the mean of each counts for.

        Gradients of a worker's parts are summed up, and averaged with those of the others. Parts count by their windows, or by their
        readings where some are missing: one with more counts for more, one with none for nothing.
        """
        parts = parts_of(batch, self.micro_batch)
        if batch.target_mask is None or (self.world == 1 and len(parts) == 1):
            return [(part, self.world * min(mine, len(part.start)) / everyone) for part in parts]
        readings = torch.stack([part.target_mask.sum() for part in parts if part.target_mask is not None]) * min(mine, 1)
        total = readings.sum()
        if self.world > 1:
            dist.all_reduce(total)
        return list(zip(parts, self.world * readings / total.clamp_min(1), strict=True))

    def _terms_apart(self, terms: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The loss terms with a graph that can be gone through once for each."""
        if not self.train.compile:
            return terms
        # A compiled backward pass may give its buffers away, and runs once only: a pass of its own, which draws no random number.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.autocast():
            return self.model.loss_terms(self.model(batch), batch)


def _named(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss, **{f"loss.{name}": term for name, term in terms.items()}}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add to each sum in place of it; the first value as it is."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
