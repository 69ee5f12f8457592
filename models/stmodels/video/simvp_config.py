"""The configurations of SimVP and TAU. They need only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stmodels.errors import ConfigError
from stmodels.grids import GridConfig


@dataclass(frozen=True, kw_only=True)
class SimVPFields(GridConfig):
    """The fields of SimVP's shell: an encoder of each frame, a translator of all frames, a decoder of each.

    A grid whose sides the strides do not divide is padded by its last rows and columns, and cropped.
    """

    WHOLE_BATCHES = "its BatchNorms take means over all windows of a batch"
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 4, "hidden_width": 16, "layers": 2}

    width: int = 32
    """S, channels of a frame in the encoder and the decoder."""
    hidden_width: int = 256
    """Channels of the translator between its first and its last block."""
    depth: int = 2
    """N_S, convolutions of the encoder; every second one halves the sides."""
    layers: int = 8
    """N_T, blocks of the translator."""
    drop_path: float = 0.1
    """The probability that the last block of the translator is skipped in training; those before are skipped less often."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "hidden_width", "depth")
        self.check_at_least(2, "layers")
        self.check_share("drop_path")
        if self.width % 2:
            raise ConfigError(f"model.width={self.width} must be even: the norms of the encoder divide it into two groups")

    @property
    def divisor(self) -> int:
        """Both sides of a grid have to be multiples of it."""
        return int(2 ** (self.depth // 2))

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return self.layers / 8 * (self.hidden_width / 256) ** 2


@dataclass(frozen=True, kw_only=True)
class SimVPConfig(SimVPFields):
    """Configuration of SimVP: convolutions that see all frames of a window side by side, without recurrence."""

    MODEL = "stmodels.video.simvp:SimVP"
    PAPER = "arXiv 2206.05099, 2211.12509"
    PARAMETERS = 10_414_690

    name: Literal["simvp"] = "simvp"
    """The model."""
    translator: Literal["gsta", "incepu"] = "gsta"
    """`gsta`: gated attention from large kernels, as in the second version; `incepu`: a U-net of inception layers, as in the first."""

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return {"model.drop_path"} if self.translator == "incepu" else set()


@dataclass(frozen=True, kw_only=True)
class TAUConfig(SimVPFields):
    """Configuration of TAU: SimVP with attention within frames and between channels, and a loss on the changes from frame to frame."""

    MODEL = "stmodels.video.simvp:TAU"
    PAPER = "arXiv 2206.12126"
    PARAMETERS = 9_980_578

    name: Literal["tau"] = "tau"
    """The model."""
    diff_loss_weight: float = 0.1
    """α, the weight of the loss on the changes. It is a mean over all cells, so small that a hundred times as much may be worth a try."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "diff_loss_weight")

    def loss_weights(self) -> dict[str, float]:
        """Weights of the loss terms by name."""
        return {"diff": self.diff_loss_weight}

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"diff_loss": {"model.diff_loss_weight": 0.0}}
