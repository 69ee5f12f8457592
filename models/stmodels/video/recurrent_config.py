"""What the configurations of PredRNN, MIM and MAU share. Only the standard library, as for every configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.errors import ConfigError
from stmodels.grids import GridConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(GridConfig):
    """Base of the configurations of models that go from frame to frame, and forecast one from the one before.

    The loss covers all frames that follow another, those of the history too. In training a forecast is made from true frames at first, and
    from the model's own later on (scheduled sampling, Bengio et al. 2015).
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "layers": 1, "kernel": 3}

    width: int = 64
    """D, channels of every state. The papers take 128, for grids of 32×32 and larger images."""
    layers: int = 4
    """Number of layers."""
    kernel: int = 5
    """Cells that a convolution sees along each axis."""
    sampling_share: float = 0.5
    """The probability that a frame is a true one falls from 1 to 0 within this share of `train.max_epochs`. With 0 the model reads its own
    forecasts from the start. `train.patience` counts from the end of it."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "layers", "kernel")
        if not 0 <= self.sampling_share <= 1:
            raise ConfigError(f"model.sampling_share must lie between 0 and 1, it is {self.sampling_share}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"model.kernel={self.kernel} must be odd, so that a convolution keeps the size of the grid")

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"scheduled_sampling": {"model.sampling_share": 0.0}}


@dataclass(frozen=True, kw_only=True)
class FoldedConfig(RecurrentConfig):
    """Base of the configurations of models that fold a frame into patches of cells, side by side as channels."""

    SMALL: ClassVar[Mapping[str, Any]] = RecurrentConfig.SMALL

    patch: int = 1
    """s, cells of a patch along each axis. On a grid of 32×32 the papers take 2 or 4; a small grid keeps its places with 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "patch")

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return self.layers / 4 * (self.width / 64) ** 2 * (self.kernel / 5) ** 2 / self.patch**2


@dataclass(frozen=True, kw_only=True)
class PredRNNConfig(FoldedConfig):
    """Configuration of PredRNN: ConvLSTMs with a second memory, which climbs the layers and drops to the first at the next step."""

    MODEL = "stmodels.video.predrnn:PredRNN"
    PAPER = "Wang et al., NeurIPS 2017"
    PARAMETERS = 5_892_096

    name: Literal["predrnn"] = "predrnn"
    """The model."""
    layer_norm: bool = False
    """A LayerNorm over all channels and cells after each convolution. It ties the weights to the size of the grid."""


@dataclass(frozen=True, kw_only=True)
class MIMConfig(FoldedConfig):
    """Configuration of MIM: PredRNN with two small recurrent units in the place of the forget gate, one of which follows differences."""

    MODEL = "stmodels.video.mim:MIM"
    PAPER = "arXiv 1811.07490"
    PARAMETERS = 9_418_752
    SMALL: ClassVar[Mapping[str, Any]] = {**FoldedConfig.SMALL, "layers": 2}

    name: Literal["mim"] = "mim"
    """The model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "layers")

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if info.history < 2:
            raise ConfigError("mim reads differences between frames, and data.history is 1: give it at least 2 steps")


@dataclass(frozen=True, kw_only=True)
class MAUConfig(RecurrentConfig):
    """Configuration of MAU: a cell that weighs its earlier states by how similar they are to the present one."""

    MODEL = "stmodels.video.mau:MAU"
    PAPER = "Chang et al., NeurIPS 2021"
    PARAMETERS = 3_484_098
    SMALL: ClassVar[Mapping[str, Any]] = {**RecurrentConfig.SMALL, "tau": 2}

    name: Literal["mau"] = "mau"
    """The model."""
    tau: int = 5
    """τ, the number of earlier states."""
    downsampling: int = 2
    """How many times smaller the encoded grid is along each axis; a power of 2. A grid that it does not divide is padded and cropped."""
    residual: bool = True
    """Add the spatial state of the layer below."""
    recall: bool = True
    """Add what the encoder made of a frame of the same size in the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "tau", "downsampling")
        if self.downsampling & (self.downsampling - 1):
            raise ConfigError(f"model.downsampling={self.downsampling} must be a power of 2")

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return {"model.recall"} if self.downsampling == 1 else set()

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return self.layers / 4 * (self.width / 64) ** 2 * (self.kernel / 5) ** 2 * 4 / self.downsampling**2
