"""The configuration of the LSTM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(ModelConfig):
    """Configuration of the LSTM, an encoder-decoder that sees one node at a time and has the same weights for all nodes."""

    MODEL = "stmodels.series.lstm:LSTMForecaster"
    FAMILIES = ("sensors",)
    PARAMETERS = 50_497
    SMALL: ClassVar[Mapping[str, Any]] = {"hidden": 8}
    UNTRACED = "torch.compile does not trace an LSTM whole"

    name: Literal["lstm"] = "lstm"
    """The model."""
    hidden: int = 64
    """Hidden units of encoder and decoder."""
    layers: int = 1
    """Number of LSTM layers of the encoder, and of the decoder."""
    time_of_day: bool = False
    """Add a learned embedding of the slot of the day to every step of encoder and decoder."""

    def __post_init__(self) -> None:
        for field in ("hidden", "layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"model.{field} must be at least 1, it is {getattr(self, field)}")

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields, of the whole trial, that switch it off."""
        return {"time_of_day": {"model.time_of_day": False}}

    def reads(self) -> tuple[str, ...]:
        """Further channels are read where the data have them."""
        return ("inputs",)

    def relative_cost(self) -> float:
        """Multiplications per step, relative to one layer of 64 units."""
        return self.layers * (self.hidden / 64) ** 2

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        if info.family != "sensors":
            raise ConfigError(
                f"lstm forecasts sensor networks (T, N, C); this data is of the family '{info.family}': set data.family to sensors"
            )
        if self.time_of_day and info.slots_per_day is None:
            raise ConfigError(
                "model.time_of_day needs timestamps, and this data has none: add the array `timestamps`, or switch it off"
            )
