"""The configuration of SSTBAN. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.errors import ConfigError
from stmodels.nodes import NodeConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class SSTBANConfig(NodeConfig):
    """Configuration of SSTBAN: attention over nodes and over steps through a few reference points, and a masked second pass."""

    MODEL = "stmodels.graph.sstban:SSTBAN"
    NEEDS = ("calendar",)
    PAPER = "Guo et al., ICDE 2023"
    PARAMETERS = 2_694_531 + 3_968 * 207
    WHOLE_BATCHES = "its BatchNorms take means over all windows of a batch"
    UNTRACED = "the masked pass holds the running statistics of BatchNorm, which torch.compile does not follow"
    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "heads": 2, "layers": 1, "references": 2}

    name: Literal["sstban"] = "sstban"
    """The model."""
    width: int = 128
    """D, the width of a token."""
    heads: int = 8
    """Number of attention heads."""
    layers: int = 2
    """L, the number of blocks of encoder and decoder. The original has 3 on PEMS08."""
    references: int = 3
    """Reference points of each attention."""
    latent_weight: float = 0.05
    """λ, the weight of the masked pass's loss; that of the forecast weighs 1 − λ. 0: no masked pass."""
    mask_rate: float = 0.1
    """Share of patches of time that are hidden in the masked pass."""
    mask_length: int = 3
    """Steps of such a patch. The original has 12 of a history of 24."""
    detach_target: bool = True
    """Whether the unmasked latent is a constant for the masked pass's loss; it is not in the original."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "heads", "layers", "references", "mask_length")
        self.check_share("latent_weight", "mask_rate")
        self.check_heads("width", "heads")

    def loss_weights(self) -> dict[str, float]:
        """λ and 1 − λ."""
        return {"forecast": 1 - self.latent_weight, "latent": self.latent_weight}

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return set() if self.latent_weight else {"model.mask_rate", "model.mask_length", "model.detach_target"}

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {"masked_pass": {"model.latent_weight": 0.0}}

    def relative_cost(self) -> float:
        """Blocks that a batch goes through, relative to the default."""
        return (2 * self.layers + (self.layers + 1) * (self.latent_weight > 0)) / 7 * (self.width / 128) ** 2

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if info.slots_per_day is None:
            raise ConfigError(
                "sstban reads hour and weekday of the history and of the horizon, and this data has none: add the array `timestamps` to "
                "data.path"
            )
        if self.latent_weight and info.history % self.mask_length:
            raise ConfigError(
                f"model.mask_length={self.mask_length} does not divide data.history={info.history}: choose a divisor, or set "
                "model.latent_weight=0"
            )
