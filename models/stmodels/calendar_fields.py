"""The field of the models that have learned tables of the calendar. Only the standard library, as for every configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class CalendarConfig(ModelConfig):
    """Base of the configurations of models that have learned tables of the slots of the day and of the days of the week."""

    calendar: bool = True
    """Tables of the slot of the day and the day of the week. Without them their widths are kept, and filled with zeros."""

    def needs(self) -> tuple[str, ...]:
        return (*self.NEEDS, "calendar") if self.calendar else self.NEEDS

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if self.calendar and info.slots_per_day is None:
            raise ConfigError(
                f"{self.name} reads hour and weekday, and this data has no timestamps: add the array `timestamps`, or set "
                "model.calendar=false"
            )
