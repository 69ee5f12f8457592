"""The configuration of HA. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class HAConfig(ModelConfig):
    """Configuration of HA, the historical average. Papers mean different things by it, and the field `over` names them."""

    MODEL = "stmodels.classic.ha:HA"
    PARAMETERS = 0

    name: Literal["ha"] = "ha"
    """The model."""
    over: Literal["week", "day", "days", "window"] = "week"
    """The mean of the train segment at the same slot of the `week`, or of the `day`; of the last `days` at the same slot; or of the
    `window`, which is the history."""
    days: int = 7
    """K, the number of days before the forecast, with `over: days`."""

    def __post_init__(self) -> None:
        if self.days < 1:
            raise ConfigError(f"model.days must be at least 1, it is {self.days}")

    def needs(self) -> tuple[str, ...]:
        return () if self.over == "window" else ("calendar",)

    def information(self) -> Literal["window", "calendar", "period"]:
        return "window" if self.over == "window" else "period"

    def inert(self) -> set[str]:
        """All fields of training, since nothing is trained."""
        return {"train"} if self.over == "days" else {"train", "model.days"}

    def past(self, info: SeriesInfo) -> int:
        """K days before the first target, without the history."""
        return max(0, self.days * (info.slots_per_day or 0) - info.history) if self.over == "days" else 0

    def relative_cost(self) -> float:
        """Seconds at most."""
        return 0.01

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        if self.over == "window":
            return
        slots = info.slots_per_day
        if slots is None:
            raise ConfigError(f"ha: model.over={self.over} needs timestamps, and this data has none: add them, or set it to window")
        if self.over == "days" and slots < info.horizon:
            raise ConfigError(f"ha: a day of {slots} steps lies within data.horizon={info.horizon}, so that a reading of a day before is "
                              "not known: set model.over to week or day")
