"""The configuration of ASTGCN. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.nodes import NodeConfig


@dataclass(frozen=True, kw_only=True)
class ASTGCNConfig(NodeConfig):
    """Configuration of ASTGCN, its branch of recent readings: a Chebyshev convolution modulated by attention over time and nodes."""

    MODEL = "stmodels.graph.astgcn:ASTGCN"
    NEEDS = ("network",)
    PAPER = "Guo et al., AAAI 2019"
    PARAMETERS = 4 * 207**2 + 67 * 207 + 52_466
    SMALL: ClassVar[Mapping[str, Any]] = {"graph_width": 4, "width": 4}

    name: Literal["astgcn"] = "astgcn"
    """The model."""
    graph_width: int = 64
    """Channels of the graph convolutions."""
    width: int = 64
    """Channels of the convolutions over time."""
    polynomials: int = 3
    """K, the number of Chebyshev polynomials, T_0 to T_(K−1)."""
    blocks: int = 2
    """Number of blocks."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "graph_width", "width", "polynomials", "blocks")

    def reads(self) -> tuple[str, ...]:
        """The network, and further channels where the data have them."""
        return ("network", "inputs")

    def relative_cost(self) -> float:
        """Multiplications per step, relative to the default."""
        return self.blocks / 2 * self.polynomials / 3 * (self.graph_width / 64) ** 2
