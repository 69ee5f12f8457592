"""What the models of sensor networks have in common. Only the standard library, as for every configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


def check_nodes(name: str, info: SeriesInfo) -> None:
    """Raise ConfigError unless the data are sensors with one channel to forecast."""
    if info.family != "sensors":
        raise ConfigError(
            f"{name} forecasts sensor networks (T, N, C); this data is read as the family '{info.family}': set "
            "data.family=sensors (a grid is flattened to its cells)"
        )
    if info.shape[1] != 1:
        raise ConfigError(f"{name} forecasts one channel a node; this data has {info.shape[1]}: choose one with data.channel")


@dataclass(frozen=True, kw_only=True)
class NodeConfig(ModelConfig):
    """Base of the configurations of models that forecast one channel of each sensor."""

    FAMILIES = ("sensors",)

    def check_at_least(self, least: float, *fields: str) -> None:
        """Raise ConfigError if one of the fields is smaller."""
        for field in fields:
            if getattr(self, field) < least:
                raise ConfigError(f"model.{field} must be at least {least:g}, it is {getattr(self, field)}")

    def check_share(self, *fields: str) -> None:
        """Raise ConfigError if one of the fields, such as a dropout, does not lie in [0, 1)."""
        for field in fields:
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"model.{field} must lie in [0, 1), it is {getattr(self, field)}")

    def check_heads(self, width: str, heads: str) -> None:
        """Raise ConfigError if the number of heads does not divide the width."""
        if getattr(self, width) % getattr(self, heads):
            raise ConfigError(
                f"model.{heads}={getattr(self, heads)} must divide model.{width}={getattr(self, width)}: change one of them"
            )

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        check_nodes(self.name, info)
        if "network" in self.needs() and info.adjacency is None:
            raise ConfigError(
                f"{self.name} needs a network, and the data have none: set data.distances to a file of edges, or data.graph to grid4 "
                "(cells of a grid) or correlation"
            )


@dataclass(frozen=True, kw_only=True)
class CalendarConfig(NodeConfig):
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
