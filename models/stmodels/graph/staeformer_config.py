"""The configuration of STAEformer. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.calendar_fields import CalendarConfig
from stmodels.errors import ConfigError
from stmodels.nodes import NodeConfig


@dataclass(frozen=True, kw_only=True)
class STAEformerConfig(CalendarConfig, NodeConfig):
    """Configuration of STAEformer: a transformer over time and one over nodes, with an embedding for each step and node."""

    MODEL = "stmodels.graph.staeformer:STAEformer"
    PAPER = "arXiv 2308.10425"
    PARAMETERS = 1_060_212 + 960 * 207
    SMALL: ClassVar[Mapping[str, Any]] = {
        "input_width": 4, "calendar_width": 4, "adaptive_width": 4, "heads": 2, "feedforward": 8, "layers": 1,
    }  # fmt: skip

    name: Literal["staeformer"] = "staeformer"
    """The model."""
    input_width: int = 24
    """Width of the embedding of the readings."""
    calendar_width: int = 24
    """Width of each of the two tables of the calendar."""
    adaptive_width: int = 80
    """Width of the embedding of each step of the window and node. 0: without it."""
    reads_calendar: bool = False
    """Read slot and weekday as numbers beside each reading, as the original does."""
    heads: int = 4
    """Number of attention heads."""
    feedforward: int = 256
    """Hidden width of the feed-forward networks."""
    layers: int = 3
    """Number of layers over time, and of layers over nodes."""
    spatial: bool = True
    """Layers over nodes."""
    dropout: float = 0.1
    """Dropout in the layers."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "input_width", "calendar_width", "heads", "feedforward", "layers")
        self.check_at_least(0, "adaptive_width")
        self.check_share("dropout")
        if self.width % self.heads:
            raise ConfigError(
                f"model.heads={self.heads} must divide the width {self.width} of the tokens, which is model.input_width + "
                "2 model.calendar_width + model.adaptive_width: change one of them"
            )
        if self.reads_calendar and not self.calendar:
            raise ConfigError("model.reads_calendar needs the calendar: set model.calendar to true")

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.input_width + 2 * self.calendar_width + self.adaptive_width

    def reads(self) -> tuple[str, ...]:
        """Further channels are read where the data have them."""
        return ("inputs",)

    def relative_cost(self) -> float:
        """Multiplications per token, relative to the default."""
        return self.layers / 3 * self.width * (4 * self.width + 2 * self.feedforward) / (152 * (4 * 152 + 512))

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {
            "adaptive_embedding": {"model.adaptive_width": 0},
            "calendar": {"model.calendar": False},
            "spatial": {"model.spatial": False},
        }
