"""The numbers of parameters that are published of each comparison model, or were counted in its public code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stlab.catalog import config_values, create_config, create_model
from stmodels.types import REFERENCE, ring

_RANDOM = {"weights": "random"}
_COUNTS: list[tuple[str, dict[str, Any], int, int]] = [
    ("tcn", {}, 307, 42_764),
    ("itransformer", {}, 307, 3_169_804),
    ("stgcn", {}, 307, 282_444),
    ("stgcn", {}, 170, 212_300),
    ("astgcn", {}, 307, 450_031),
    ("astgcn", {}, 170, 179_456),
    ("graph_wavenet", {}, 307, 295_688),
    ("graph_wavenet", {}, 170, 292_948),
    ("agcrn", {}, 307, 748_810),
    ("agcrn", {}, 170, 747_440),
    ("staeformer", {"reads_calendar": True}, 307, 1_354_980),
    ("staeformer", {"reads_calendar": True}, 170, 1_223_460),
    ("sstban", {}, 307, 3_912_707),
    ("sstban", {"layers": 3}, 307, 5_399_555),
    ("pdformer", {}, 307, 457_437),
    ("std_mae", {}, 307, 2 * 571_404 + 673_384 - 15_712),
    ("ofa", _RANDOM, 307, 865_548),
    ("st_llm", _RANDOM, 170, 3_897_100),
    ("st_llm", _RANDOM, 307, 3_932_172),
    ("stg_llm", _RANDOM, 307, 933_580),
]
_WHOLE = [  # with frozen ones: the published number less the 38,597,376 of GPT-2's words, which ours does not have
    ("patchtst", {}, 307, 406_412),
    ("ofa", _RANDOM, 307, 81_971_724 - 38_597_376),
    ("st_llm", _RANDOM, 170, 82_640_908 - 38_597_376),
]


def _count(name: str, fields: dict[str, Any], nodes: int, frozen: bool) -> int:
    info = REFERENCE["sensors"]._replace(shape=(nodes, 1), adjacency=ring(nodes))
    with torch.device("meta"):
        model = create_model(config_values(create_config({"name": name, **fields})), info)
    return sum(p.numel() for p in model.parameters() if p.requires_grad or frozen)


@pytest.mark.parametrize(("name", "fields", "nodes", "expected"), _COUNTS)
def test_trained_parameters(name: str, fields: dict[str, Any], nodes: int, expected: int) -> None:
    assert _count(name, fields, nodes, frozen=False) == expected


@pytest.mark.parametrize(("name", "fields", "nodes", "expected"), _WHOLE)
def test_all_parameters(name: str, fields: dict[str, Any], nodes: int, expected: int) -> None:
    assert _count(name, fields, nodes, frozen=True) == expected
