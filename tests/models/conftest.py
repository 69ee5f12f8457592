"""Small series, batches and models for the tests of stmodels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stlab.data import Dataset, load_dataset
from stlab.inspection.contract import random_batch
from stlab.study.spec import DataSpec
from stmodels.base import Forecaster
from stmodels.rng import initialise
from stmodels.st_vfm.config import STVFMConfig
from stmodels.st_vfm.model import STVFM
from stmodels.types import Batch, SeriesInfo

# Table 3 of the paper. Written out a second time on purpose: the study file must agree with it.
VARIANTS: dict[str, dict[str, Any]] = {
    "#1": {
        "adaptation": "simple",
        "temporal_context": False,
        "peft": "none",
        "flow": False,
        "cross_prompt_layers": 0,
        "decoder": "mlp",
    },
    "#2": {"temporal_context": False, "peft": "none", "flow": False, "cross_prompt_layers": 0},
    "#3": {"peft": "none", "flow": False, "cross_prompt_layers": 0},
    "#4": {"flow": False, "cross_prompt_layers": 0},
    "full": {},
}
SMALL = {"backbone": "vit_test", "weights": "random", "temporal_width": 16, "temporal_layers": 1, "rank": 4}


def _series_info(**changes: Any) -> SeriesInfo:
    """A grid of 2 channels, 8×8 cells and hourly steps."""
    values = {
        "family": "grid",
        "shape": (2, 8, 8),
        "history": 6,
        "horizon": 6,
        "slots_per_day": 24,
        "flow_std": 0.7,
        "season_count": 5,
        "residual_std": 0.4,
        "zero": -1.0,
        "lookback": 500,
    }
    return SeriesInfo(**{**values, **changes})


def _batch_of(info: SeriesInfo, size: int = 3, seed: int = 0) -> Batch:
    return random_batch(info, size, seed)


def _small_model(info: SeriesInfo | None = None, seed: int = 0, **switches: Any) -> STVFM:
    """ST-VFM on the test backbone, its trainable weights drawn."""
    config = STVFMConfig(**{**SMALL, **switches})
    model = STVFM(config, info or _series_info())
    initialise(model, seed)
    return model


def _sensor_info(nodes: int = 40, **changes: Any) -> SeriesInfo:
    """A network of sensors that report every five minutes."""
    values = {
        "family": "sensors", "shape": (nodes, 1), "history": 12, "horizon": 12, "slots_per_day": 288, "flow_std": 0.3,
        "zero": -3.0, "lookback": 500,
    }  # fmt: skip
    return SeriesInfo(**{**values, **changes})


def _sensor_batch(info: SeriesInfo, size: int = 2, seed: int = 0) -> Batch:
    """Random walks, so that nodes differ in level and in shape."""
    rng = torch.Generator().manual_seed(seed)
    steps = torch.randn(size, info.history + info.horizon, *info.shape, generator=rng)
    walk = 0.3 * steps.cumsum(1) + torch.randn(size, 1, *info.shape, generator=rng)
    slots = torch.arange(info.history + info.horizon).expand(size, -1) + 100
    return Batch(
        history=walk[:, : info.history], target=walk[:, info.history :], start=torch.arange(size),
        history_slot=slots[:, : info.history], target_slot=slots[:, info.history :],
    )  # fmt: skip


def _small_vlm(info: SeriesInfo | None = None, seed: int = 0, **switches: Any) -> Forecaster:
    """ST-VLM on the test backbone, its trainable weights drawn."""
    from stmodels.st_vlm.config import STVLMConfig
    from stmodels.st_vlm.model import STVLM

    config = STVLMConfig(**{"backbone": "vilt_test", "weights": "random", "hidden": 16, "lora_rank": 4, **switches})
    model = STVLM(config, info or _sensor_info())
    initialise(model, seed)
    return model


def _stir(model: torch.nn.Module, seed: int = 1) -> None:
    """Trainable weights away from their neutral start: LoRA's B, the bias and W_af are at zero or the identity there."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=rng)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each variant's switches in turn."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def variants() -> dict[str, dict[str, Any]]:
    """All variants by name."""
    return VARIANTS


@pytest.fixture(scope="session")
def series_info() -> Callable[..., SeriesInfo]:
    return _series_info


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    return _batch_of


@pytest.fixture(scope="session")
def small_model() -> Callable[..., STVFM]:
    return _small_model


@pytest.fixture(scope="session")
def sensor_info() -> Callable[..., SeriesInfo]:
    return _sensor_info


@pytest.fixture(scope="session")
def sensor_batch() -> Callable[..., Batch]:
    return _sensor_batch


@pytest.fixture(scope="session")
def small_vlm() -> Callable[..., Forecaster]:
    return _small_vlm


@pytest.fixture(scope="session")
def small_video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a checkpoint of VideoMAE with two narrow layers."""
    from transformers import VideoMAEConfig, VideoMAEModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    folder = tmp_path_factory.mktemp("video")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VideoMAEModel(VideoMAEConfig(**sizes, image_size=32, num_frames=4)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def stir() -> Callable[..., None]:
    return _stir


@pytest.fixture(scope="session")
def bikes() -> Dataset:
    """The bikes of New York, hourly on 16×8 cells."""
    path = Path(__file__).parents[3] / "shared" / "data" / "nycbike1.npz"
    if not path.exists():
        pytest.skip("nycbike1.npz is not beside this checkout (../shared/data)")
    return load_dataset(DataSpec(path=str(path)))


@pytest.fixture(scope="session")
def city() -> Dataset:
    """The generated city of the demo, hourly on 8×8 cells."""
    return load_dataset(DataSpec(path="synthetic:city"))
