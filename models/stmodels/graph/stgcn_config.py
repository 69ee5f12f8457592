"""The configuration of STGCN. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.errors import ConfigError
from stmodels.nodes import NodeConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class STGCNConfig(NodeConfig):
    """Configuration of STGCN: gated convolutions over time around a Chebyshev graph convolution, without recurrence."""

    MODEL = "stmodels.graph.stgcn:STGCN"
    NEEDS = ("network",)
    PAPER = "arXiv 1709.04875"
    PARAMETERS = 125_260 + 512 * 207
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "graph_width": 4, "output_width": 8}

    name: Literal["stgcn"] = "stgcn"
    """The model."""
    width: int = 64
    """Channels of the convolutions over time."""
    graph_width: int = 16
    """Channels of the graph convolutions."""
    output_width: int = 128
    """Channels of the output block."""
    kernel: int = 3
    """Steps that a convolution over time sees."""
    polynomials: int = 3
    """K, the number of Chebyshev polynomials, T_0 to T_(K−1)."""
    blocks: int = 2
    """Number of blocks, each of two convolutions over time and a graph convolution between them."""
    dropout: float = 0.5
    """Dropout after each block."""
    output_dropout: float = 0.0
    """Dropout before the last layer. One of two public implementations has it."""
    layer_norm: bool = True
    """LayerNorm over nodes and channels after each block. It couples all nodes, whatever the network."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "graph_width", "output_width", "kernel", "polynomials", "blocks")
        self.check_share("dropout", "output_dropout")

    def reads(self) -> tuple[str, ...]:
        """The network, and further channels where the data have them."""
        return ("network", "inputs")

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"layer_norm": {"model.layer_norm": False}}

    def relative_cost(self) -> float:
        """Multiplications per step, relative to the default."""
        return self.blocks / 2 * (self.width / 64) ** 2

    def steps_left(self, history: int) -> int:
        """Steps that the convolutions of the blocks leave, which those of the output block take together."""
        return history - 2 * self.blocks * (self.kernel - 1)

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if self.steps_left(info.history) < 1:
            raise ConfigError(
                f"stgcn: {self.blocks} blocks with model.kernel={self.kernel} use up data.history={info.history} steps; they need more "
                f"than {info.history - self.steps_left(info.history)}: give a longer history, or a smaller kernel"
            )
