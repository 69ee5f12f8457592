"""The configuration of Graph WaveNet. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.errors import ConfigError
from stmodels.nodes import NodeConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class GraphWaveNetFields(NodeConfig):
    """The fields of Graph WaveNet, for it and for models that are built around it."""

    WHOLE_BATCHES = "its BatchNorm takes means over all windows of a batch"
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "skip_width": 8, "output_width": 8, "rank": 2}

    width: int = 32
    """Channels of the layers."""
    skip_width: int = 256
    """Channels of the skip connections."""
    output_width: int = 512
    """Channels of the hidden layer of the head."""
    dilations: tuple[int, ...] = (1, 2, 1, 2, 1, 2, 1, 2)
    """The dilation of each layer, whose convolution sees two steps."""
    order: int = 2
    """The longest walk over each network, in edges."""
    networks: Literal["given and learnt", "given", "learnt"] = "given and learnt"
    """The networks that the layers diffuse over."""
    rank: int = 10
    """Width of the two node embeddings from which the network is learnt."""
    adaptive_side: Literal["original", "mean"] = "original"
    """`mean`: each node takes a weighted mean of the others, by its row of the learnt network, which sums to 1. `original`: it takes a sum
    by its column, as in the published code."""
    time_of_day: bool = True
    """Read the time of day, as a fraction of a day, beside each reading."""
    dropout: float = 0.3
    """Dropout after each graph convolution."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "skip_width", "output_width", "order", "rank")
        self.check_share("dropout")
        if len(self.dilations) < 2 or min(self.dilations) < 1:
            raise ConfigError(
                f"model.dilations are numbers of steps from 1, one a layer, of at least two layers; they are {list(self.dilations)}"
            )

    @property
    def reach(self) -> int:
        """Steps that the last layer sees."""
        return 1 + sum(self.dilations)

    def needs(self) -> tuple[str, ...]:
        return ("calendar",) * self.time_of_day + ("network",) * (self.networks != "learnt")

    def reads(self) -> tuple[str, ...]:
        """The network where it is used, and further channels where the data have them."""
        return ("network", "inputs") if "network" in self.needs() else ("inputs",)

    def relative_cost(self) -> float:
        """Multiplications per step, relative to the default."""
        return len(self.dilations) / 8 * (self.width / 32) ** 2

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return {"model.rank", "model.adaptive_side"} if self.networks == "given" else set()

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {
            "given_network": {"model.networks": "learnt"},
            "learnt_network": {"model.networks": "given"},
            "time_of_day": {"model.time_of_day": False},
        }

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        if self.networks != "learnt" and info.family == "sensors" and info.adjacency is None:
            raise ConfigError(
                f"{self.name} reads a network, and the data have none: set data.distances to a file of edges, data.graph to grid4 (cells "
                "of a grid) or correlation, or model.networks to learnt"
            )
        super().check(info)
        if self.time_of_day and info.slots_per_day is None:
            raise ConfigError(
                f"{self.name} reads the time of day, and this data has no timestamps: add the array `timestamps`, or set "
                "model.time_of_day=false"
            )


@dataclass(frozen=True, kw_only=True)
class GraphWaveNetConfig(GraphWaveNetFields):
    """Configuration of Graph WaveNet: gated dilated convolutions over time, and diffusion over a given and a learnt network."""

    MODEL = "stmodels.graph.graph_wavenet:GraphWaveNet"
    PAPER = "arXiv 1906.00121"
    PARAMETERS = 289_548 + 20 * 207

    name: Literal["graph_wavenet"] = "graph_wavenet"
    """The model."""
