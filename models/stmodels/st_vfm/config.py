"""The configuration of ST-VFM. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from stmodels.config import KEEPS_COST
from stmodels.errors import ConfigError
from stmodels.seasonal import SeasonalConfig

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo

_DEFAULT_RANKS = {"adapter": 64, "lora": 8}


@dataclass(frozen=True, kw_only=True)
class STVFMConfig(SeasonalConfig):
    """Configuration of ST-VFM. The defaults are the full model of the paper; models/README.md says how the paper is read."""

    MODEL = "stmodels.st_vfm.model:STVFM"
    FAMILIES = ("grid",)
    NEEDS = ("weights",)
    PAPER = "arXiv 2507.11558"
    PARAMETERS = 10_306_336
    SMALL: ClassVar[Mapping[str, Any]] = {
        "backbone": "vit_test", "weights": "random", "temporal_width": 8, "temporal_heads": 2, "temporal_layers": 1, "rank": 4,
    }  # fmt: skip

    name: Literal["st_vfm"] = "st_vfm"
    """The model."""
    backbone: str = "dinov2_s"
    """`dinov2_s`, `clip_b`, `deit_b`, `videomae_s`, the name of any timm ViT, or `vit_test` (very small, for tests)."""
    weights: str = "pretrained"
    """The backbone's weights: `pretrained`, `random`, or the path of a checkpoint."""
    weights_shuffled: bool = False
    """A control for pretraining: shuffle the backbone's values within each tensor. The same numbers, and nothing learnt."""
    weights_seed: int = 0
    """Seed of random or shuffled backbone weights. All trials of a study share one backbone."""
    use_cls: bool = False
    """Include the class token of the backbone."""
    patch: int = 2
    """s, the side of a spatial patch in cells."""
    temporal_patch: int = 2
    """p, the number of steps of a temporal patch. It divides history and horizon."""
    pad: bool = False
    """Pad a grid with zeros (in scaled space) to a multiple of the patch."""
    adaptation: Literal["token", "simple"] = "token"
    """`token`: Eq. 7-8, a linear map and a learnable position; `simple` (#1): a linear map alone."""
    temporal_context: bool = True
    """Temporal context encoder before the backbone (Eq. 5-6)."""
    temporal_width: int = 128
    """D_T, the width of the temporal layers."""
    temporal_heads: int = 4
    """Number of attention heads of the temporal layers."""
    temporal_layers: int = 3
    """Number of layers of the context encoder, and of each decoder."""
    dropout: float = 0.0
    """Dropout in the temporal layers."""
    peft: Literal["none", "adapter", "lora"] = "adapter"
    """Trainable parts inside the frozen backbone."""
    rank: int | None = None
    """Bottleneck width of the adapters (64 if unset) or rank of LoRA (8 if unset)."""
    flow: bool = True
    """The second branch, on the ST flow (Eq. 4), with its auxiliary forecast."""
    flow_weight: Annotated[float, KEEPS_COST] = 0.5
    """λ of Eq. 11, the weight of the loss of that forecast."""
    cross_prompt_layers: int = 2
    """Number of layers of bilateral cross-prompt coordination (Eq. 9-10). The paper uses 1 on BikeNYC and TaxiNYC."""
    prompts: int | Literal["all"] = 16
    """L_p, the number of prompts per frame that each branch gives the other. `all` keeps every token."""
    decoder: Literal["transformer", "mlp"] = "transformer"
    """`transformer`: attention over time, with learnable queries; `mlp` (#1): an MLP for each location."""
    mlp_reads: Literal["all", "same"] = "all"
    """What the MLP reads a frame ahead from: `all` frames of the history, or the one of its own number (`same`)."""
    calendar: bool = False
    """Beyond the paper: learned embeddings of the slot of the day and of the day of the week."""

    def __post_init__(self) -> None:
        for field in ("patch", "temporal_patch", "temporal_width", "temporal_heads", "temporal_layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"model.{field} must be at least 1, it is {getattr(self, field)}")
        if self.temporal_width % self.temporal_heads:
            raise ConfigError(
                f"model.temporal_heads={self.temporal_heads} must divide model.temporal_width={self.temporal_width}"
            )
        if not 0 <= self.flow_weight < float("inf"):
            raise ConfigError(f"model.flow_weight must be 0 or more, it is {self.flow_weight}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must lie in [0, 1), it is {self.dropout}")
        if self.cross_prompt_layers < 0:
            raise ConfigError(f"model.cross_prompt_layers must be 0 or more, it is {self.cross_prompt_layers}")
        if self.cross_prompt_layers and not self.flow:
            raise ConfigError(
                "model.cross_prompt_layers needs the flow branch to exchange prompts with: "
                "set model.cross_prompt_layers to 0, or model.flow to true"
            )
        if self.prompts != "all" and self.prompts < 1:
            raise ConfigError(f"model.prompts must be at least 1 or `all`, it is {self.prompts}")
        if self.adaptation == "simple" and self.temporal_context:
            raise ConfigError(
                "model.adaptation=simple has no temporal context encoder: set model.temporal_context to false"
            )
        if self.calendar and not (self.temporal_context or self.decoder == "transformer"):
            raise ConfigError(
                "model.calendar is added to temporal tokens, and this model has none: set model.decoder to transformer"
            )
        self.check_seasonal_fields()
        if self.seasonal_level and self.decoder != "transformer":
            raise ConfigError("model.seasonal_level is told to the transformer decoder: set model.decoder to transformer")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"model.rank must be at least 1, it is {self.rank}")
        if self.rank is None and self.peft != "none":
            object.__setattr__(self, "rank", _DEFAULT_RANKS[self.peft])

    def loss_weights(self) -> dict[str, float]:
        """λ of the flow's loss; this is where it comes from."""
        return {"flow": self.flow_weight}

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this configuration. They are not part of a trial's id."""
        return {
            field
            for field, has_no_effect in {
                "model.flow_weight": not self.flow,
                "model.mlp_reads": self.decoder != "mlp",
                "model.rank": self.peft == "none",
                "model.prompts": self.cross_prompt_layers == 0,
                "model.weights_seed": self.weights != "random" and not self.weights_shuffled,
                "model.temporal_heads": not (self.temporal_context or self.decoder == "transformer"),
                "model.temporal_layers": not (self.temporal_context or self.decoder == "transformer"),
                "model.dropout": not (self.temporal_context or self.decoder == "transformer"),
            }.items()
            if has_no_effect
        }

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields, of the whole trial, that switch it off."""
        return {
            "adaptation": {"model.adaptation": "simple", "model.temporal_context": False},
            "temporal_context": {"model.temporal_context": False},
            "peft": {"model.peft": "none"},
            "flow": {"model.flow": False, "model.cross_prompt_layers": 0},
            "flow_loss": {"model.flow_weight": 0.0},
            "cross_prompts": {"model.cross_prompt_layers": 0},
            "decoder": {"model.decoder": "mlp"},
            "use_cls": {"model.use_cls": False},
            "calendar": {"model.calendar": False},
            **self.seasonal_components(),
        }

    def files(self) -> list[str]:
        """Files whose content changes the numbers."""
        return [] if self.weights in ("pretrained", "random") else [self.weights]

    def relative_cost(self) -> float:
        """The approximate number of passes through the backbone and the temporal layers."""
        temporal = self.temporal_layers * (int(self.temporal_context) + 2 * int(self.decoder == "transformer"))
        return (1 + 0.3 * temporal) * (2 if self.flow else 1) + 0.3 * self.cross_prompt_layers

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data, or if its backbone is unknown."""
        from stmodels.backbones import check_backbone  # takes seconds, so it is not imported when a study is only read

        check_backbone(self.backbone)
        if info.family != "grid":
            raise ConfigError(f"st_vfm forecasts grids (T, C, H, W); this data is of the family '{info.family}'")
        _, height, width = info.shape
        if not self.pad and (height % self.patch or width % self.patch):
            raise ConfigError(
                f"the grid {height}×{width} cannot be cut into patches of {self.patch}×{self.patch}: set model.pad=true to pad it, "
                f"or model.patch to a divisor of both sides"
            )
        for field, steps in (("history", info.history), ("horizon", info.horizon)):
            if steps % self.temporal_patch:
                raise ConfigError(
                    f"model.temporal_patch={self.temporal_patch} does not divide data.{field}={steps}: change one of them"
                )
        if self.calendar and info.slots_per_day is None:
            raise ConfigError("model.calendar needs timestamps, and this data has none: add the array `timestamps`, or switch it off")
        self.check_season(info)
