"""A model under examination, and what the checks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stlab.catalog import config_class, config_values, create_config, create_model
from stlab.data import Dataset
from stlab.study.spec import TrainSpec
from stlab.training.batches import BatchPlan
from stlab.training.loss import training_loss
from stlab.training.setup import TrainingSetup
from stlab.training.step import OptimiserStep, make_optimiser, trainable
from stmodels.base import Forecaster, TrainWindows
from stmodels.config import ModelConfig
from stmodels.rng import initialise
from stmodels.types import Batch, SeriesInfo

WINDOWS = 6
_ROUNDING = 1e-4  # relative: float32 sums in another order, through a whole network


class NotApplicable(Exception):
    """The clause says nothing about this model; the message gives the reason."""


class Subject:
    """A model under examination: its configuration and the data."""

    def __init__(self, values: Mapping[str, Any], dataset: Dataset) -> None:
        """``values`` are fields of the model, ``name`` among them.

        Raises:
            ConfigError, ModelError: there is no such model, or it cannot be built with these fields.
        """
        self.config: ModelConfig = create_config(dict(values))
        self.values = config_values(self.config)
        self.dataset = dataset
        self.past = self.config.past(dataset.info)
        self.windows = dataset.windows("train", past=self.past)
        self.is_trained = bool(trainable(self.model()))

    def model(self, seed: int = 0, info: SeriesInfo | None = None, **changes: Any) -> Forecaster:
        """A new model with the weights of a seed, fitted if it fits anything."""
        model = create_model({**self.values, **changes}, info or self.dataset.info)
        initialise(model, seed)
        if info is None:
            self.fit(model)
        return model

    def fit(self, model: Forecaster, windows: TrainWindows | None = None) -> None:
        """What is done with the train windows, which may be others than the subject's, before a training."""
        if self.config.prepared_from() is not None:
            model.adopt(model.prepare(self.windows.readings()))
        model.fit(self.windows if windows is None else windows)
        model.choose(self.dataset.windows("validation", past=self.past), "rmse")

    def still(self, seed: int = 0, **changes: Any) -> Forecaster:
        """A model in training mode without dropout, so that two passes can be compared."""
        without: dict[str, Any] = {"dropout": 0.0} if "dropout" in self.values else {}
        model = self.model(seed, **{**changes, **without}).train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
            elif isinstance(getattr(module, "drop_prob", None), float):  # timm's DropPath
                setattr(module, "drop_prob", 0.0)  # noqa: B010 - nn.Module types every attribute as a tensor or a module
        return model

    def batch(self, count: int = WINDOWS) -> Batch:
        """Windows of the train segment, far from each other."""
        return self.windows.gather(torch.linspace(0, len(self.windows) - 1, min(count, len(self.windows))).long())

    def loss(self, model: Forecaster, batch: Batch) -> Tensor:
        return training_loss(model.loss_terms(model(batch), batch), self.config.loss_weights())

    def comparable_loss(self, model: Forecaster, batch: Batch) -> Tensor:
        """The loss, with the random numbers of every other call, for models that draw in it."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.loss(model, batch)

    def step(self, model: Forecaster, parts: int = 1, clip_norm: float = 1.0) -> tuple[OptimiserStep, Tensor]:
        """An optimiser step to be taken on the train windows, and the indices of a batch."""
        train = TrainSpec(batch_size=WINDOWS, weight_decay=0.0, clip_norm=clip_norm)
        setup = TrainingSetup(
            model, self.dataset, train, 0, torch.device("cpu"), BatchPlan(WINDOWS, parts=parts), self.config.loss_weights()
        )
        count = min(WINDOWS, len(self.windows))
        return OptimiserStep(setup, make_optimiser(setup), self.windows), torch.arange(count)

    def only_if_trained(self) -> None:
        if not self.is_trained:
            raise NotApplicable("nothing in it is trained")


@torch.no_grad()
def forecast(model: Forecaster, batch: Batch) -> Tensor:
    return model.eval()(batch).value  # type: ignore[no-any-return]


def random_batch(info: SeriesInfo, count: int, seed: int = 0, past: int = 0) -> Batch:
    """Normal values everywhere, of ``past`` steps before the history too; slots run on from a random one."""
    rng = torch.Generator().manual_seed(seed)

    def normal(steps: int) -> Tensor:
        return torch.randn(count, steps, *info.shape, generator=rng)

    start = torch.randint(0, 1000, (count,), generator=rng)
    batch = Batch(normal(info.history), normal(info.horizon), start)
    if info.inputs:
        further = torch.randn(count, info.history, info.shape[0], info.inputs, generator=rng)
        batch = batch._replace(history_inputs=further)
    if past:
        batch = batch._replace(past=normal(past))
    if info.slots_per_day is None:
        return batch
    slot = (start[:, None] + torch.arange(info.history + info.horizon)) % (7 * info.slots_per_day)
    p = info.history
    return batch._replace(
        history_slot=slot[:, :p], target_slot=slot[:, p:], history_season=normal(p), target_season=normal(info.horizon),
        target_profile=normal(info.horizon),
    )


def default_model(name: str, info: SeriesInfo) -> Forecaster:
    """A model with its default fields and random weights, on the meta device: its parameters can be counted, and nothing is drawn.

    Raises:
        ConfigError: it cannot run on that data.
    """
    random = {"weights": "random"} if "weights" in config_class(name).__dataclass_fields__ else {}
    config = create_config({"name": name, **random})
    config.check(info)
    with torch.device("meta"):
        return create_model(config_values(config), info)


def is_close(one: Tensor, other: Tensor, within: Any = ()) -> bool:
    """Whether two tensors are equal up to rounding, beside their own size or that of the largest of ``within``."""
    size = max([one.norm(), other.norm(), *(tensor.norm() * 1e-2 for tensor in within)])
    return bool((one - other).norm() <= _ROUNDING * size)
