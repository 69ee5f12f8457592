"""The configuration of STGSP. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.grids import FramesConfig


@dataclass(frozen=True, kw_only=True)
class STGSPConfig(FramesConfig):
    """Configuration of STGSP, without its pre-training: a token a frame, and a transformer over them with a query in front."""

    MODEL = "stmodels.grid.stgsp:STGSP"
    PAPER = "Zhao et al., TKDE 2022"
    PARAMETERS = 2_821_356
    WHOLE_BATCHES = "its BatchNorms take means over all windows of a batch"
    SMALL: ClassVar[Mapping[str, Any]] = {"channels": 4, "units": 1, "width": 16, "heads": 2, "feedforward": 16, "layers": 1}

    name: Literal["stgsp"] = "stgsp"
    """The model."""
    channels: int = 16
    """Channels of the convolutions of a frame."""
    units: int = 2
    """R, residual units of a frame. The public code has 12 on its one published configuration; that of bikes is not public."""
    width: int = 128
    """D, the width of a token."""
    layers: int = 2
    """Number of encoder layers."""
    heads: int = 8
    """Number of attention heads."""
    feedforward: int = 2048
    """Hidden width of the feed-forward networks."""
    dropout: float = 0.1
    """Dropout in the encoder."""
    calendar_width: int = 40
    """Hidden width of the networks that read hour and weekday."""
    calendar_dropout: float = 0.5
    """Dropout of the calendar of a frame."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "channels", "units", "width", "layers", "heads", "feedforward", "calendar_width")
        self.check_share("dropout", "calendar_dropout")
        self.check_heads("width", "heads")

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return {"model.calendar_width", "model.calendar_dropout"} if self.inputs == "window" else set()

    def relative_cost(self) -> float:
        """Frames, relative to those of a window."""
        return 3 if self.inputs == "period" else 1
