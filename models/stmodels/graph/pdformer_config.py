"""The configuration of PDFormer. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.calendar_fields import CalendarConfig
from stmodels.errors import ConfigError
from stmodels.nodes import NodeConfig


@dataclass(frozen=True, kw_only=True)
class PDFormerConfig(CalendarConfig, NodeConfig):
    """Configuration of PDFormer: a transformer whose heads look at near nodes, at similar nodes, or along time."""

    MODEL = "stmodels.graph.pdformer:PDFormer"
    NEEDS = ("network",)
    PAPER = "arXiv 2301.07945"
    PARAMETERS = 457_437
    SMALL: ClassVar[Mapping[str, Any]] = {
        "head_width": 2, "layers": 1, "skip_width": 8, "patterns": 4, "eigenvectors": 2, "flip_signs": False, "stochastic_depth": 0.0,
    }  # fmt: skip

    name: Literal["pdformer"] = "pdformer"
    """The model."""
    head_width: int = 8
    """Width of an attention head."""
    near_heads: int = 4
    """Heads that look at the nodes less than `hops` edges away."""
    similar_heads: int = 2
    """Heads that look at the nodes with the most similar days."""
    time_heads: int = 2
    """Heads that look along the history of a node."""
    layers: int = 6
    """Number of layers."""
    skip_width: int = 256
    """Channels of the skip connections."""
    hops: int = 7
    """The distance in edges from which on nodes are not near. With 1 a node sees itself alone."""
    similar: int = 5
    """The number of similar nodes that a node looks at, itself among them. 1: itself alone."""
    patterns: int = 16
    """The number of short patterns that enrich the keys of the near heads."""
    pattern_length: int = 3
    """Steps of a pattern."""
    pattern_days: int = 14
    """The days at the start of the train segment from which patterns are taken. The original has 21 on PEMS08."""
    eigenvectors: int = 8
    """The number of eigenvectors of the network's Laplacian that tell where a node is."""
    flip_signs: bool = True
    """Flip the signs of the eigenvectors at random in training, since they have none of their own."""
    mlp_ratio: int = 4
    """Hidden width of the feed-forward networks, in widths of a token."""
    dropout: float = 0.0
    """Dropout in the feed-forward networks and after attention."""
    stochastic_depth: float = 0.3
    """The probability that the last layer is skipped in training. It grows evenly from layer to layer, from 0 for the first."""

    def __post_init__(self) -> None:
        self.check_at_least(
            1, "head_width", "near_heads", "similar_heads", "time_heads", "layers", "skip_width", "hops", "similar", "patterns",
            "pattern_length", "pattern_days", "eigenvectors", "mlp_ratio",
        )  # fmt: skip
        self.check_share("dropout", "stochastic_depth")
        if self.width % 2:
            raise ConfigError(f"model.head_width={self.head_width} gives tokens of the odd width {self.width}: choose an even one")

    @property
    def width(self) -> int:
        """D, the width of a token: that of all heads together."""
        return self.head_width * (self.near_heads + self.similar_heads + self.time_heads)

    def reads(self) -> tuple[str, ...]:
        """The network, and further channels where the data have them."""
        return ("network", "inputs")

    def prepared_from(self) -> Mapping[str, Any]:
        """Which nodes are similar and what the patterns are come from the train segment."""
        fields = ("similar", "patterns", "pattern_length", "pattern_days")
        return {field: getattr(self, field) for field in fields}

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"near_nodes": {"model.hops": 1}, "similar_nodes": {"model.similar": 1}, "calendar": {"model.calendar": False}}

    def relative_cost(self) -> float:
        """Multiplications per token, relative to the default."""
        return self.layers / 6 * (self.width / 64) ** 2
