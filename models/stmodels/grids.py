"""What the models of grids have in common. Only the standard library, as for every configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True, kw_only=True)
class GridConfig(ModelConfig):
    """Base of the configurations of models that convolve over the cells of a grid."""

    FAMILIES = ("grid",)

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        if info.family != "grid":
            raise ConfigError(
                f"{self.name} convolves over the cells of a grid (T, C, H, W), and this data is read as '{info.family}', whose places have "
                "no neighbours in rows and columns: choose another model, or data.family=grid if it is one"
            )


@dataclass(frozen=True, kw_only=True)
class InputsConfig(GridConfig):
    """Base of the configurations of models whose papers read frames of this hour, of the same hour of earlier days, and the calendar."""

    inputs: Literal["window", "calendar", "period"] = "window"
    """`window`: the history alone; `calendar`: also hour and weekday; `period`: also the train segment's means by slot of the week, of the
    history and of the steps ahead, in the place of the frames of earlier days and weeks. A train window's own readings are in the means of
    the steps ahead, so that these look a little better in training than they are."""

    def needs(self) -> tuple[str, ...]:
        return {"window": (), "calendar": ("calendar",), "period": ("calendar", "season")}[self.inputs]

    def information(self) -> Literal["window", "calendar", "period"]:
        return self.inputs

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {} if self.inputs == "window" else {self.inputs: {"model.inputs": "window"}}

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if this model cannot run on that data."""
        super().check(info)
        if self.inputs == "period":
            self.check_has_season(info, "inputs")
        if self.inputs != "window" and info.slots_per_day is None:
            raise ConfigError(
                f"model.inputs={self.inputs} reads hour and weekday, and this data has no timestamps: add the array `timestamps`, or set "
                "model.inputs=window"
            )


@dataclass(frozen=True, kw_only=True)
class FramesConfig(InputsConfig):
    """Base of the configurations of those whose originals forecast one step."""

    multi_step: Literal["direct", "recursive"] = "direct"
    """`direct`: all steps at once; `recursive`: one step at a time, each forecast being the newest frame for the next."""
    output: Literal["linear", "tanh"] = "linear"
    """`tanh`, as in the original, keeps a forecast within the range of the train segment."""

    def steps(self, info: SeriesInfo) -> int:
        """The number of steps that one pass forecasts."""
        return info.horizon if self.multi_step == "direct" else 1
