"""A linear model that keeps the contract, and one that breaks each of its clauses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster, TrainWindows
from stmodels.config import ModelConfig, Stage
from stmodels.errors import ConfigError
from stmodels.layers.losses import mean_squared
from stmodels.types import Batch, Forecast, SeriesInfo


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ModelConfig):
    """Each step of the forecast is a weighted sum of the steps of the history."""

    MODEL = "Linear"
    FAMILIES = ("sensors", "grid")
    PARAMETERS: ClassVar[int | None] = None

    name: str = "linear"
    breaks: str = ""
    """The clause that the model breaks."""
    level: bool = True
    """Add a constant."""

    def components(self) -> dict[str, dict[str, Any]]:
        return {"level": {"model.level": False}, **({"breaks": {"model.breaks": ""}} if self.breaks == "components" else {})}

    def reads(self) -> tuple[str, ...]:
        for part in ("network", "inputs"):
            if self.breaks in (f"{part}: unread", f"nothing, and reads the {part}"):
                return (part,)
        return super().reads()

    def stages(self) -> tuple[Stage, ...]:
        pretrains = "pretrain" in self.breaks
        return (Stage("first", 1, reads_pretrain=True),) if pretrains else ()

    def check(self, info: SeriesInfo) -> None:
        if info.history % 2 and self.breaks != "odd sizes":
            raise ConfigError(f"data.history must be even, it is {info.history}")


@dataclass(frozen=True, kw_only=True)
class MiscountedConfig(LinearConfig):
    """Declares a parameter that it does not have."""

    PARAMETERS: ClassVar[int | None] = 12 * 12 + 13


class Level(nn.Module):
    """A constant for each step."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(horizon))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.level, std=0.02)


class Linear(Forecaster):
    criterion = staticmethod(mean_squared)

    def __init__(self, config: LinearConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.breaks, self.info = config.breaks, info
        if info.history % 2:
            raise ValueError("odd")
        self.weight = nn.Parameter(torch.randn(info.horizon, info.history))
        self.level = Level(info.horizon) if config.level else None
        self.unused = nn.Parameter(torch.ones(1)) if self.breaks == "gradients" else None
        self.calls, self.series = 0, None

    def reset_parameters(self) -> None:
        if self.breaks != "seeds":
            nn.init.normal_(self.weight, std=0.1)

    def fit(self, windows: TrainWindows) -> None:
        self.series = windows.series if self.breaks == "no future: series" else None

    def forward(self, batch: Batch) -> Forecast:
        if self.breaks == "pretraining":
            batch = batch._replace(history=batch.history.reshape(-1, self.info.history, *self.info.shape))
        value = torch.einsum("qp,bp...->bq...", self.weight, batch.history)
        if "network" in self.breaks and self.breaks != "network: unread" and self.info.adjacency is not None:
            value = value + 0.1 * torch.einsum("nm,bqmc->bqnc", self.info.adjacency, value)
        if self.breaks == "season" and batch.target_season is not None:
            value = value + 0.1 * batch.target_season.mean()
        if self.breaks == "information: calendar" and batch.target_slot is not None:
            value = value + 0.1 * self.weight.sum() * batch.target_slot.float().mean()
        if self.breaks == "information: season" and batch.target_profile is not None:
            value = value + 0.1 * batch.target_profile
        if "inputs" in self.breaks and self.breaks != "inputs: unread" and batch.history_inputs is not None:
            value = value + 0.1 * batch.history_inputs.mean((1, 3))[:, None, :, None]
        if self.level is not None:
            value = value + self.level.level.view(-1, *[1] * (value.ndim - 2))
        return Forecast(self._broken(value, batch))

    def _broken(self, value: Tensor, batch: Batch) -> Tensor:
        self.calls += self.training
        if self.breaks == "shapes":
            return value[:, :1]
        if self.breaks == "no future":
            return value + batch.target.mean()
        if self.breaks == "no future: mask" and batch.target_mask is not None:
            return value + batch.target_mask.float().mean()
        if self.series is not None:
            return value + self.series[batch.start + self.info.history].mean()
        if self.breaks == "windows apart":
            return value - value.mean(0)
        if self.breaks == "bfloat16":
            return value / (not torch.is_autocast_enabled("cpu"))
        if self.breaks == "resumption":
            return value * (1 + self.calls)
        if self.breaks == "learning":
            return batch.history[:, -1:] + 0 * value
        if self.breaks == "traced":
            print(end="")
        return value

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        error = forecast.value - batch.target
        if self.breaks == "masks":
            return {"forecast": mean_squared(error, None)}
        if self.breaks == "micro-batches":
            return {"forecast": error.square().sum()}
        if self.breaks == "criterion":
            return {"forecast": mean_squared(error, batch.target_mask)}
        return {"forecast": self.criterion(error, batch.target_mask)}
