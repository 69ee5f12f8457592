"""The configuration of the reference forecasts, and which of them a data set allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo

Baseline = Literal[
    "slot_of_week_mean", "same_slot_last_week", "same_slot_yesterday", "last_value", "last_window", "ridge"
]
_WITHOUT_CALENDAR = ("last_value", "last_window", "ridge")
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(ModelConfig):
    """Configuration of a reference forecast, which has no field but its name."""

    MODEL = "stmodels.baselines.model:Baseline"

    name: Baseline

    def needs(self) -> tuple[str, ...]:
        return () if self.name in _WITHOUT_CALENDAR else ("calendar",)

    def information(self) -> Literal["window", "calendar", "period"]:
        return "window" if self.name in ("last_value", "last_window") else "period"

    def inert(self) -> set[str]:
        """All fields of training, since a reference forecast is not trained; what the ridge is chosen by counts all the same."""
        return {"train"}

    def chooses(self) -> bool:
        return self.name == "ridge"

    def relative_cost(self) -> float:
        """Seconds at most."""
        return 0.01

    def lag(self, info: SeriesInfo) -> int:
        """Number of steps between a forecast and the reading that it copies (the ``same_slot_*`` baselines)."""
        return (info.slots_per_day or 0) * (7 if self.name == "same_slot_last_week" else 1)

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError with the reason if the data does not allow this baseline."""
        if self.name in _WITHOUT_CALENDAR:
            return
        if info.slots_per_day is None:
            raise ConfigError(f"{self.name}: the data has no timestamps")
        if self.name == "slot_of_week_mean":
            if info.season_count < 1:
                raise ConfigError(
                    f"{self.name}: every slot of the week must stand at least 1× in the train segment, "
                    f"and the rarest stands there {info.season_count}×"
                )
        elif self.lag(info) < info.horizon:
            raise ConfigError(f"{self.name}: {self.lag(info)} steps back lies within the horizon of {info.horizon}")
        elif self.lag(info) > info.lookback:
            raise ConfigError(
                f"{self.name}: the series starts {info.lookback} steps before its first test target, {self.lag(info)} are needed"
            )
