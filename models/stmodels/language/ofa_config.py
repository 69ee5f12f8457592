"""The configuration of OFA. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stmodels.errors import ConfigError
from stmodels.language.gpt2_config import Gpt2Config
from stmodels.nodes import NodeConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class OFAConfig(Gpt2Config, NodeConfig):
    """Configuration of OFA (GPT4TS): patches of each node's window are the tokens of a frozen GPT-2."""

    MODEL = "stmodels.language.ofa:OFA"
    PAPER = "arXiv 2302.11939"
    PARAMETERS = 865_548

    name: Literal["ofa"] = "ofa"
    """The model."""
    patch: int = 4
    """Steps of a patch. The original has 16 of a history of 512 steps."""
    stride: int = 2
    """Steps from one patch to the next."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "blocks", "patch", "stride")

    def tokens(self, info: SeriesInfo) -> int:
        """The number of patches of a window, the repeated readings included."""
        return (info.history + self.stride - self.patch) // self.stride + 1

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if info.history + self.stride < self.patch:
            raise ConfigError(
                f"model.patch={self.patch} is longer than data.history={info.history} and model.stride={self.stride} together: choose a "
                "smaller patch"
            )
