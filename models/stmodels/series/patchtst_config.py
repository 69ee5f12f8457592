"""The configuration of PatchTST. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class PatchTSTConfig(ModelConfig):
    """Configuration of PatchTST, that of the library transformers: a transformer over the patches of each series' window."""

    FAMILIES = ("sensors", "grid")
    MODEL = "stmodels.series.patchtst:PatchTST"
    PAPER = "arXiv 2211.14730"
    PARAMETERS = 405_772  # beside 640 positions, which are fixed
    WHOLE_BATCHES = "its BatchNorm takes means over all windows of a batch"
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 32, "heads": 2, "feedforward": 64, "layers": 2}

    name: Literal["patchtst"] = "patchtst"
    """The model."""
    patch: int = 4
    """Steps of a patch."""
    stride: int = 2
    """Steps from one patch to the next."""
    repeat_last: bool = False
    """Repeat the last reading `stride` times for one more patch, as in the original."""
    width: int = 128
    """D, the width of a token."""
    heads: int = 16
    """Number of attention heads."""
    feedforward: int = 256
    """Hidden width of the feed-forward networks."""
    layers: int = 3
    """Number of encoder layers."""
    dropout: float = 0.2
    """Dropout of the positions, in the feed-forward networks and between layers."""
    positions: Literal["sincos", "random"] = "sincos"
    """Positions of the patches: fixed sinusoids as is the library's default, or `random`, learned ones as in the original."""
    window_norm: bool = True
    """Forecast each series' window in units of its own mean and deviation."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "patch", "stride", "width", "heads", "feedforward", "layers")
        self.check_share("dropout")
        self.check_heads("width", "heads")
        if self.positions == "sincos" and self.width % 2:
            raise ConfigError(f"model.width={self.width} must be even for model.positions=sincos: choose another")

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"window_norm": {"model.window_norm": False}}

    def relative_cost(self) -> float:
        """Multiplications per token, relative to the default."""
        return self.layers / 3 * self.width * (4 * self.width + 2 * self.feedforward) / (128 * 1024)

    @property
    def repeats(self) -> int:
        """How often the last reading is repeated."""
        return self.stride if self.repeat_last else 0

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if self.patch > info.history or info.history + self.repeats <= self.patch:
            raise ConfigError(
                f"model.patch={self.patch} leaves one patch or none of data.history={info.history}: choose a smaller patch"
            )
        if (info.history - self.patch) % self.stride:
            raise ConfigError(
                f"model.stride={self.stride} leaves out the first steps of data.history={info.history}: choose a stride that divides "
                f"{info.history - self.patch}, which is the history without model.patch"
            )
