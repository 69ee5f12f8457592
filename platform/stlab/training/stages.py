"""How a stage that comes before a training is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmodels.config import Stage

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec


def train_of(stage: Stage, train: TrainSpec) -> TrainSpec:
    """As the study says, but for its length, what needs a validation, and what the stage changes itself."""
    plain = {"schedule": "cosine", "milestones": (), "warmup_epochs": 0, "curriculum_epochs": None, "decay_epochs": 0}
    own = {**plain, "max_epochs": stage.epochs, **stage.train}
    return type(train)(**{**vars(train), **own, "patience": stage.epochs})
