"""Fields of the models that can forecast what a season or a ridge leaves. Only the standard library, as for every configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class SeasonalConfig(ModelConfig):
    """Base of their configurations; :class:`stmodels.layers.remainder.Remainder` does what the fields say. All go beyond the papers."""

    seasonal_residual: bool = False
    """Beyond the paper: forecast the difference from the train segment's mean by slot of the week."""
    seasonal_level: bool = False
    """Beyond the paper, with `seasonal_residual`: the decoder is told how much busier than its season a place and all places have been."""
    linear_base: Literal["none", "ridge"] = "none"
    """Beyond the paper: `ridge` forecasts what is left by the ridge regression that stands in every table as a reference. Training starts
    level with it."""

    def needs(self) -> tuple[str, ...]:
        return (*self.NEEDS, "season") if self.linear_base == "ridge" else self.NEEDS

    def chooses(self) -> bool:
        """Whether it has a ridge regression, whose penalty is chosen."""
        return self.linear_base == "ridge"

    def seasonal_components(self) -> dict[str, dict[str, Any]]:
        """Component → dotted fields that switch it off."""
        return {
            "seasonal_residual": {"model.seasonal_residual": False, "model.seasonal_level": False},
            "seasonal_level": {"model.seasonal_level": False},
            "linear_base": {"model.linear_base": "none"},
        }

    def check_seasonal_fields(self) -> None:
        """Raise ConfigError if they do not go together."""
        if self.seasonal_level and not self.seasonal_residual:
            raise ConfigError("model.seasonal_level is told beside the season: set model.seasonal_residual to true")

    def check_season(self, info: SeriesInfo) -> None:
        """Raise ConfigError if the data have no season to forecast the difference from."""
        if not self.seasonal_residual:
            return
        if info.slots_per_day is None:
            raise ConfigError(
                "model.seasonal_residual needs timestamps, and this data has none: add the array `timestamps`, or switch it off"
            )
        if info.season_count < 2:
            raise ConfigError(
                "model.seasonal_residual needs every slot of the week at least twice in the train segment (its own mean would otherwise "
                f"be itself); the rarest is seen {info.season_count} times: give more data, or switch it off"
            )
