"""The configuration of ST-ResNet. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.grids import FramesConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class STResNetConfig(FramesConfig):
    """Configuration of ST-ResNet: residual convolutions over the frames of the window, weighed cell by cell."""

    MODEL = "stmodels.grid.stresnet:STResNet"
    PAPER = "arXiv 1610.00081"
    PARAMETERS = 310_860
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "units": 1}

    name: Literal["stresnet"] = "stresnet"
    """The model."""
    width: int = 64
    """Channels of the convolutions."""
    units: int | None = None
    """R, residual units of a branch. By default those of the paper: 12 for a grid of 32×32 or more, and 4 for a smaller one."""
    calendar_width: int = 10
    """Hidden width of the network that reads hour and weekday."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "calendar_width")
        if self.units is not None:
            self.check_at_least(1, "units")

    def depth(self, info: SeriesInfo) -> int:
        """R."""
        return self.units or (12 if min(info.shape[1:]) >= 32 else 4)

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return {"model.calendar_width"} if self.inputs == "window" else set()

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return (2 if self.inputs == "period" else 1) * (self.units or 4) / 4 * (self.width / 64) ** 2
