"""The configuration of STD-PLM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.calendar_fields import CalendarConfig
from stmodels.errors import ConfigError
from stmodels.language.gpt2_config import Gpt2Config
from stmodels.nodes import NodeConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class STDPLMConfig(Gpt2Config, CalendarConfig, NodeConfig):
    """Configuration of STD-PLM: nodes are gathered into regions, which are tokens of GPT-2 beside the state and the trend of time."""

    MODEL = "stmodels.language.std_plm:STDPLM"
    NEEDS = ("weights", "network")
    PAPER = "arXiv 2407.09096"
    PARAMETERS = 3_244_301
    SMALL: ClassVar[Mapping[str, Any]] = {
        **Gpt2Config.SMALL, "calendar_width": 4, "eigenvectors": 4, "regions": 4, "region_width": 8, "region_heads": 2, "lora_rank": 2,
    }  # fmt: skip

    name: Literal["std_plm"] = "std_plm"
    """The model."""
    blocks: int = 3
    """K, the number of blocks that are kept, counted from the first."""
    lora_rank: int = 16
    """Rank of LoRA on queries, keys and values."""
    lora_alpha: float = 32.0
    """α of LoRA."""
    calendar_width: int = 64
    """Width of each of the two tables of the calendar. The original has 16 in its few-shot study."""
    eigenvectors: int = 64
    """The number of eigenvectors of the network's Laplacian that tell where a node is."""
    regions: int = 128
    """The number of regions into which the nodes are gathered."""
    region_width: int = 128
    """Width of the attention between nodes and regions."""
    region_heads: int = 4
    """Heads of that attention."""
    region_weight: float = 10.0
    """Weight of the loss that wants neighbours in one region."""
    coverage_weight: float = 1.0
    """Weight of the loss that wants every node to be seen by the regions, those with many neighbours more."""
    dropout: float = 0.05
    """Dropout in the networks around GPT-2."""

    def __post_init__(self) -> None:
        self.check_at_least(
            1, "blocks", "lora_rank", "calendar_width", "eigenvectors", "regions", "region_width", "region_heads",
        )  # fmt: skip
        self.check_at_least(0, "region_weight", "coverage_weight")
        self.check_share("dropout")
        self.check_heads("region_width", "region_heads")
        if self.lora_alpha <= 0:
            raise ConfigError(f"model.lora_alpha must be above 0, it is {self.lora_alpha}")

    def tokens(self, info: SeriesInfo) -> int:
        """Two of time and one for each region, whatever the number of nodes."""
        return 2 + self.regions

    def reads(self) -> tuple[str, ...]:
        """The network, and further channels where the data have them."""
        return ("network", "inputs")

    def loss_weights(self) -> dict[str, float]:
        """Those of the two losses on the regions."""
        return {"regions": self.region_weight, "coverage": self.coverage_weight}

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {
            "region_loss": {"model.region_weight": 0.0, "model.coverage_weight": 0.0},
            "calendar": {"model.calendar": False},
        }

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if info.history < 2:
            raise ConfigError(f"std_plm reads how the history changes, and data.history={info.history}: give at least two steps")
