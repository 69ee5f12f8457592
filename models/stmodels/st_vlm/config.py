"""The configuration of ST-VLM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from stmodels.errors import ConfigError
from stmodels.nodes import check_nodes
from stmodels.seasonal import SeasonalConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo

Backbone = Literal["vilt_b32", "vilt_test"]
Lag = Literal["any", "nonnegative"]
Fusion = Literal["saf", "joint", "none"]
Channel = Literal["dtw", "cross_correlation", "spectrum"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)

# About 38 word pieces, which with [CLS] and [SEP] fit ViLT's 40 text positions.
TASK_PROMPT = (
    "Forecast the next {horizon} steps of {nodes} nodes in {subject}. "
    "Each image row relates one node to all others: red time warping, green lagged correlation, blue spectrum."
)
_PLACEHOLDERS = ("subject", "nodes", "history", "horizon")


@dataclass(frozen=True, kw_only=True)
class STVLMConfig(SeasonalConfig):
    """Configuration of ST-VLM. The defaults are the full model of the paper; models/README.md says how the paper is read."""

    MODEL = "stmodels.st_vlm.model:STVLM"
    FAMILIES = ("sensors",)
    NEEDS = ("weights",)
    PAPER = "Zhao et al., ST-VLM"
    PARAMETERS = 603_702
    SMALL: ClassVar[Mapping[str, Any]] = {"backbone": "vilt_test", "weights": "random", "hidden": 8}
    UNTRACED = "torch.compile does not trace an LSTM whole"

    name: Literal["st_vlm"] = "st_vlm"
    """The model."""
    backbone: Backbone = "vilt_b32"
    """`vilt_b32` (ViLT-B/32), or `vilt_test` (very small, for tests)."""
    weights: str = "pretrained"
    """The backbone's weights: `pretrained`, `random`, or the path of a checkpoint folder."""
    weights_seed: int = 0
    """Seed of random backbone weights. All trials of a study share one backbone."""
    channels: tuple[Channel, ...] = CHANNELS
    """Channels of the correlation image. A channel that is left out is black."""
    lag: Lag = "any"
    """Lags of the cross-correlation (Eq. 2): `any` (symmetric), or `nonnegative` (row i shows how well node i leads the others)."""
    fusion: Fusion = "saf"
    """The first layer. `saf`: cross-attention with the image as bias (Eq. 4-8); `joint`: an ordinary layer (w/o SAF); `none`: no image."""
    saf_squash: Literal["tanh", "none"] = "tanh"
    """`tanh` keeps the bias of `saf` within ±1 before it is divided by √d; `none`, beyond the paper, does not bound it."""
    saf_gain: bool = False
    """Beyond the paper: multiply the bias of `saf` by a learned number, which starts at 1."""
    lora_rank: int = 8
    """Rank of LoRA on query and key of every layer (Eq. 9-10). 0: no LoRA (w/o FT)."""
    lora_alpha: float | None = None
    """α of LoRA. Unset: 2·rank, so that the scale of the update does not depend on the rank."""
    prompt: str = "task"
    """`task`, `none` (no text), or your own template with {subject}, {nodes}, {history} and {horizon}."""
    subject: str = "a sensor network"
    """The network's name in the prompt, such as that of the data set. ViLT has 40 text positions, and the template takes most of them."""
    tokenizer: str | None = None
    """`pretrained` (bert-base-uncased), a folder, or `hash`, a substitute. Unset: `hash` with random weights, else `pretrained`."""
    hidden: int = 64
    """Hidden units of the LSTM that encodes a node's window (Eq. 3), and of the LSTM that decodes its state (Eq. 11)."""
    time_of_day: bool = False
    """Beyond the paper: add a learned embedding of the slot of the day at which the forecast starts."""

    def __post_init__(self) -> None:
        for field, kind in (("backbone", Backbone), ("lag", Lag), ("fusion", Fusion), ("saf_squash", Literal["tanh", "none"])):
            if getattr(self, field) not in get_args(kind):
                raise ConfigError(f"model.{field}={getattr(self, field)}: allowed are {', '.join(get_args(kind))}")
        if strays := [str(c) for c in self.channels if c not in CHANNELS]:
            raise ConfigError(f"model.channels: there is no channel {strays[0]}; allowed are {', '.join(CHANNELS)}")
        object.__setattr__(self, "channels", tuple(c for c in CHANNELS if c in self.channels))
        if self.fusion != "none" and not self.channels:
            raise ConfigError("model.channels is empty: name at least one channel, or set model.fusion to none (no image)")
        if self.lora_rank < 0:
            raise ConfigError(f"model.lora_rank must be 0 (no LoRA) or more, it is {self.lora_rank}")
        if self.lora_alpha is not None and self.lora_alpha <= 0:
            raise ConfigError(f"model.lora_alpha must be above 0, it is {self.lora_alpha}")
        self.check_seasonal_fields()
        if self.hidden < 1:
            raise ConfigError(f"model.hidden must be at least 1, it is {self.hidden}")
        if self.lora_alpha is None and self.lora_rank:
            object.__setattr__(self, "lora_alpha", 2.0 * self.lora_rank)
        if self.tokenizer is None:
            object.__setattr__(self, "tokenizer", "hash" if self.weights == "random" else "pretrained")
        for placeholder in self._placeholders():
            if placeholder not in _PLACEHOLDERS:
                raise ConfigError(
                    f"model.prompt: the placeholder {{{placeholder}}} is unknown; known: "
                    f"{', '.join(f'{{{name}}}' for name in _PLACEHOLDERS)}"
                )
        try:
            (self.template or "").format(subject=self.subject, nodes=1, history=1, horizon=1)
        except (ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"model.prompt cannot be filled in: {error}. Write the placeholders plainly, as {{nodes}}") from error

    @property
    def template(self) -> str | None:
        """The prompt before its placeholders are filled in. None if there is no text."""
        return {"task": TASK_PROMPT, "none": None}.get(self.prompt, self.prompt)

    def _placeholders(self) -> list[str]:
        try:
            return [name for _, name, _, _ in string.Formatter().parse(self.template or "") if name is not None]
        except ValueError as error:
            raise ConfigError(f"model.prompt is no template: {error}") from error

    def text(self, info: SeriesInfo) -> str | None:
        """The prompt for a data set. None if there is no text."""
        if self.template is None:
            return None
        return self.template.format(
            subject=self.subject, nodes=info.shape[0], history=info.history, horizon=info.horizon
        )

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration. They are not part of a trial's id."""
        no_image = self.fusion == "none"
        return {
            field
            for field, has_no_effect in {
                "model.weights_seed": self.weights != "random",
                "model.channels": no_image,
                "model.saf_squash": self.fusion != "saf",
                "model.saf_gain": self.fusion != "saf",
                "model.lag": no_image or "cross_correlation" not in self.channels,
                "model.lora_alpha": self.lora_rank == 0,
                "model.subject": "subject" not in self._placeholders(),
                "model.tokenizer": self.template is None,
            }.items()
            if has_no_effect
        }

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields, of the whole trial, that switch it off."""
        others = {channel: [c for c in self.channels if c != channel] for channel in CHANNELS}
        return {
            "saf": {"model.fusion": "joint"} if self.fusion == "saf" else {},
            "saf_gain": {"model.saf_gain": False},
            "lora": {"model.lora_rank": 0},
            "image": {"model.fusion": "none"},
            "text": {"model.prompt": "none"},
            # Leaving out the only channel leaves out the image.
            **{name: {"model.channels": rest} if rest else {"model.fusion": "none"} for name, rest in others.items()},
            "time_of_day": {"model.time_of_day": False},
            **self.seasonal_components(),
        }

    def files(self) -> list[str]:
        """Files whose content changes the numbers."""
        own = [self.weights] if self.weights not in ("pretrained", "random") else []
        if self.template is not None and self.tokenizer not in ("pretrained", "hash"):
            own.append(str(self.tokenizer))
        return own

    def relative_cost(self) -> float:
        """The approximate number of passes through the backbone. The first layer of `saf` attends twice."""
        return {"saf": 1.1, "joint": 1.0, "none": 0.8}[self.fusion] * (1.1 if self.lora_rank else 1.0)

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        check_nodes(self.name, info)
        if self.time_of_day and info.slots_per_day is None:
            raise ConfigError("model.time_of_day needs timestamps, and this data has none: add them, or switch it off")
        self.check_season(info)
