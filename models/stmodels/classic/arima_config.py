"""The configuration of ARIMA. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo

Order = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ARIMAConfig(ModelConfig):
    """Configuration of ARIMA: one model a series, fitted once on the train segment."""

    MODEL = "stmodels.classic.arima:ARIMA"
    PARAMETERS = 0
    SMALL: ClassVar[Mapping[str, Any]] = {"order": (2, 0, 0), "estimate": "least_squares"}

    name: Literal["arima"] = "arima"
    """The model."""
    order: Order | Literal["auto", "aic"] = "auto"
    """[p, d, q]; `aic` chooses it, with p ≤ 3, d ≤ 1 and q ≤ 1, by the likelihood of a sample of the series; `auto` is [3, 0, 1] for
    sensors and [6, 0, 0] for grids."""
    estimate: Literal["auto", "likelihood", "least_squares"] = "auto"
    """`likelihood`: the maximum likelihood of the library statsmodels, which takes a second a series; `least_squares`: all series in one
    solution, the moving average by Hannan and Rissanen; `auto`: `likelihood` for sensors and `least_squares` for grids."""
    sample: int = 10
    """The number of series by which `order: aic` chooses."""

    def __post_init__(self) -> None:
        if not isinstance(self.order, str):
            object.__setattr__(self, "order", tuple(self.order))
            if min(self.order) < 0 or sum(self.order) == 0:
                raise ConfigError(f"model.order is [p, d, q], numbers from 0 and not all 0; it is {list(self.order)}")
        if self.sample < 1:
            raise ConfigError(f"model.sample must be at least 1, it is {self.sample}")

    def inert(self) -> set[str]:
        """All fields of training, since nothing is trained by gradients."""
        return {"train"} if self.order == "aic" else {"train", "model.sample"}

    def prepared_from(self) -> Mapping[str, Any]:
        """All coefficients come from the train segment."""
        return {"order": self.order, "estimate": self.estimate, "sample": self.sample}

    def largest_order(self, family: str) -> Order:
        """[p, d, q], or the largest that `aic` may choose."""
        if self.order == "aic":
            return (3, 1, 1)
        if self.order == "auto":
            return (3, 0, 1) if family == "sensors" else (6, 0, 0)
        assert not isinstance(self.order, str)
        return self.order

    def estimator(self, family: str) -> str:
        """How it is fitted."""
        return self.estimate if self.estimate != "auto" else "likelihood" if family == "sensors" else "least_squares"

    def relative_cost(self) -> float:
        """Fitted once for all seeds."""
        return 0.1

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        p, d, _ = self.largest_order(info.family)
        if p + d > info.history:
            asked = list(self.order) if not isinstance(self.order, str) else self.order
            raise ConfigError(
                f"model.order={asked} needs {p + d} steps of history, and data.history is {info.history}: set it to one that needs less, "
                f"such as [{info.history}, 0, 0]"
            )
