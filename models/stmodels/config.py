"""What every model declares beside its fields. It needs only the standard library, since configurations are also read without torch."""

from __future__ import annotations

import functools
import importlib
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.base import Forecaster
    from stmodels.types import SeriesInfo

# Annotations of fields: ``flow_weight: Annotated[float, KEEPS_COST] = 0.5``. Their texts explain themselves in a type's repr.
KEEPS_NUMBERS: Final = "another value cannot change a number, so the field is no part of a trial's id"
KEEPS_COST: Final = "another value does not change the time that a step takes"
READ_BY_SOME: Final = "only some models read what it makes of the data, and it is part of the ids of their trials alone, by its content"

PARTS: Final = ("network", "inputs", "pretrain")
"""What only some models read of the data: the network of the sensors, further channels, and the data sets of a pre-training."""


def marked(owner: type[Any], mark: str) -> frozenset[str]:
    """The fields of a configuration or a specification that are annotated with ``mark``."""
    return _marked(owner, mark)


@functools.cache
def _marked(owner: type[Any], mark: str) -> frozenset[str]:
    hints = typing.get_type_hints(owner, include_extras=True)
    return frozenset(name for name, hint in hints.items() if mark in getattr(hint, "__metadata__", ()))


@dataclass(frozen=True)
class Stage:
    """A training that comes before the one that the study describes, such as a pre-training. Its last weights go on into the next."""

    name: str
    """Of letters and digits."""
    epochs: int
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the section ``train`` that differ from the study's: ``lr``, ``batch_size``, …"""
    reads_pretrain: bool = False
    """Whether its windows are those of ``data.pretrain`` where a study names data sets there. A batch is of one set then, and its grid,
    or its number of nodes and channels, may be another than that of the forecasts, and it has no ``past``."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of every model's configuration: a frozen dataclass whose fields are the model's.

    The methods here answer for a model that needs nothing special. Dotted fields are those of a whole trial: ``model.rank``, ``train.lr``.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012 - read by pydantic, never written

    MODEL: ClassVar[str] = ""
    """The :class:`~stmodels.base.Forecaster` that is built from the configuration and a ``SeriesInfo``: ``package.module:Class``, or
    ``Class`` in the module of the configuration."""

    FAMILIES: ClassVar[tuple[str, ...]] = ("grid", "sensors")
    """The families of data that it forecasts, that of its paper first."""
    NEEDS: ClassVar[tuple[str, ...]] = ()
    """``calendar`` (it reads the slots of the week, whatever its fields), ``season`` (it reads the means by slot), ``network`` (it reads
    ``info.adjacency``), ``inputs`` (it reads ``batch.history_inputs``) or ``weights`` (pretrained ones). A loaded
    model is given calendar and season only if it needs them, and a trial of a model that needs a network or inputs is refused where the
    data have none; the last is for the reader of a list."""
    PAPER: ClassVar[str] = ""
    """Where it was published."""
    SMALL: ClassVar[Mapping[str, Any]] = {}
    """Fields that make the model small enough to be checked in seconds."""
    PARAMETERS: ClassVar[int | None] = None
    """Trainable parameters with the default fields, random weights and the reference shape of the first of its families
    (``REFERENCE`` in :mod:`stmodels.types`)."""
    WHOLE_BATCHES: ClassVar[str] = ""
    """Why a batch must go through the model whole, and is neither divided to save memory nor shared out among workers; empty where it
    need not. A BatchNorm is a reason."""
    UNTRACED: ClassVar[str] = ""
    """Why ``torch.compile`` cannot trace the model as a whole; empty where it can."""

    name: str
    """The model."""

    def build(self, info: SeriesInfo) -> Forecaster:
        """The model, on the CPU. Its module is imported here, and torch with it.

        Raises:
            ConfigError: the configuration does not fit the data.
            WeightsError: its weights are not available.
        """
        module, _, name = self.MODEL.rpartition(":")
        home = importlib.import_module(module) if module else sys.modules[type(self).__module__]
        model: Forecaster = getattr(home, name)(self, info)
        return model

    def loss_weights(self) -> dict[str, float]:
        """Weights of the loss terms by name. A term that is not here has the weight 1."""
        return {}

    def needs(self) -> tuple[str, ...]:
        """``NEEDS``, or what the fields say beside it."""
        return self.NEEDS

    def reads(self) -> tuple[str, ...]:
        """Of ``PARTS``, what the numbers depend on where the data have it. It is then part of a trial's id."""
        read = {*self.needs(), *("pretrain" for stage in self.stages() if stage.reads_pretrain)}
        return tuple(part for part in PARTS if part in read)

    def information(self) -> Literal["window", "calendar", "period"]:
        """What a forecast may know beside the network: the ``window`` alone, the ``calendar`` too, or also a ``period``, which is readings
        of earlier days or their means. Tables say it beside each row, since rows of different groups differ in more than their models."""
        needs, chosen = self.needs(), vars(self)
        if "season" in needs or chosen.get("seasonal_residual"):
            return "period"
        return "calendar" if "calendar" in needs or chosen.get("calendar") or chosen.get("time_of_day") else "window"

    def stages(self) -> tuple[Stage, ...]:
        """The trainings that come before the one that the study describes, in order. None of them selects by validation errors.

        The model is told of each by :meth:`~stmodels.base.Forecaster.begin`.
        """
        return ()

    def prepared_from(self) -> Mapping[str, Any] | None:
        """The fields on which :meth:`~stmodels.base.Forecaster.prepare` depends, with their values; None where nothing is prepared."""
        return None

    def past(self, info: SeriesInfo) -> int:
        """R, the number of steps before the history that the model reads too, as ``batch.past``.

        A train window that has fewer before it is left out, and data whose first validation window has fewer are refused. Targets stay
        those of all other models.
        """
        return 0

    def inert(self) -> set[str]:
        """Dotted fields, or whole sections, that cannot change a number under this configuration. They are not part of a trial's id."""
        return set()

    def chooses(self) -> bool:
        """Whether the model chooses something by validation error in closed form, so that ``train.select_by`` counts in any case."""
        return False

    def components(self) -> dict[str, dict[str, Any]]:
        """The components that an ablation can leave out: component → dotted fields that switch it off."""
        return {}

    def files(self) -> list[str]:
        """Files whose content changes the numbers, as the fields name them."""
        return []

    def relative_cost(self) -> float:
        """Rough cost of a training step relative to other configurations of this model. It orders the work."""
        return 1.0

    def check(self, info: SeriesInfo) -> None:
        """Raise ConfigError if the model cannot run on that data."""

    def check_pretraining(self, info: SeriesInfo, other: SeriesInfo) -> None:
        """Raise ConfigError if a model of data like ``info`` cannot be pre-trained on data like ``other``."""
        self.check(other)

    def check_has_season(self, info: SeriesInfo, field: str) -> None:
        """Raise ConfigError if the data have no means by slot of the week, which a value of ``field`` asks for."""
        if info.slots_per_day is None or info.season_count < 1:
            why = "no timestamps" if info.slots_per_day is None else "not every slot of the week in their train segment"
            raise ConfigError(
                f"model.{field}={getattr(self, field)} reads the mean by slot of the week, and the data (data.path) have {why}: give more "
                f"data, or choose another model.{field}"
            )

    def check_at_least(self, least: float, *fields: str) -> None:
        """Raise ConfigError if one of the fields is smaller."""
        for name in fields:
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name} must be at least {least:g}, it is {getattr(self, name)}")

    def check_share(self, *fields: str) -> None:
        """Raise ConfigError if one of the fields, such as a dropout, does not lie in [0, 1)."""
        for name in fields:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must lie in [0, 1), it is {getattr(self, name)}")

    def check_heads(self, width: str, heads: str) -> None:
        """Raise ConfigError if the number of heads does not divide the width."""
        if getattr(self, width) % getattr(self, heads):
            raise ConfigError(
                f"model.{heads}={getattr(self, heads)} must divide model.{width}={getattr(self, width)}: change one of them"
            )
