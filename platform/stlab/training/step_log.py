"""The log of an epoch's steps: losses and gradient norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stlab.errors import TrialFailed
from stlab.training.workers import world_size

CHECK_EVERY = 50  # steps between looks at the losses: each look waits for the device


class NonFiniteLoss(TrialFailed):
    """The loss became infinite or NaN. The message says at which step and learning rate.

    Args:
        step: the first step with such a loss, from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StepLog:
    """Losses and gradient norms of an epoch's steps, read from the device only now and then.

    Args:
        first_step: number of the epoch's first step, from 0 at the start of the training.
        learning_rate: step → learning rate, for the message of an error.
        names: names of the columns of ``read`` and ``waiting``, if an interrupted epoch goes on.
        read: (steps, columns): means over the workers, on the CPU.
        waiting: (steps, columns): this worker's own rows that nobody has read yet, on its device.

    Raises:
        NonFiniteLoss: from :meth:`add` or :meth:`means`, on every worker alike.
    """

    def __init__(
        self,
        first_step: int,
        learning_rate: Callable[[int], float],
        names: Sequence[str] = (),
        read: Tensor | None = None,
        waiting: Tensor | None = None,
    ) -> None:
        self.first_step = first_step
        self.learning_rate = learning_rate
        self.names = list(names)
        self.read: list[Tensor] = [] if read is None or not len(read) else [read]
        self.waiting: list[Tensor] = [] if waiting is None else list(waiting)

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(rows) for rows in self.read)

    def add(self, values: Mapping[str, Tensor]) -> None:
        self.names = list(values)
        self.waiting.append(torch.stack([value.float() for value in values.values()]))
        if len(self.waiting) == CHECK_EVERY:
            self._look()

    def means(self) -> dict[str, float]:
        """Means over the epoch's steps."""
        self._look()
        return dict(zip(self.names, torch.cat(self.read).double().mean(0).tolist(), strict=True))

    def contents(self) -> tuple[Tensor, Tensor]:
        """``read`` and this worker's ``waiting``, both on the CPU. A log made with them goes on as this one would."""
        none = torch.zeros(0, len(self.names))
        return (torch.cat(self.read) if self.read else none), (torch.stack(self.waiting).cpu() if self.waiting else none)

    def _look(self) -> None:
        if not self.waiting:
            return
        rows = torch.stack(self.waiting)
        if (world := world_size()) > 1:
            dist.all_reduce(rows)
            rows /= world
        bad = (~rows[:, 0].isfinite()).nonzero()
        if len(bad):
            step = self.first_step + len(self) - len(rows) + int(bad[0])
            value = rows[int(bad[0]), 0].item()
            raise NonFiniteLoss(f"the loss is {value} at step {step + 1}, learning rate {self.learning_rate(step):.3g}", step + 1)
        self.read.append(rows.cpu())
        self.waiting = []
