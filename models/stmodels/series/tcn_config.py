"""The configuration of the TCN. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.nodes import NodeConfig


@dataclass(frozen=True, kw_only=True)
class TCNConfig(NodeConfig):
    """Configuration of the TCN: dilated causal convolutions over each node's window, with the same weights for all nodes."""

    MODEL = "stmodels.series.tcn:TCN"
    PAPER = "arXiv 1803.01271"
    PARAMETERS = 42_764
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "levels": 2}

    name: Literal["tcn"] = "tcn"
    """The model."""
    width: int = 64
    """Channels of every level."""
    levels: int = 3
    """Number of levels. Level i has the dilation 2^i."""
    kernel: int = 2
    """Steps that a convolution sees."""
    dropout: float = 0.2
    """Dropout after each convolution."""
    init: Literal["default", "original"] = "default"
    """First weights of the convolutions: PyTorch's, or normal ones with the deviation 0.01 as in the original."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "levels", "kernel")
        self.check_share("dropout")

    def reads(self) -> tuple[str, ...]:
        """Further channels are read where the data have them."""
        return ("inputs",)

    def relative_cost(self) -> float:
        """Multiplications per step, relative to the default."""
        return self.levels / 3 * (self.width / 64) ** 2
