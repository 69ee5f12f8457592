"""What the season says of a window: how much busier than usual it has been, at a place and everywhere.

Legend: B batch, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

from torch import Tensor

from stmodels.types import Batch, SeriesInfo

LEVELS = 3


def season_levels(batch: Batch, info: SeriesInfo) -> list[Tensor]:
    """The profile ahead times three relative deviations from the season, each (B, Q, *S) in scaled space.

    They are those of the place's history, of the whole city's history, and of the city's last reading: a city that is 20 % busier than
    usual will be so for a while. A deviation is kept within −1 and 2.
    """
    assert batch.history_season is not None
    assert batch.target_profile is not None
    assert info.residual_std is not None
    space = (-2, -1) if info.family == "grid" else (-2,)
    history, season, ahead = (x - info.zero for x in (batch.history, batch.history_season, batch.target_profile))
    levels = []
    for x, s in (
        (history.sum(1, keepdim=True), season.sum(1, keepdim=True)),
        (history.sum((1, *space), keepdim=True), season.sum((1, *space), keepdim=True)),
        (history[:, -1:].sum(space, keepdim=True), season[:, -1:].sum(space, keepdim=True)),
    ):
        # Adding one standard deviation of the residual to both keeps the ratio of a quiet place near 1.
        ratio = (x + info.residual_std) / (s + info.residual_std)
        levels.append(ahead * (ratio - 1).clamp(-1, 2))
    return levels
