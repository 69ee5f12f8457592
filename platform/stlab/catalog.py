"""The models by name, with their configurations and classes. No other module imports model classes.

A new model needs a frozen dataclass as its configuration (with ``inert``, ``components``, ``files``, ``relative_cost`` and ``check``), a
:class:`~stmodels.base.Forecaster` that is built from it and a :class:`~stmodels.types.SeriesInfo`, and a line in ``MODELS``.
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
    """The interface of every model's configuration."""

    name: str

    def inert(self) -> set[str]:
        """Dotted fields, of the whole trial, that cannot change a number under this configuration."""

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields, of the whole trial, that switch it off."""

    def files(self) -> list[str]:
        """Files whose content changes the numbers."""

    def relative_cost(self) -> float:
        """Rough cost of a training step relative to other configurations of this model. It orders the work."""

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if the model cannot run on that data."""


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
    """The models that the base of a study may name, with their configuration classes."""
    return {name: config for name, (config, _) in MODELS.items() if name not in BASELINES}


def config_class(name: str) -> type[Any]:
    """The configuration class of a model.

    Raises:
        ModelError: there is no such model; the message names the most similar one.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ModelError(f"model.name={name}: there is no such model.{hint} Known: {', '.join(MODELS)}.")
    return MODELS[name][0]


def create_config(values: dict[str, Any]) -> ModelConfig:
    """The configuration of a resolved trial, as the type of its model."""
    config: ModelConfig = config_class(values["name"])(**values)
    return config


def config_values(config: ModelConfig) -> dict[str, Any]:
    """A configuration as plain values, with defaults filled in."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def create_model(values: dict[str, Any], info: SeriesInfo) -> Forecaster:
    """The model of a resolved trial, on the CPU. Its frozen weights are loaded; the trainable ones are not drawn yet.

    Raises:
        ModelError: the model does not fit the data, or its weights are not available.
    """
    remote = [path for path in create_config(values).files() if is_uri(path)]
    local = {name: str(weights_file(value, f"model.{name}")) for name, value in values.items() if value in remote}
    try:
        return MODELS[values["name"]][1](create_config(values | local), info)
    except (ConfigError, WeightsError) as error:
        raise ModelError(str(error)) from error


def weights_file(path: str, field: str) -> Path:
    """The local path of a file or folder that a model names. A URI is copied. ``field`` names it in messages.

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
