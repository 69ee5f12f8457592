"""The configuration of MC-STL. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.grids import InputsConfig


@dataclass(frozen=True, kw_only=True)
class MCSTLConfig(InputsConfig):
    """Configuration of MC-STL, without its pre-training: a branch of spatial and of channel tokens, and one of patches and their graph.

    Unlike the other models of one step it gives all steps at once, and its output is linear. It grows with the square of the grid.
    """

    MODEL = "stmodels.grid.mc_stl:MCSTL"
    PAPER = "Zhang et al., CIKM 2023"
    PARAMETERS = 4_791_875
    UNTRACED = "torch.compile does not trace a GRU whole"
    SMALL: ClassVar[Mapping[str, Any]] = {"token_width": 8, "width": 8, "heads": 2, "units": 1}

    name: Literal["mc_stl"] = "mc_stl"
    """The model."""
    inputs: Literal["window", "period"] = "window"
    """`window`: the history; `period`: also the train segment's means by slot of the week, of the history and of the steps ahead, in the
    place of the frames of earlier days."""
    patch: int = 2
    """Cells of a patch along each axis."""
    token_width: int = 32
    """Width of a token of the contrast branch."""
    width: int = 128
    """Width of a token of the mask branch, and channels of both convolutional networks."""
    heads: int = 4
    """Attention heads of the mask branch."""
    units: int = 4
    """Residual units of both convolutional networks."""
    dropout: float = 0.3
    """Dropout before the last convolution."""
    beta: float = 0.5
    """β: edges of the graph below 1 + β times the mean are cut."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "patch", "token_width", "width", "heads", "units")
        self.check_share("dropout")
        self.check_at_least(0, "beta")
        self.check_heads("width", "heads")
