"""A small study and small data that several tests share."""

from __future__ import annotations

import numpy as np
import pytest

STUDY = """\
name: tiny
base:
  data: {path: 'synthetic:city?weeks=4'}
  model: {name: st_vfm, backbone: vit_test, weights: random, patch: 4, temporal_width: 8, temporal_heads: 2, temporal_layers: 2, rank: 4}
  train: {max_epochs: 2, warmup_epochs: 1, lr: 2.0e-3, checkpoint_seconds: 0}
variants:
  no flow: {model: {flow: false, cross_prompt_layers: 0}}
  full: {}
seeds: [0, 1]
"""


@pytest.fixture(scope="session")
def study_text() -> str:
    """A study of two variants and two seeds that trains in seconds."""
    return STUDY


@pytest.fixture(scope="session")
def grid() -> dict[str, np.ndarray]:
    """Arrays of a sound file: ten days of hourly counts on 4×4 cells."""
    steps = 240
    data = np.random.default_rng(0).poisson(5, (steps, 2, 4, 4)).astype(np.float32)
    return {"data": data, "timestamps": np.datetime64("2024-01-01", "s") + np.arange(steps) * np.timedelta64(3600, "s")}
