"""The configuration of STD-MAE. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import Stage
from stmodels.errors import ConfigError
from stmodels.graph.graph_wavenet_config import GraphWaveNetFields

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class STDMAEConfig(GraphWaveNetFields):
    """Configuration of STD-MAE: two masked autoencoders of long histories, whose states enter Graph WaveNet."""

    MODEL = "stmodels.graph.std_mae:STDMAE"
    PAPER = "arXiv 2312.00516"
    PARAMETERS = 2 * 571_404 + 651_532 + 20 * 207
    SMALL: ClassVar[Mapping[str, Any]] = {
        **GraphWaveNetFields.SMALL, "long_history": 24, "patch": 12, "token_width": 8, "heads": 2, "feedforward": 8, "encoder_layers": 1,
        "adapter_width": 8, "pretrain_epochs": 1,
    }  # fmt: skip

    name: Literal["std_mae"] = "std_mae"
    """The model."""
    long_history: int | None = None
    """Steps that the autoencoders read, the history among them. Unset: three days, or 864 steps without timestamps, in whole patches, and
    fewer days where the train segment has no more; the original has 864, and 2,016 on PEMS08."""
    patch: int = 12
    """Steps of a patch, which is a token of the autoencoders."""
    token_width: int = 96
    """Width of a token."""
    heads: int = 4
    """Number of attention heads."""
    feedforward: int = 384
    """Hidden width of the feed-forward networks."""
    encoder_layers: int = 4
    """Number of encoder layers of an autoencoder; its decoder has one."""
    token_dropout: float = 0.1
    """Dropout in the layers of the autoencoders."""
    mask_rate: float = 0.25
    """Share of patches, or of nodes, that are hidden in pre-training."""
    adapter_width: int = 512
    """Hidden width of the two adapters that lead to the skip connection."""
    spatial_axis: Literal["node", "time"] = "node"
    """The axis along which the autoencoder that hides nodes attends in the forecast. Published code has `time`, for want of a switch."""
    node_position: Literal["sinusoid", "none"] = "sinusoid"
    """Whether a token is told the number of its node, as in the original. It gives the order of nodes a meaning."""
    pretrain_epochs: int = 100
    """Epochs of pre-training, of each autoencoder."""
    pretrain_lr: float = 1e-3
    """Learning rate of pre-training; it is halved after half of the epochs."""
    pretrain_batch_size: int = 8
    """Batch size of pre-training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(
            1, "patch", "token_width", "heads", "feedforward", "encoder_layers", "adapter_width", "pretrain_epochs",
            "pretrain_batch_size",
        )  # fmt: skip
        self.check_share("token_dropout")
        self.check_heads("token_width", "heads")
        if not 0 < self.mask_rate < 1:
            raise ConfigError(f"model.mask_rate must lie between 0 and 1, it is {self.mask_rate}")
        if self.token_width % 4:
            raise ConfigError(f"model.token_width={self.token_width} must be a multiple of 4, for the positions of node and patch")
        if self.long_history is not None and (self.long_history % self.patch or self.long_history < 2 * self.patch):
            raise ConfigError(
                f"model.long_history={self.long_history} must be at least two patches, and a multiple of model.patch={self.patch}"
            )

    def steps(self, info: SeriesInfo) -> int:
        """The length of the long history."""
        if self.long_history is not None:
            return self.long_history
        day = info.slots_per_day or 288
        # A short train segment, as in few-shot studies, has windows only after fewer days.
        days = min(3, (info.train_steps - info.horizon) // day) if info.train_steps else 3
        return max(2, max(1, days) * day // self.patch) * self.patch

    def past(self, info: SeriesInfo) -> int:
        """The long history without the history."""
        return max(0, self.steps(info) - info.history)

    def information(self) -> Literal["window", "calendar", "period"]:
        return "period"

    def stages(self) -> tuple[Stage, ...]:
        """Each autoencoder is trained by itself, and then Graph WaveNet with both held still."""
        train = {
            "lr": self.pretrain_lr, "batch_size": self.pretrain_batch_size, "weight_decay": 0.0, "clip_norm": 5.0, "warmup_epochs": 0,
            "schedule": "steps", "milestones": [max(1, self.pretrain_epochs // 2)], "milestone_factor": 0.5,
        }  # fmt: skip
        return tuple(Stage(name, self.pretrain_epochs, train) for name in ("temporal", "spatial"))

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {**super().components(), "node_position": {"model.node_position": "none"}}

    def relative_cost(self) -> float:
        """Beside Graph WaveNet, what both autoencoders cost over their long histories."""
        return super().relative_cost() * (1 + (self.long_history or 864) / 288)

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if info.shape[0] < 2:
            raise ConfigError("std_mae hides nodes behind others, and this data (data.path) has one: take another model")
        if self.steps(info) < info.history:
            raise ConfigError(f"model.long_history={self.steps(info)} is shorter than data.history={info.history}: choose a longer one")
