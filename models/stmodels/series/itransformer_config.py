"""The configuration of iTransformer. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.calendar_fields import CalendarConfig


@dataclass(frozen=True, kw_only=True)
class ITransformerConfig(CalendarConfig):
    """Configuration of iTransformer: a series' window is one token, and attention mixes series."""

    FAMILIES = ("sensors", "grid")
    MODEL = "stmodels.series.itransformer:ITransformer"
    PAPER = "arXiv 2310.06625"
    PARAMETERS = 3_169_804
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 16, "feedforward": 16, "heads": 2, "layers": 1}

    name: Literal["itransformer"] = "itransformer"
    """The model."""
    width: int = 512
    """D, the width of a token."""
    feedforward: int = 512
    """Hidden width of the feed-forward networks."""
    heads: int = 8
    """Number of attention heads."""
    layers: int = 2
    """E, the number of encoder layers."""
    dropout: float = 0.1
    """Dropout after the embedding and in the layers."""
    window_norm: bool = True
    """Forecast each series' window in units of its own mean and deviation."""
    calendar: bool = False
    """Hours and weekdays of the window as two further tokens."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "feedforward", "heads", "layers")
        self.check_share("dropout")
        self.check_heads("width", "heads")

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"window_norm": {"model.window_norm": False}, "calendar": {"model.calendar": False}}

    def relative_cost(self) -> float:
        """Multiplications per token, relative to the default."""
        return self.layers / 2 * self.width * (4 * self.width + 2 * self.feedforward) / (512 * 6 * 512)
