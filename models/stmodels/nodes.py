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

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        check_nodes(self.name, info)
        if "network" in self.needs() and info.adjacency is None:
            raise ConfigError(
                f"{self.name} needs a network, and the data have none: set data.distances to a file of edges, or data.graph to grid4 "
                "(cells of a grid) or correlation"
            )
