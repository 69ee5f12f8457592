"""A search: the fields that Optuna chooses, how it chooses them, and when it ends."""

from __future__ import annotations

import graphlib
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from stlab.study.sections import Spec

Objective = Literal[
    "val_rmse", "val_mae", "device_seconds", "wall_seconds", "trainable_params", "total_params", "peak_memory_bytes"
]
_FloatRange = tuple[float, float]
_IntRange = tuple[int, int]
_Step = Annotated[float, Field(gt=0.0)]


class Distribution(Spec):
    """The distribution of one searched field: exactly one of `float`, `int` and `categorical`."""

    float: _FloatRange | None = None
    """Lowest and highest real number, both included."""
    int: _IntRange | None = None
    """Lowest and highest whole number, both included."""
    categorical: list[Any] | None = None
    """The choices."""
    log: bool = False
    """Draw the logarithm uniformly, as for learning rates."""
    step: _Step | None = None
    """Distance between two values: only low, low + step, low + 2·step, … are drawn."""
    when: dict[str, Any] = Field(default={})
    """The field is searched only if these other fields, searched or fixed, have this value or one of a list: `{model.peft: lora}`."""

    @model_validator(mode="after")
    def _is_one_distribution(self) -> Distribution:
        kinds = [name for name in ("float", "int", "categorical") if getattr(self, name) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            raise ValueError(
                f"exactly one of float, int and categorical is needed, this has {found}: {{float: [1e-4, 1e-2], log: true}}, "
                "{int: [2, 64], log: true} or {categorical: [adapter, lora]}"
            )
        if self.categorical is not None:
            if self.log or self.step is not None:
                raise ValueError("log and step do not apply to a categorical")
            if any(choice in self.categorical[:at] for at, choice in enumerate(self.categorical)) or len(self.categorical) < 2:
                raise ValueError(f"at least two choices are needed, all different; these are {self.categorical}")
            return self
        low, high = self.float or self.int or (0, 0)
        if low >= high:
            raise ValueError(f"low must be below high, these are {low:g} and {high:g}")
        if self.log and (low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and step does not go with it")
        if self.int is not None and self.step is not None and self.step != round(self.step):
            raise ValueError(f"the step of an int must be a whole number, this is {self.step:g}")
        return self

    @model_serializer
    def _only_what_is_set(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) not in (None, False, {})}


class SearchSpec(Spec):
    """A search by Optuna, separate for every variant. Trials are compared on the validation segment alone."""

    space: dict[str, Distribution] = Field(min_length=1)
    """Dotted path of a field of model or train → its distribution, as Optuna names it."""
    sampler: Literal["tpe", "gp", "cmaes", "random", "nsga2"] = "tpe"
    """Optuna's sampler, which chooses the next point."""
    objectives: list[Objective] = Field(default=["val_rmse"], min_length=1, max_length=2)
    """The quantities to minimise. The first must be a validation error, by which the best trial is selected. With a second one the search
    finds a front of trade-offs."""
    pruner: Literal["none", "median", "successive_halving", "hyperband"] = "none"
    """Optuna's pruner, which stops trials early that do worse than others. It needs a single objective."""
    over: Literal["datasets"] | None = None
    """`datasets`: one configuration for all data sets of the study. A point is then trained on each of them, and its error is the geometric
    mean of the validation errors, which orders points as the mean ratio to any fixed reference does. Unset: a search for each data set."""
    pruner_warmup: int = Field(default=5, ge=1)
    """Number of epochs before the pruner may stop a trial (the minimum resource of successive halving and Hyperband)."""
    startup_trials: int = Field(default=10, ge=1)
    """Number of random points before the sampler uses earlier results; for `nsga2`, the size of a generation."""
    points: list[dict[str, Any]] = Field(default=[])
    """Points to try first, such as a paper's settings. Fields that a point leaves out are drawn."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampler. The trials have the study's first seed."""
    max_trials: int | None = Field(default=None, ge=1)
    """Number of trials of each variant, including pruned and failed ones."""
    max_gpu_hours: float | None = Field(default=None, gt=0.0)
    """No new trial of a variant starts once its trials have used this many device-hours (GPU-hours if they use GPUs)."""
    max_wall: float | None = Field(default=None, gt=0.0)
    """No new trial starts after this many hours of searching, interruptions excluded."""
    storage: str | None = None
    """URL of an Optuna storage (`sqlite:////tmp/search.db`), for Optuna's dashboard. Unset: the search is kept in memory. The URL must not
    hold a password: the database's client finds it in PGPASSWORD or ~/.pgpass (PostgreSQL), or in the file that ?read_default_file=…
    names (MySQL)."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_searched(cls, values: Any) -> Any:
        """A field that is set to null leaves the space and the points, so that the base's value applies."""
        if not isinstance(values, dict) or not isinstance(values.get("space"), dict):
            return values
        out = {path for path, found in values["space"].items() if found is None}
        points = values.get("points")
        if isinstance(points, list):
            points = [
                {path: value for path, value in p.items() if path not in out} if isinstance(p, dict) else p for p in points
            ]
            values = {**values, "points": points}
        return {**values, "space": {path: found for path, found in values["space"].items() if path not in out}}

    @field_validator("space")
    @classmethod
    def _is_of_model_or_train(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        for path in space:
            if path.partition(".")[0] in ("data", "resources"):
                reason = "errors on other data do not compare" if path.startswith("data.") else "resources change no error"
                raise ValueError(f"{path} cannot be searched: {reason}. Search fields of model and train")
        conditions_first(space)
        return space

    @model_validator(mode="after")
    def _can_be_run(self) -> SearchSpec:
        if self.objectives[0] not in ("val_rmse", "val_mae"):
            raise ValueError(f"the first objective selects, so it must be val_rmse or val_mae; this is {self.objectives[0]}")
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("the two objectives are the same. Keep one of them")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(f"pruner: {self.pruner} compares one error, and this search has two objectives. Set pruner: none")
        if self.over is not None and self.pruner != "none":
            raise ValueError(f"pruner: {self.pruner} compares epochs of one data set, and over: datasets has several. Set pruner: none")
        if self.sampler == "nsga2" and self.pruner != "none":
            raise ValueError(f"pruner: {self.pruner} stops trials that sampler: nsga2 needs as parents. Change one of them")
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError("sampler: cmaes minimises one objective, and this search has two. Choose nsga2, tpe, gp or random")
        if self.max_trials is None and self.max_gpu_hours is None and self.max_wall is None:
            raise ValueError("a search needs an end: set max_trials (--trials), max_gpu_hours or max_wall")
        for at, point in enumerate(self.points):
            if strays := [path for path in point if path not in self.space]:
                raise ValueError(f"points[{at}]: {strays[0]} is not in the space, which has {', '.join(self.space)}")
        return self


def conditions_first(space: dict[str, Distribution]) -> list[str]:
    """The paths of a space, sorted so that every field comes after the fields that its conditions name.

    Raises:
        ValueError: the conditions form a cycle.
    """
    waits = {path: [other for other in found.when if other in space] for path, found in space.items()}
    try:
        return list(graphlib.TopologicalSorter(waits).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"`when` forms a cycle: {' → '.join(error.args[1])}. Remove one condition") from None
