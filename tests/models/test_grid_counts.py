"""The numbers of parameters that were counted in the public code of each comparison model of grids: two channels, 16×8 cells, 6 → 6."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stlab.catalog import config_values, create_config, create_model
from stmodels.types import REFERENCE

_ORIGINAL_PATCHES = {"patch": 2, "stride": 2, "positions": "random"}
_COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("patchtst", {**_ORIGINAL_PATCHES, "repeat_last": True}, 401_414),
    ("patchtst", _ORIGINAL_PATCHES, 400_518),
    ("itransformer", {"layers": 3}, 4_741_638),
    ("itransformer", {}, 3_163_654),
    ("itransformer", {"width": 128, "feedforward": 128}, 201_094),
    ("stid", {}, 106_124),
    ("stid", {"calendar": False}, 30_252),
    # The residual map of the last layer is read by nobody.
    ("stnorm", {}, 23_852 - 272),
    ("stnorm", {"layers": 4}, 31_628 - 272),
    ("stnorm", {"width": 64}, 227_468 - 4_160),
    ("stresnet", {}, 310_860),
    ("stresnet", {"units": 12}, 901_708),
    # Public code has seven biases a ConvLSTM, of 16 channels each, beside four to which they are added.
    ("acfm", {}, 104_940 - 2 * 112),
    ("acfm", {"attention": "shared"}, 70_220 - 2 * 112),
    # Public code has two columns more for the calendar, of the weekend, in both networks that read it.
    ("stgsp", {"units": 12, "inputs": "calendar"}, 3_253_260 - 2 * 80),
    ("simvp", {}, 10_414_690),
    ("simvp", {"translator": "incepu"}, 14_012_770),
    ("tau", {}, 9_980_578),
    ("predrnn", {"width": 128, "patch": 2}, 23_658_496),
    ("predrnn", {"width": 64, "patch": 2}, 5_959_680),
    ("predrnn", {"width": 128, "patch": 2, "layer_norm": True}, 24_150_016),
    ("unist", {}, 2_004_360 - 24 * 128),  # of 48 slots a day in public code
    ("unist", {"prompt": "none"}, 1_417_096 - 24 * 128),
    ("unist", {"channels": "joint"}, 2_004_360 - 24 * 128 + 28_936),
    # Public code declares a map in each difference unit that it never calls, and two in MAU.
    ("mim", {"width": 128, "patch": 2}, 37_347_328 - 3 * 32_768),
    ("mim", {"width": 64, "patch": 2}, 9_400_320 - 3 * 8_192),
    ("mau", {}, 3_492_364 - 8_256 - 10),
]


@pytest.mark.parametrize(("name", "fields", "expected"), _COUNTS)
def test_trained_parameters(name: str, fields: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        model = create_model(config_values(create_config({"name": name, **fields})), REFERENCE["grid"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
