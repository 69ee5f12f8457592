"""Fields of the models around GPT-2. Only the standard library, as for every configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(ModelConfig):
    """Base of their configurations; :class:`stmodels.layers.gpt2.Gpt2Trunk` does what the fields say."""

    NEEDS = ("weights",)
    SMALL: ClassVar[dict[str, Any]] = {"backbone": "gpt2_test", "weights": "random"}

    backbone: Literal["gpt2", "gpt2_test"] = "gpt2"
    """`gpt2`, or `gpt2_test` (at most two blocks of the width 32, for tests)."""
    weights: str = "pretrained"
    """The weights of GPT-2: `pretrained`, `random`, or the path of a checkpoint folder."""
    weights_seed: int = 0
    """Seed of random weights. All trials of a study share one backbone."""
    blocks: int = 6
    """K, the number of blocks that are kept, counted from the first."""
    causal: bool = True
    """A token sees only those before it, as in all the originals. Where nodes are tokens, their order matters then."""

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        return set() if self.weights == "random" else {"model.weights_seed"}

    def files(self) -> list[str]:
        """Files whose content changes the numbers."""
        return [] if self.weights in ("pretrained", "random") else [self.weights]

    def relative_cost(self) -> float:
        """Multiplications per token, relative to six blocks of GPT-2."""
        return self.blocks / 6 * (1.0 if self.backbone == "gpt2" else (32 / 768) ** 2)

    def tokens(self, info: SeriesInfo) -> int:
        """The number of tokens of a sequence."""
        return info.places

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if self.tokens(info) > 1024:
            raise ConfigError(
                f"{self.name} makes {self.tokens(info)} tokens of this data (data.path), and GPT-2 has 1,024 positions: forecast fewer "
                "nodes, or take another model"
            )
