"""The configuration of AGCRN. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.nodes import NodeConfig


@dataclass(frozen=True, kw_only=True)
class AGCRNConfig(NodeConfig):
    """Configuration of AGCRN: a GRU of graph convolutions over a learnt network, with weights that each node composes."""

    MODEL = "stmodels.graph.agcrn:AGCRN"
    PAPER = "arXiv 2007.02842"
    PARAMETERS = 745_740 + 10 * 207
    SMALL: ClassVar[Mapping[str, Any]] = {"hidden": 8, "rank": 2, "layers": 1}

    name: Literal["agcrn"] = "agcrn"
    """The model."""
    hidden: int = 64
    """Hidden units of every layer."""
    layers: int = 2
    """Number of recurrent layers."""
    rank: int = 10
    """d, the width of the node embeddings, from which the network and the nodes' weights come. The original has 2 on PEMS08."""
    supports: int = 2
    """K: 1 for no network, 2 for the learnt one, more for its Chebyshev polynomials."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "hidden", "layers", "rank", "supports")

    def reads(self) -> tuple[str, ...]:
        """Further channels are read where the data have them."""
        return ("inputs",)

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"learnt_network": {"model.supports": 1}}

    def relative_cost(self) -> float:
        """Multiplications per step, relative to the default."""
        return self.layers / 2 * self.supports / 2 * (self.hidden / 64) ** 2
