"""Interruptions of a training before its last epoch: a request to stop, or a search that has no more use for the trial.

Between two steps, all workers of a trial decide alike whether to write a checkpoint and whether to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from stlab.training.workers import rank_here, world_size

_ASK_SECONDS = 1.0  # several workers ask each other about so often
_ASK_STEPS = 50  # and at the latest after so many steps

Report = Callable[[Mapping[str, Any]], str | None]
"""Called with each event. Where a search may prune the trial, it answers epochs with the reason to stop now, or with None."""


class TrialStopped(Exception):
    """The trial was asked to stop and has written a checkpoint to go on from. This is no error."""


class TrialPruned(Exception):
    """The search stopped this trial early because it did worse than others. This is no error."""


class Due(NamedTuple):
    """The things to do before the next step."""

    save: bool
    stop: bool


class Interruption:
    """Says after every step whether it is time for a checkpoint and whether to stop.

    A single worker looks at its own clock and asks its own ``stop``. Several ask each other once a second.

    Args:
        seconds: between checkpoints within an epoch; none are written there if it is 0.
        stop: whether the trial is to stop, as far as this worker knows. All stop if one knows.
    """

    def __init__(self, seconds: float, stop: Callable[[], bool] | None, device: torch.device) -> None:
        self.seconds, self.stop, self.device = seconds, stop, device
        self.world, self.rank = world_size(), rank_here()
        self.every, self.steps = 1, 0
        self.asked_at = self.saved_at = time.monotonic()

    def saved(self) -> None:
        """A checkpoint was written, so the time until the next one begins."""
        self.saved_at = time.monotonic()

    def is_save_time(self) -> bool:
        """Whether the last checkpoint is old enough, by this worker's clock."""
        return time.monotonic() - self.saved_at >= self.seconds

    def due(self, now: bool = False) -> Due:
        """Tell the things that are due. All workers call this after the same steps.

        Args:
            now: whether to ask the other workers even if they were asked a moment ago.
        """
        save, stop = self.seconds > 0 and self.is_save_time(), self.stop is not None and self.stop()
        if self.world == 1:
            return Due(save, stop)
        self.steps += 1
        if self.steps < self.every and not now:
            return Due(False, False)
        step_seconds = (time.monotonic() - self.asked_at) / self.steps
        # The first worker writes the checkpoints, so its clock counts. All know the slowest worker's step, so all ask again together.
        asked = torch.tensor([save and self.rank == 0, stop, step_seconds], dtype=torch.float32, device=self.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        anyone_saves, anyone_stops, slowest = asked.tolist()
        self.every = max(1, min(_ASK_STEPS, int(_ASK_SECONDS / max(slowest, 1e-6))))
        self.steps, self.asked_at = 0, time.monotonic()
        return Due(bool(anyone_saves), bool(anyone_stops))
