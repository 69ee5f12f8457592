"""The configuration of UniST. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stmodels.config import Stage
from stmodels.errors import ConfigError
from stmodels.grids import GridConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo

PROMPTS = "spc"
"""The letters of ``prompt``: space, period, closeness."""


@dataclass(frozen=True, kw_only=True)
class UniSTConfig(GridConfig):
    """Configuration of UniST: an autoencoder of masked space-time patches, then prompts that answer for the empty future."""

    NEEDS = ("calendar",)
    MODEL = "stmodels.foundation.unist:UniST"
    PAPER = "arXiv 2402.11838"
    PARAMETERS = 2_001_288
    SMALL: ClassVar[Mapping[str, Any]] = {
        "width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_layers": 1, "decoder_heads": 2, "memory": 8, "pretrain_epochs": 1,
        "period": "season",
    }  # fmt: skip

    name: Literal["unist"] = "unist"
    """The model."""
    width: int = 128
    """D, the width of a token."""
    encoder_layers: int = 6
    """Blocks of the encoder."""
    encoder_heads: int = 8
    """Attention heads of the encoder."""
    decoder_layers: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 4
    """Attention heads of the decoder."""
    patch: int = 2
    """Cells of a patch along each axis. A grid that it does not divide is padded and cropped."""
    time_patch: int = 2
    """Steps of a patch."""
    dropout: float = 0.1
    """Dropout of the tokens and in the layers of the prompts."""
    channels: Literal["independent", "joint"] = "independent"
    """Whether each channel of the data is a series of images of its own, as in the original, or all are the colours of one."""
    prompt: str = PROMPTS
    """Which prompts answer: letters of `spc` (space, period, closeness), or `none`."""
    period: Literal["days", "season", "none"] = "days"
    """What the prompt of the period reads: the frames of `days` days before at the same time, or the train segment's means by slot of
    the week (`season`), which need no longer past. `none` goes with a `prompt` without the letter p."""
    days: int = 3
    """K, the number of days before."""
    memory: int = 512
    """M, the number of keys of each memory."""
    pretrain_epochs: int = 100
    """Epochs of the training on masked patches before the forecasts are trained; 0 leaves it out. Its last weights go on, whereas the
    original takes those with the least validation error."""
    pretrain_lr: float = 3.0e-4
    """Learning rate of that training, which falls on a cosine."""
    mask_ratio: float = 0.5
    """The share of patches that is hidden in that training, for masks at random and of whole places."""

    def __post_init__(self) -> None:
        self.check_at_least(1, "width", "encoder_layers", "decoder_layers", "patch", "time_patch", "days", "memory")
        self.check_at_least(0, "pretrain_epochs")
        self.check_share("dropout", "mask_ratio")
        if self.pretrain_epochs and not self.mask_ratio:
            raise ConfigError("model.mask_ratio=0 hides nothing, so that nothing is learnt: raise it, or set model.pretrain_epochs=0")
        self.check_heads("width", "encoder_heads")
        self.check_heads("width", "decoder_heads")
        if self.width % 4:
            raise ConfigError(f"model.width={self.width} must be a multiple of 4: positions take halves of it, and the prompts four heads")
        if self.prompt != "none" and (not self.prompt or set(self.prompt) - set(PROMPTS) or len(set(self.prompt)) < len(self.prompt)):
            raise ConfigError(f"model.prompt={self.prompt}: give letters of {PROMPTS} (space, period, closeness), each once, or none")
        if self.reads_period and self.period == "none":
            raise ConfigError("model.prompt has the letter p, and model.period is none: set it to days or season, or leave the letter out")

    @property
    def reads_period(self) -> bool:
        """Whether there is a prompt of the period."""
        return "p" in self.prompt

    def needs(self) -> tuple[str, ...]:
        return ("calendar", "season") if self.reads_period and self.period == "season" else ("calendar",)

    def information(self) -> Literal["window", "calendar", "period"]:
        return "period" if self.reads_period else "calendar"

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration."""
        unread = set() if self.reads_period and self.period == "days" else {"model.days"}
        unread |= set() if self.reads_period else {"model.period"}
        unread |= {"model.memory"} if self.prompt == "none" else set()
        return unread | (set() if self.pretrain_epochs else {"model.pretrain_lr", "model.mask_ratio"})

    def past(self, info: SeriesInfo) -> int:
        """K days before the first step ahead, without the history."""
        if not (self.reads_period and self.period == "days"):
            return 0
        return max(0, self.days * (info.slots_per_day or 0) - info.history)

    def stages(self) -> tuple[Stage, ...]:
        """The training on masked patches, of several data sets where a study names them."""
        train = {"lr": self.pretrain_lr, "schedule": "cosine", "min_lr": 1e-5, "warmup_epochs": min(5, self.pretrain_epochs // 2)}
        return (Stage("pretrain", self.pretrain_epochs, train, reads_pretrain=True),) if self.pretrain_epochs else ()

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        parts = {"pretraining": {"model.pretrain_epochs": 0}} if self.pretrain_epochs else {}
        if self.prompt != "none":
            parts["prompts"] = {"model.prompt": "none"}
            for letter, name in zip(PROMPTS, ("space_prompt", "period_prompt", "closeness_prompt"), strict=True):
                if letter in self.prompt:
                    parts[name] = {"model.prompt": self.prompt.replace(letter, "") or "none"}
        return parts

    def relative_cost(self) -> float:
        """Multiplications, relative to the default."""
        return (self.encoder_layers + 2 * self.decoder_layers) / 14 * (self.width / 128) ** 2

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if info.slots_per_day is None:
            raise ConfigError("unist reads hour and weekday, and this data (data.path) has no timestamps: add the array `timestamps`")
        if info.history % self.time_patch or info.horizon % self.time_patch:
            raise ConfigError(
                f"model.time_patch={self.time_patch} must divide data.history={info.history} and data.horizon={info.horizon}"
            )
        if self.pretrain_epochs and max(info.shape[-2:]) <= self.patch:
            raise ConfigError(
                f"model.patch={self.patch} makes one patch of a grid of {info.shape[-2]}×{info.shape[-1]}, of which no part can be hidden: "
                "lower it, or set model.pretrain_epochs=0"
            )
        if self.reads_period and self.period == "season":
            self.check_has_season(info, "period")
        if self.reads_period and self.period == "days" and info.slots_per_day < info.horizon:
            raise ConfigError(
                f"unist: a day of {info.slots_per_day} steps lies within data.horizon={info.horizon}, so that a reading of a day before is "
                "not known: set model.period=season"
            )

    def check_pretraining(self, info: SeriesInfo, other: SeriesInfo) -> None:
        """Raise ConfigError if a model of data like ``info`` cannot be pre-trained on data like ``other``, where no prompt is read."""
        replace(self, prompt="none").check(other)
        if self.channels == "joint" and other.channels != info.channels:
            raise ConfigError(
                f"model.channels=joint takes images of {info.channels} channels, and these have {other.channels}: set it to independent"
            )
