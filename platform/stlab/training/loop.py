"""The training loop: AdamW on a schedule, clipping, early stopping on a validation error, exact resumption."""

from __future__ import annotations

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
from stlab.errors import TrialFailed
from stlab.training.checkpoint import Checkpoints, Progress, Weights, trainable_state
from stlab.training.device import PeakMemory
from stlab.training.gradients import term_norms
from stlab.training.metrics import evaluate
from stlab.training.schedule import learning_rate
from stmodels.forecaster import Forecaster
from stmodels.rng import named_seed, permutation
from stmodels.types import Batch

if TYPE_CHECKING:
    from stlab.spec import TrainSpec

Report = Callable[[Mapping[str, Any]], str | None]
"""Told of epochs; where a search may prune the trial, it answers why to stop now, or None."""

_CHECK_EVERY = 50  # steps between looks at the losses: each look waits for the device


class NonFiniteLoss(TrialFailed):
    """The loss became infinite or NaN; says at which step and learning rate."""


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

    def __post_init__(self) -> None:
        self.distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.distributed else 0
        self.world = dist.get_world_size() if self.distributed else 1
        self.batch_size = self.train.batch_size or default_batch_size(self.dataset)
        self.windows: Windows = self.dataset.windows("train", self.device)
        self.validation: Windows = self.dataset.windows("validation", self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.train.lr, weight_decay=self.train.weight_decay, fused=self.device.type in ("cpu", "cuda")
        )
        restored = self.checkpoints.restore(self.model, self.optimiser)
        self.best, self.progress = restored or (trainable_state(self.model), Progress())
        self.compiled: Any = torch.compile(self.model) if self.train.compile else self.model
        self.runner = DistributedDataParallel(self.compiled) if self.distributed else self.compiled

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(len(self.windows) / self.batch_size)

    def run(self) -> Weights:
        """Train until validation stops improving or epochs run out; the best weights. ``progress`` tells the rest.

        Raises:
            NonFiniteLoss: with step and learning rate.
            TrialPruned: the search has no more use for it; its checkpoint is written, so that it could go on.
        """
        best, progress = self.best, self.progress
        stop = None
        if progress.rows and self.rank == 0:
            stop = self.report({"kind": "epochs", "rows": progress.rows})
        if self._goes_on():
            self._stop_if(stop)
        memory = PeakMemory(self.device)
        saved_at, saved_epoch = time.monotonic(), progress.epoch
        while self._goes_on():
            row = self._epoch(progress)
            error = row[f"val_{self.train.select_by}"]
            if error < progress.best_error:
                progress.best_error, progress.best_epoch = error, progress.epoch
                best = trainable_state(self.model)
            progress.rows.append(row)
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, memory.bytes())
            stop = None
            if self.rank == 0:
                stop = self.report({"kind": "epochs", "rows": [row]})
                if stop is not None or time.monotonic() - saved_at >= self.train.checkpoint_seconds:
                    self.checkpoints.save(self.model, self.optimiser, best, progress)
                    saved_at, saved_epoch = time.monotonic(), progress.epoch
            if self._goes_on():
                self._stop_if(stop)
        if self.rank == 0 and saved_epoch != progress.epoch:
            self.checkpoints.save(self.model, self.optimiser, best, progress)
        return best

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
        """One pass over the train windows and one over the validation windows; the epoch's row."""
        started = time.perf_counter()
        epoch = progress.epoch + 1
        # Dropout's numbers follow from seed, epoch and worker, so that they are the same after an interruption.
        torch.manual_seed(named_seed(self.seed, f"epoch/{epoch}/{self.rank}"))
        self.model.train()
        order = permutation(len(self.windows), self.seed, epoch).to(self.device)
        errors_so_far = [row[f"val_{self.train.select_by}"] for row in progress.rows]
        rate = functools.partial(
            learning_rate, steps_an_epoch=self.steps_an_epoch, train=self.train, errors=errors_so_far
        )
        log = StepLog(first_step=progress.step, learning_rate=rate)
        norms: dict[str, Tensor] = {}  # of the loss terms apart, on the epoch's first batch
        for number, index in enumerate(order.split(self.batch_size)):
            log.add(self._step(index, rate(progress.step + len(log)), norms if number == 0 else None))
        means = log.means() | {name: norm.item() for name, norm in norms.items()}
        trained = time.perf_counter() - started
        errors = evaluate(self.compiled, self.dataset, self.validation, self.batch_size, self.autocast)
        progress.epoch, progress.step = epoch, progress.step + len(log)
        if not math.isfinite(errors["rmse"]):
            # A step's loss is taken before its update: what the last update broke shows here, and would be selected below.
            last = self.optimiser.param_groups[0]["lr"]
            raise NonFiniteLoss(
                f"the validation RMSE is {errors['rmse']} after step {progress.step}, learning rate {last:.3g}"
            )
        return {
            "epoch": epoch,
            "step": progress.step,
            **means,
            "val_mae": errors["mae"],
            "val_rmse": errors["rmse"],
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
            "samples_per_second": len(self.windows) / trained,
        }

    def _step(self, index: Tensor, rate: float, norms: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One optimiser step on a global batch; its loss, gradient norm and loss terms, on the device and not waited for.

        ``norms`` takes up the gradient norm of each loss term by itself, where there are several.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        mine = index.tensor_split(self.world)[self.rank]
        batch = self.windows.gather(mine if len(mine) else index[:1])
        share = self._share(batch, len(mine), len(index))
        with self.autocast():
            terms = self.model.loss_terms(self.runner(batch), batch)
            loss = training_loss(terms, self.train)
        if norms is not None and len(terms) > 1:
            norms.update(term_norms(self._terms_apart(terms, batch), self.parameters, share))
        self.optimiser.zero_grad(set_to_none=True)
        (loss * share).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.train.clip_norm)
        self.optimiser.step()
        named = {"loss": loss, **{f"loss.{name}": term for name, term in terms.items()}}
        return {**{name: value.detach() * share for name, value in named.items()}, "grad_norm": norm.detach()}

    def _share(self, batch: Batch, mine: int, everyone: int) -> float | Tensor:
        """What this worker's mean counts for beside the others', whose gradients are averaged with its own.

        By its windows, or by its readings where some are missing: one with more counts for more, one with none for nothing.
        """
        if self.world == 1 or batch.target_mask is None:
            return self.world * mine / everyone
        readings = batch.target_mask.sum() if mine else batch.target_mask.new_zeros((), dtype=torch.int64)
        total = readings.clone()
        dist.all_reduce(total)
        return self.world * readings / total.clamp_min(1)

    def _terms_apart(self, terms: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The loss terms with a graph that can be gone through once for each."""
        if not self.train.compile:
            return terms
        # A compiled backward pass may give its buffers away, and runs once only: a pass of its own, which draws no random number.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.autocast():
            return self.model.loss_terms(self.model(batch), batch)


class StepLog:
    """What the steps of an epoch said, read from the device only now and then.

    Raises:
        NonFiniteLoss: from :meth:`add` or :meth:`means`, on every worker alike.
    """

    def __init__(self, first_step: int, learning_rate: Callable[[int], float]) -> None:
        self.first_step = first_step
        self.learning_rate = learning_rate
        self.names: list[str] = []
        self.waiting: list[Tensor] = []
        self.read: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(rows) for rows in self.read)

    def add(self, values: Mapping[str, Tensor]) -> None:
        self.names = list(values)
        self.waiting.append(torch.stack([value.float() for value in values.values()]))
        if len(self.waiting) == _CHECK_EVERY:
            self._look()

    def means(self) -> dict[str, float]:
        """Means over the epoch's steps."""
        self._look()
        return dict(zip(self.names, torch.cat(self.read).double().mean(0).tolist(), strict=True))

    def _look(self) -> None:
        if not self.waiting:
            return
        rows = torch.stack(self.waiting)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(rows)
            rows /= dist.get_world_size()
        bad = (~rows[:, 0].isfinite()).nonzero()
        if len(bad):
            step = self.first_step + len(self) - len(rows) + int(bad[0])
            value = rows[int(bad[0]), 0].item()
            raise NonFiniteLoss(f"the loss is {value} at step {step + 1}, learning rate {self.learning_rate(step):.3g}")
        self.read.append(rows.cpu())
        self.waiting = []
