"""What a network is told and asked: the readings themselves, or what the season, or a ridge regression, leaves of them.

Legend: B batch, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

from torch import Tensor, nn

from stmodels.base import TrainWindows
from stmodels.layers.ridge import Ridge
from stmodels.layers.season import LEVELS, season_levels
from stmodels.seasonal import SeasonalConfig
from stmodels.types import Batch, SeriesInfo


class Remainder(nn.Module):
    """A forecast is a base, which is known beforehand, and what a network adds to it, in units of its deviation."""

    def __init__(self, config: SeasonalConfig, info: SeriesInfo) -> None:
        super().__init__()
        self.info = info
        self.is_seasonal, self.has_level = config.seasonal_residual, config.seasonal_level
        self.ridge = Ridge(info) if config.linear_base == "ridge" else None
        self.spread = 1.0 if not self.is_seasonal and self.ridge is None else info.residual_std or info.flow_std
        """Standard deviation of what is left, scaled."""

    @property
    def told(self) -> int:
        """How many series the network is told of the past: the readings, or their residuals and the season."""
        return 2 if self.is_seasonal else 1

    @property
    def told_ahead(self) -> int:
        """How many series it is told of the horizon."""
        return (1 + LEVELS * self.has_level) * self.is_seasonal

    def past(self, batch: Batch) -> list[Tensor]:
        """``told`` series of the history, each (B, P, *S)."""
        if not self.is_seasonal:
            return [batch.history]
        assert batch.history_season is not None
        return [(batch.history - batch.history_season) / self.spread, batch.history_season]

    def ahead(self, batch: Batch) -> list[Tensor]:
        """``told_ahead`` series of the horizon, each (B, Q, *S), known beforehand."""
        if not self.is_seasonal:
            return []
        assert batch.target_profile is not None
        levels = [level / self.spread for level in season_levels(batch, self.info)] if self.has_level else []
        return [batch.target_profile, *levels]

    def forecast(self, batch: Batch, decoded: Tensor) -> Tensor:
        """(B, Q, *S): the base and what the network says is left."""
        if self.ridge is not None:
            return self.ridge(batch) + self.spread * decoded
        if self.is_seasonal:
            assert batch.target_season is not None
            return batch.target_season + self.spread * decoded
        return decoded

    def start_at_the_base(self, readout: nn.Module) -> None:
        """Beside a ridge the last layer of the network starts at zero."""
        if self.ridge is not None:
            for parameter in readout.parameters():
                nn.init.zeros_(parameter)

    def fit(self, windows: TrainWindows) -> None:
        if self.ridge is not None:
            self.ridge.fit(windows)

    def choose(self, validation: TrainWindows, by: str) -> dict[str, float]:
        return {} if self.ridge is None else {"penalty": self.ridge.choose(validation, by)}
