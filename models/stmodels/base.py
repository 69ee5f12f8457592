"""What every model is to the engine."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from stmodels.types import Batch, Forecast, View


class TrainWindows(Protocol):
    """The windows of the train segment."""

    series: Tensor | None

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> Batch: ...


class Forecaster(nn.Module):
    """A model: a forecast from a batch, the terms of its loss, and what it fits without an optimiser."""

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of a batch of windows, in scaled space."""
        raise TypeError(f"{type(self).__name__} does not say how it forecasts")

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """Terms of the training loss, each a mean over the batch; ``train.<name>_loss_weight`` weighs a term, 1 where there is none."""
        raise TypeError(f"{type(self).__name__} has no loss: nothing in it is trained by an optimiser")

    def fit(self, windows: TrainWindows) -> None:
        """Fit what is fitted in closed form, or keep what is copied from the train segment. Nothing, for most."""

    def view(self, batch: Batch) -> View | None:
        """What the model sees of each window as an image, for the reader of a report; None where it sees none."""
        return None
