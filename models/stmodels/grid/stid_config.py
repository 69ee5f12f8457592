"""The configuration of STID. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.calendar_fields import CalendarConfig


@dataclass(frozen=True, kw_only=True)
class STIDConfig(CalendarConfig):
    """Configuration of STID: a vector for each place, hour and weekday beside the window, and an MLP."""

    MODEL = "stmodels.grid.stid:STID"
    PAPER = "arXiv 2208.05233"
    PARAMETERS = 106_124
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "layers": 1}

    name: Literal["stid"] = "stid"
    """The model."""
    width: int = 32
    """Width of the embedded window and of each vector."""
    layers: int = 3
    """Number of residual layers of the MLP."""
    dropout: float = 0.15
    """Dropout within the layers."""
    calendar: bool = True
    """Vectors of the slot of the day and of the weekday, both of the last step of the history. Without them the layers are half as wide."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "layers")
        self.check_share("dropout")

    def reads(self) -> tuple[str, ...]:
        """Further channels of sensors, where the data have them."""
        return ("inputs",)

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"calendar": {"model.calendar": False}}
