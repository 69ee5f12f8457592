"""The models by name. No other module imports a model's configuration.

A new model needs a :class:`~stmodels.config.ModelConfig`, a :class:`~stmodels.base.Forecaster` that is built from it, and a line in
``MODELS``. A model from outside is named by its place (:mod:`stlab.model_files`), or registered by its package under the entry points
``stlab.models``.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlab.errors import ModelError
from stlab.files import is_uri, local_copy, shown
from stlab.model_files import broken, is_place, load, short
from stmodels.baselines.config import BASELINES
from stmodels.config import ModelConfig
from stmodels.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from stmodels.base import Forecaster
    from stmodels.types import SeriesInfo

ENTRY_POINTS = "stlab.models"

MODELS: dict[str, str] = {
    "st_vfm": "stmodels.st_vfm.config:STVFMConfig",
    "st_vlm": "stmodels.st_vlm.config:STVLMConfig",
    "lstm": "stmodels.series.lstm_config:LSTMConfig",
    "ha": "stmodels.classic.ha_config:HAConfig",
    "arima": "stmodels.classic.arima_config:ARIMAConfig",
    "tcn": "stmodels.series.tcn_config:TCNConfig",
    "patchtst": "stmodels.series.patchtst_config:PatchTSTConfig",
    "itransformer": "stmodels.series.itransformer_config:ITransformerConfig",
    "stgcn": "stmodels.graph.stgcn_config:STGCNConfig",
    "astgcn": "stmodels.graph.astgcn_config:ASTGCNConfig",
    "graph_wavenet": "stmodels.graph.graph_wavenet_config:GraphWaveNetConfig",
    "agcrn": "stmodels.graph.agcrn_config:AGCRNConfig",
    "staeformer": "stmodels.graph.staeformer_config:STAEformerConfig",
    "sstban": "stmodels.graph.sstban_config:SSTBANConfig",
    "pdformer": "stmodels.graph.pdformer_config:PDFormerConfig",
    "std_mae": "stmodels.graph.std_mae_config:STDMAEConfig",
    "ofa": "stmodels.language.ofa_config:OFAConfig",
    "st_llm": "stmodels.language.st_llm_config:STLLMConfig",
    "std_plm": "stmodels.language.std_plm_config:STDPLMConfig",
    "stg_llm": "stmodels.language.stg_llm_config:STGLLMConfig",
    "stid": "stmodels.grid.stid_config:STIDConfig",
    "stnorm": "stmodels.grid.stnorm_config:STNormConfig",
    "stresnet": "stmodels.grid.stresnet_config:STResNetConfig",
    "acfm": "stmodels.grid.acfm_config:ACFMConfig",
    "stgsp": "stmodels.grid.stgsp_config:STGSPConfig",
    "mc_stl": "stmodels.grid.mc_stl_config:MCSTLConfig",
    "simvp": "stmodels.video.simvp_config:SimVPConfig",
    "tau": "stmodels.video.simvp_config:TAUConfig",
    "predrnn": "stmodels.video.recurrent_config:PredRNNConfig",
    "mim": "stmodels.video.recurrent_config:MIMConfig",
    "mau": "stmodels.video.recurrent_config:MAUConfig",
    "unist": "stmodels.foundation.unist_config:UniSTConfig",
    **dict.fromkeys(BASELINES, "stmodels.baselines.config:BaselineConfig"),
}
"""Name → the class of its configuration, as ``package.module:Class``."""


def trainable_models() -> dict[str, type[ModelConfig]]:
    """The models that the base of a study may name, with their configuration classes."""
    return {name: config_class(name) for name in MODELS if name not in BASELINES}


@functools.cache
def registered() -> dict[str, str]:
    """The models that installed packages register: name → place. A name of our own stays ours."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point.value for point in found if point.name not in MODELS}


def config_class(name: str) -> type[ModelConfig]:
    """The configuration class of a model.

    Raises:
        ModelError: there is no such model, or what is at its place is none; the message names the most similar one.
    """
    places = {**MODELS, **registered()}
    if not isinstance(name, str):
        raise ModelError(f"model.name={name}: a name is text. Known: {', '.join(places)}.")
    if not is_place(name) and name not in places:
        near = difflib.get_close_matches(str(name), places, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ModelError(
            f"model.name={name}: there is no such model.{hint} Known: {', '.join(places)}; or the place of one: ./mine.py:MyConfig."
        )
    config = load(places.get(name, name))
    if not (isinstance(config, type) and issubclass(config, ModelConfig) and is_dataclass(config)):
        raise ModelError(
            f"model.name={short(name)}: {getattr(config, '__name__', config)} is no configuration of a model. It must be a frozen "
            "dataclass that extends stmodels.config.ModelConfig; models/README.md has an example."
        )
    return config


def create_config(values: dict[str, Any]) -> ModelConfig:
    """The configuration of a resolved trial, as the type of its model."""
    return config_class(values["name"])(**values)


def config_values(config: ModelConfig) -> dict[str, Any]:
    """A configuration as plain values, with defaults filled in."""
    return asdict(config)


def create_model(values: dict[str, Any], info: SeriesInfo) -> Forecaster:
    """The model of a resolved trial, on the CPU. Its frozen weights are loaded; the trainable ones are not drawn yet.

    Raises:
        ModelError: the model does not fit the data, or its weights are not available.
    """
    remote = [path for path in create_config(values).files() if is_uri(path)]
    local = {name: str(weights_file(value, f"model.{name}")) for name, value in values.items() if value in remote}
    try:
        return create_config(values | local).build(info)
    except (ConfigError, WeightsError) as error:
        raise ModelError(str(error)) from error
    except Exception as error:
        if values["name"] in MODELS:
            raise
        raise broken(values["name"], error) from error


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
