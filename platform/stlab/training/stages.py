"""How a stage that comes before a training is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmodels.config import Stage

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec


def train_of(stage: Stage, train: TrainSpec) -> TrainSpec:
    """As the study says, but for its length, what needs a validation, and what the stage changes itself."""
    own = {"schedule": "cosine", "milestones": (), "warmup_epochs": 0, "curriculum_epochs": None, "max_epochs": stage.epochs, **stage.train}
    return type(train)(**{**vars(train), **own, "patience": stage.epochs})
