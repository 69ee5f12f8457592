"""The configuration of ST-Norm. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import ModelConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class STNormConfig(ModelConfig):
    """Configuration of ST-Norm: gated convolutions over time that see each layer's input raw, normalised over time, and over space."""

    MODEL = "stmodels.grid.stnorm:STNorm"
    PAPER = "Deng et al., KDD 2021"
    PARAMETERS = 23_580
    WHOLE_BATCHES = "its norm over time takes means over all windows of a batch"
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8}

    name: Literal["stnorm"] = "stnorm"
    """The model."""
    width: int = 16
    """D, channels of the layers."""
    layers: int | None = None
    """K; the last layer sees 2^K steps. By default as many as the history needs, which is 4 in the original of 16 steps. With
    fewer the oldest readings are not read."""
    time_norm: bool = True
    """A view that is normalised over time, each place by itself."""
    space_norm: bool = True
    """A view that is normalised over all places, each step by itself."""
    pad: Literal["edge", "zero"] = "edge"
    """What fills a history shorter than the last layer sees: its first reading, or 0 as in the original, which is a reading of
    middle size in the scaling of grids."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width")
        if self.layers is not None:
            self.check_at_least(1, "layers")

    def depth(self, info: SeriesInfo) -> int:
        """K."""
        return self.layers or max(1, (info.history - 1).bit_length())

    def reads(self) -> tuple[str, ...]:
        """Further channels of sensors, where the data have them."""
        return ("inputs",)

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return (self.layers or 3) / 3 * (self.width / 16) ** 2

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"time_norm": {"model.time_norm": False}, "space_norm": {"model.space_norm": False}}
