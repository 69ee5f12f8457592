"""What the tests of plan, training and results share: a small data set and a trial that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab.catalog import config_class, config_values
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec

TINY: dict[str, Any] = {
    "backbone": "vit_test",
    "weights": "random",
    "temporal_width": 8,
    "temporal_heads": 2,
    "temporal_layers": 1,
    "rank": 2,
    "prompts": 2,
    "cross_prompt_layers": 1,
}


@pytest.fixture(scope="session")
def small_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days of hourly counts on 4×4 cells with a daily rhythm: `data` (240, 2, 4, 4), `timestamps`."""
    steps = 240
    draw = np.random.default_rng(7)
    day = 12 + 9 * np.sin(2 * np.pi * np.arange(steps) / 24)
    data = draw.poisson(day[:, None, None, None] * draw.uniform(0.5, 1.5, (2, 4, 4))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path, data=data, timestamps=np.datetime64("2024-01-01", "s") + np.arange(steps) * np.timedelta64(3600, "s")
    )
    return path


@pytest.fixture
def make_trial(small_grid: Path) -> Callable[..., TrialSpec]:
    """A resolved trial of a very small ST-VFM; fields of model and train by name."""

    def make(
        seed: int = 0, model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **train: Any
    ) -> TrialSpec:
        given = {"name": "st_vfm", **(model or {})}
        values = given if given["name"] != "st_vfm" else TINY | given
        return TrialSpec(
            study="small",
            variant="full",
            seed=seed,
            data=DataSpec(**{"path": str(small_grid), **(data or {})}),
            model=config_values(config_class(values["name"])(**values)),
            train=TrainSpec(
                **{"max_epochs": 4, "warmup_epochs": 1, "lr": 3e-3, "checkpoint_seconds": 0, "batch_size": 32, **train}
            ),
            resources=ResourcesSpec(gpus=0),
        )

    return make


@pytest.fixture
def directory(tmp_path: Path) -> TrialDirectory:
    return TrialDirectory(Store(tmp_path / "runs"), "0123456789abcdef")
