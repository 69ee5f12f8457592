"""The interface between a model and the engine that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from stmodels.layers.losses import Criterion, mean_absolute
from stmodels.types import Batch, Forecast, ModelInput, Readings


class TrainWindows(Protocol):
    """The windows of the train or the validation segment."""

    series: Tensor | None

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> Batch: ...

    def readings(self) -> Readings: ...


class Forecaster(nn.Module):
    """A model makes a forecast from a batch, names the terms of its loss, and may fit something without an optimiser."""

    criterion: Criterion = staticmethod(mean_absolute)
    """What is minimised of the forecast's errors, in scaled space. ``train.loss`` puts another one in its place."""

    changing_share: float = 0.0
    """The share of the planned epochs in which the task itself changes (see :meth:`progresses`). ``train.patience`` counts from its end."""
    stage = ""
    """The stage of the training that the model is in; empty for the one that the study describes, and for every forecast."""
    stored: frozenset[str] | None = None
    """Names of the parameters that checkpoints hold. None: those that are trained."""

    def begin(self, stage: str) -> None:
        """Enter a stage of ``config.stages()``, or, with an empty name, the training that the study describes.

        A model with stages extends this: it freezes what is not trained in the stage and unfreezes what is (``requires_grad_``). What any
        stage trains is built trainable. In its forward pass and its loss the model asks for :attr:`stage`.
        """
        self.stage = stage

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of a batch of windows, in scaled space."""
        raise TypeError(f"{type(self).__name__} does not say how it forecasts")

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """The terms of the training loss, each a mean over the batch.

        The loss is their weighted sum. The weight of a term is ``config.loss_weights()[name]``, or 1. Most models have one term, the
        criterion of their forecast's errors where there are readings.
        """
        return {"forecast": self.criterion(forecast.value - batch.target, batch.target_mask)}

    def progresses(self, share: float) -> None:
        """Told before each optimiser step which share of the planned ones has been taken, for what changes as training goes on.

        The plan is ``train.max_epochs``, or the epochs of the stage. Most models do nothing here.
        """

    def fit(self, windows: TrainWindows) -> None:
        """Fit what has a closed form, or keep what is copied from the train segment. Most models do nothing here.

        It is called before training and before the test. What a forecast needs of it belongs in buffers, which checkpoints hold.
        """

    def choose(self, validation: TrainWindows, by: str) -> dict[str, float]:
        """Choose by validation error what :meth:`fit` left open, such as a penalty; it is called after each ``fit``.

        A model that does so says it in ``config.chooses()``.

        Args:
            by: the error that counts, ``rmse`` or ``mae`` (``train.select_by``).

        Returns:
            Name → value chosen, for the trial's result.
        """
        return {}

    def prepare(self, train: Readings) -> dict[str, Tensor]:
        """What takes long to compute from the train segment and is the same for all seeds: buffer → content.

        The distances between daily profiles are an example, or the correlations of nodes. Called where ``config.prepared_from()`` is not
        None, before anything is fitted or trained. The storage keeps the answer for all trials that would give the same one. The buffers
        are persistent, since checkpoints hold them.
        """
        raise TypeError(f"{type(self).__name__} has nothing to prepare, and its configuration says that it has")

    def adopt(self, prepared: Mapping[str, Tensor]) -> None:
        """Fill the buffers that :meth:`prepare` names.

        Raises:
            ValueError: one of them is no persistent buffer of this model, or has another shape.
        """
        stored = self.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.named_buffers() if name in stored}
        for name, content in prepared.items():
            if name not in buffers or buffers[name].shape != content.shape:
                own = tuple(buffers[name].shape) if name in buffers else "no such persistent buffer"
                raise ValueError(f"{type(self).__name__}.prepare gives {name} {tuple(content.shape)}; the model has {own}")
            buffers[name].copy_(content)

    def model_input(self, batch: Batch) -> ModelInput | None:
        """The image that the model sees of each window, for the reader of a report; None if it sees no image."""
        return None
