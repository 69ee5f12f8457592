"""The configuration of ACFM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.grids import FramesConfig


@dataclass(frozen=True, kw_only=True)
class ACFMConfig(FramesConfig):
    """Configuration of ACFM: a ConvLSTM says how much each feature of a frame matters, a second one reads the features so weighed."""

    MODEL = "stmodels.grid.acfm:ACFM"
    PAPER = "arXiv 1909.02902"
    PARAMETERS = 104_716
    WHOLE_BATCHES = "its BatchNorms take means over all windows of a batch"
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "units": 1}

    name: Literal["acfm"] = "acfm"
    """The model."""
    width: int = 16
    """Channels of the features, and of both ConvLSTMs."""
    units: int = 2
    """R, residual units of the network of features: 2 for bikes in the paper, 4 (of the width 32) for taxis, 12 on a grid of 32×32."""
    dropout: float = 0.5
    """Dropout of whole channels before the ConvLSTMs, and of the calendar."""
    attention: Literal["per_step", "shared"] = "per_step"
    """Weights of the attention for each frame, as in the original, or for all."""
    calendar_width: int = 30
    """Hidden width of the network that reads hour and weekday of a frame."""
    gate_width: int = 32
    """Hidden width of the network that weighs window and season by the calendar of a step ahead."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "units", "calendar_width", "gate_width")
        self.check_share("dropout")

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        unread = {"window": {"model.calendar_width", "model.gate_width"}, "calendar": {"model.gate_width"}, "period": set()}
        return unread[self.inputs]

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return (2 if self.inputs == "period" else 1) * (self.width / 16) ** 2
