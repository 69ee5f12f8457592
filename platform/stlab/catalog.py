"""Which models there are: name → configuration and class, written out. The sole importer of model classes.

To add a model: a frozen dataclass that says what can be chosen (``inert``, ``components``, ``files``,
``relative_cost``, ``check``), a
:class:`~stmodels.base.Forecaster` built from it and a :class:`~stmodels.types.SeriesInfo`, and a line in ``MODELS``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stlab.errors import ModelError
from stlab.files import is_uri, local_copy, shown
from stmodels.baselines.config import BASELINES, BaselineConfig
from stmodels.errors import ConfigError, WeightsError
from stmodels.series.config import LSTMConfig
from stmodels.st_vfm.config import STVFMConfig
from stmodels.st_vlm.config import STVLMConfig

if TYPE_CHECKING:
    from stmodels.base import Forecaster
    from stmodels.types import SeriesInfo


class ModelConfig(Protocol):
    """What the engine asks of any model's configuration."""

    name: str

    def inert(self) -> set[str]:
        """Dotted fields, of the whole trial, that cannot change a number under this configuration."""

    def components(self) -> dict[str, dict[str, Any]]:
        """What an ablation may leave out: component → dotted fields, of the whole trial, that switch it off here."""

    def files(self) -> list[str]:
        """Files whose content changes the numbers."""

    def relative_cost(self) -> float:
        """Rough cost of a training step beside this model's other configurations: orders the work."""

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError where the model cannot run on that data."""


def _st_vfm(config: Any, info: SeriesInfo) -> Forecaster:
    from stmodels.st_vfm.model import STVFM

    return STVFM(config, info)


def _st_vlm(config: Any, info: SeriesInfo) -> Forecaster:
    from stmodels.st_vlm.model import STVLM

    return STVLM(config, info)


def _lstm(config: Any, info: SeriesInfo) -> Forecaster:
    from stmodels.series.lstm import LSTMForecaster

    return LSTMForecaster(config, info)


def _baseline(config: Any, info: SeriesInfo) -> Forecaster:
    from stmodels.baselines.model import Baseline

    return Baseline(config, info)


MODELS: dict[str, tuple[type[Any], Callable[[Any, SeriesInfo], Forecaster]]] = {
    "st_vfm": (STVFMConfig, _st_vfm),
    "st_vlm": (STVLMConfig, _st_vlm),
    "lstm": (LSTMConfig, _lstm),
    **dict.fromkeys(BASELINES, (BaselineConfig, _baseline)),
}


def trainable_models() -> dict[str, type[Any]]:
    """Models that a study's base may name, with their configuration classes."""
    return {name: config for name, (config, _) in MODELS.items() if name not in BASELINES}


def config_class(name: str) -> type[Any]:
    """The configuration class of a model.

    Raises:
        ModelError: there is no such model; names the nearest.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ModelError(f"model.name={name}: there is no such model.{hint} Known: {', '.join(MODELS)}.")
    return MODELS[name][0]


def create_config(values: dict[str, Any]) -> ModelConfig:
    """The configuration that a resolved trial holds, as its model's own type."""
    config: ModelConfig = config_class(values["name"])(**values)
    return config


def config_values(config: ModelConfig) -> dict[str, Any]:
    """A configuration as plain values, defaults filled in."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def create_model(values: dict[str, Any], info: SeriesInfo) -> Forecaster:
    """The model of a resolved trial, on the CPU, frozen weights in place, trainable ones not yet drawn.

    Raises:
        ModelError: it does not fit the data, or its weights cannot be had.
    """
    remote = [path for path in create_config(values).files() if is_uri(path)]
    local = {name: str(weights_file(value, f"model.{name}")) for name, value in values.items() if value in remote}
    try:
        return MODELS[values["name"]][1](create_config(values | local), info)
    except (ConfigError, WeightsError) as error:
        raise ModelError(str(error)) from error


def weights_file(path: str, field: str) -> Path:
    """A file or folder that a model names, as a path of this machine: what lies at a URI is copied. ``field`` names it in messages.

    Raises:
        ModelError: there is no such file.
    """
    try:
        place = local_copy(path) if is_uri(path) else Path(path)
        if place.exists():
            return place
    except FileNotFoundError:
        pass
    raise ModelError(
        f"{field}={shown(path)}: there is no such file. Give its path or URI, or one of the words the field knows "
        "(`pretrained`; see `stlab schema`)."
    )
