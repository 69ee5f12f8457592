"""Grids, lengths and switches that do not fit together: padded if asked, refused by name if not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stmodels.errors import ConfigError
from stmodels.st_vfm.model import STVFM
from stmodels.types import Batch, SeriesInfo

Info = Callable[..., SeriesInfo]
Batches = Callable[..., Batch]
Models = Callable[..., STVFM]


def test_padding_is_cut_off_again(variant: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches) -> None:
    """A padded 5×7 grid is a 6×8 grid whose last row and column are zero."""
    small, large = series_info(shape=(2, 5, 7)), series_info(shape=(2, 6, 8))
    batch = batch_of(small)
    by_hand = batch._replace(history=nn.functional.pad(batch.history, (0, 1, 0, 1)))
    with torch.no_grad():
        value = small_model(small, pad=True, **variant)(batch).value
        expected = small_model(large, **variant)(by_hand).value
    assert value.shape == (3, 6, 2, 5, 7)
    assert torch.equal(value, expected[..., :5, :7])


def test_padding_is_offered(small_model: Models, series_info: Info) -> None:
    with pytest.raises(ConfigError, match=r"5×7.*2×2.*model\.pad=true"):
        small_model(series_info(shape=(2, 5, 7)))


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"temporal_patch": 4}, {}, r"model\.temporal_patch=4.*data\.history=6"),
    ({}, {"horizon": 5}, r"data\.horizon=5"),
    ({}, {"family": "sensors", "shape": (7, 1)}, "grids"),
    ({"calendar": True}, {"slots_per_day": None}, r"model\.calendar needs timestamps"),
    ({"seasonal_residual": True}, {"slots_per_day": None}, r"model\.seasonal_residual needs timestamps"),
    ({"seasonal_residual": True}, {"season_count": 1}, "at least twice"),
    ({"cross_prompt_layers": 1, "flow": False}, {}, r"model\.cross_prompt_layers"),
    ({"temporal_width": 10, "temporal_heads": 4}, {}, r"model\.temporal_heads=4"),
    ({"adaptation": "simple"}, {}, r"model\.temporal_context to false"),
    ({"rank": 0}, {}, r"model\.rank"),
    ({"prompts": 0}, {}, r"model\.prompts"),
    ({"dropout": 1.0}, {}, r"model\.dropout"),
    ({"patch": 0}, {}, r"model\.patch"),
    ({"cross_prompt_layers": -1}, {}, r"model\.cross_prompt_layers"),
]


@pytest.mark.parametrize(("switches", "data", "says"), REFUSALS)
def test_what_cannot_be_built_names_its_field(
    switches: dict[str, Any], data: dict[str, Any], says: str, small_model: Models, series_info: Info
) -> None:
    with pytest.raises(ConfigError, match=says):
        small_model(series_info(**data), **switches)
