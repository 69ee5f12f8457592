"""What a study says: frozen, validated, and nothing else. No files are read here and torch is not imported.

A study is a base, named overrides of it (variants), values of single fields (axes) and seeds. ``stlab.study.file`` reads one
from YAML, ``stlab.study.plan`` turns it into trials. What a model may be told is declared by the model itself (``stlab.catalog``), so
``model`` is an open mapping here and is checked against the model's own configuration when the plan is made.
"""

from __future__ import annotations

import datetime
import graphlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_serializer, model_validator

Family = Literal["grid", "sensors"]
Objective = Literal[
    "val_rmse", "val_mae", "device_seconds", "wall_seconds", "trainable_params", "total_params", "peak_memory_bytes"
]
_FloatRange = tuple[float, float]
_IntRange = tuple[int, int]
_Step = Annotated[float, Field(gt=0.0)]

# The defaults a family brings (protocol: "Data", "Split", "Metrics"): steps of history and horizon, split, missing-value marker.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "grid": {"history": 6, "horizon": 6, "split": (0.70, 0.15, 0.15), "null": None},
    "sensors": {"history": 12, "horizon": 12, "split": (0.60, 0.20, 0.20), "null": "auto"},
}


class Spec(BaseModel):
    """Base of every spec: frozen, and a field that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSpec(Spec):
    """Which series, cut into which windows, by which protocol."""

    path: str
    """A file (grid: `.npz`, UniST `.json`; sensors: `.npz`, `.h5`, `.csv`, `.parquet`, a grid), or `synthetic:city`, which is generated."""
    family: Family = "grid"
    """`grid` (T, C, H, W) or `sensors` (T, N, C); brings the defaults of history, horizon, split and null."""
    history: int = Field(default=6, ge=1)
    """P, steps the model sees. Default: 6 (grid), 12 (sensors)."""
    horizon: int = Field(default=6, ge=1)
    """Q, steps to forecast. Default: 6 (grid), 12 (sensors)."""
    split: tuple[float, float, float] = (0.70, 0.15, 0.15)
    """Shares of train, validation and test, contiguous in time. Default: 70/15/15 (grid), 60/20/20 (sensors)."""
    protocol: Literal["forecast", "unist"] = "forecast"
    """`forecast`: nothing later than the forecast is seen. `unist`: ready-made windows, scaler fitted on all segments (leaks)."""
    missing: Literal["error", "zero", "interpolate"] = "error"
    """What to do with non-finite values. `zero` makes them 0: for sensors, with null 0, missing readings."""
    null: Literal["auto"] | Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The value that means "no reading", masked out of loss and metrics; null for none. Default: none (grid), auto (sensors):
    0 for sensors, none for a grid's cells."""
    train_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    """Few-shot: the share of the train segment, from its start, that is trained on."""
    scale: float = Field(default=1.0, gt=0.0)
    """Factor on reported errors (Crowd and Cellular are reported ×10³)."""
    channel: int = Field(default=0, ge=0)
    """Sensors: the channel that is forecast, from 0. A grid's channels are forecast together."""
    start: str | None = None
    """Time of the first step (ISO, 2018-01-01T00:00), for a file without timestamps. PEMS03, 04, 07 and 08 are known."""
    step_minutes: float | None = Field(default=None, gt=0.0)
    """Minutes a step, together with `start`."""
    node_ids: str | None = None
    """Sensors: a text file with the id of each node, a line each, in the data's order (PEMS03.txt)."""
    distances: str | None = None
    """Sensors: a CSV file `from,to,cost` (or `distance`), an edge a line, by node id; by index from 0 where nodes have no ids."""

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        defaults = FAMILY_DEFAULTS.get(values.get("family", "grid"), {})
        values = {**defaults, **values}
        if values.get("null") == "none":
            values["null"] = None
        return values

    @field_validator("channel", "node_ids", "distances")
    @classmethod
    def _is_for_sensors(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("family") == "grid":
            raise ValueError(f"{value!r} is for sensors; the family is grid. Leave it out, or set data.family: sensors")
        return value

    @field_validator("start")
    @classmethod
    def _start_is_a_time(cls, start: str | None) -> str | None:
        if start is None:
            return None
        try:
            time = datetime.datetime.fromisoformat(start)
        except ValueError:
            raise ValueError(f"{start!r} is no ISO time; needed: 2018-01-01 or 2018-01-01T00:00:00") from None
        if time.tzinfo is not None or time.microsecond:
            raise ValueError(f"{start!r}: give local time in whole seconds, without a time zone: 2018-01-01T00:00:00")
        return start

    @model_validator(mode="after")
    def _start_goes_with_its_step(self) -> DataSpec:
        if (self.start is None) != (self.step_minutes is None):
            raise ValueError("start and step_minutes are given together: when the first step was, and how long a step is")
        return self

    @field_validator("split")
    @classmethod
    def _split_sums_to_one(cls, split: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
            raise ValueError(f"the three shares must be positive and sum to 1, these are {split} (sum {sum(split):g})")
        return split


class TrainSpec(Spec):
    """How a trial is trained."""

    flow_loss_weight: float = Field(default=0.5, ge=0.0)
    """λ of Eq. 11: weight of the auxiliary flow loss."""
    max_epochs: int = Field(default=200, ge=1)
    """Epochs at the most."""
    batch_size: int | None = Field(default=None, ge=1)
    """Windows an optimiser step, over all workers together. Unset: 64 / 32 / 16 for H+W below 32 / 48 / above (grid), 32 (sensors)."""
    lr: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "plateau"] = "cosine"
    """What follows the warm-up. `cosine`: from lr to min_lr at max_epochs; `plateau`: lr, cut where validation stops improving."""
    min_lr: float = Field(default=1e-5, ge=0.0)
    """Learning rate at the end of the cosine, and the lowest that the plateau cuts to."""
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs of linear warm-up before the schedule."""
    plateau_factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    """`schedule: plateau` multiplies the learning rate by this."""
    plateau_patience: int = Field(default=10, ge=0)
    """`schedule: plateau` lets so many epochs pass without a validation error 0.01 % below the best; one more is a cut."""
    weight_decay: float = Field(default=1e-6, ge=0.0)
    """Decoupled weight decay of AdamW; with 0 it is Adam."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this global norm. UniST uses 0.05."""
    patience: int = Field(default=20, ge=1)
    """Epochs without a better validation error before training stops."""
    select_by: Literal["rmse", "mae"] = "rmse"
    """The validation error that early stopping, the choice of the checkpoint and the plateau read."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: autocast. `auto`: bf16 on a GPU that has it, fp32 on CPUs, so that a CPU result does not depend on the CPU's model."""
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpoint_seconds: float = Field(default=30.0, ge=0.0)
    """A checkpoint is written between two steps after this many seconds (0: at every epoch's end, and nowhere else)."""
    step_timeout: float | None = Field(default=None, gt=0.0)
    """Seconds in which a training step or validation batch must end, or the trial fails and says where it hung. Unset: no limit.
    The first step takes longer than others, minutes with `compile`: leave it room."""

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number under this schedule; they are no part of a trial's identity."""
        return set() if self.schedule == "plateau" else {"train.plateau_factor", "train.plateau_patience"}


class ResourcesSpec(Spec):
    """What one trial asks of the cluster; how many run at once follows from it."""

    workers: int = Field(default=1, ge=1)
    """Processes that train one trial together (DDP)."""
    cpus: float = Field(default=1.0, gt=0.0)
    """CPU cores a worker; its threads are pinned to as many."""
    gpus: float | None = Field(default=None, ge=0.0)
    """GPUs a worker, fractions allowed. Unset: 1 where the cluster has any, else 0."""
    max_gpus: float | None = Field(default=None, gt=0.0)
    """GPUs that the study takes at once, of a cluster it shares with others. Unset: all there are."""
    max_cpus: float | None = Field(default=None, gt=0.0)
    """CPU cores that the study takes at once. Unset: all there are."""
    infrastructure_retries: int = Field(default=3, ge=0)
    """How often a trial goes on after its workers or their node died. A preemption that is announced does not count."""
    trial_retries: int = Field(default=0, ge=0)
    """How often a trial that failed by an error of its own is run again in the same run, from its last checkpoint."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0.0)
    """What a GPU costs an hour, in any currency: `stlab plan --probe` and the report tell what a study costs."""


class BaseConfig(Spec):
    """What all trials of a study share unless a variant or an axis says otherwise."""

    data: DataSpec
    model: dict[str, Any]
    """`name` and the fields of that model's configuration."""
    train: TrainSpec = TrainSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @field_validator("model")
    @classmethod
    def _names_a_model(cls, model: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(model.get("name"), str):
            raise ValueError("`name` is missing: which model? (see `stlab schema`)")
        return model


class AblateSpec(Spec):
    """Variants made from the components that the base's model declares, instead of typed."""

    components: list[str] = Field(min_length=1)
    """What to leave out: components of the base's model, or the fields that switch them (`flow`, `cross_prompts`, `peft`, …)."""
    mode: Literal["leave_one_out", "cumulative", "pairs"] = "leave_one_out"
    """`leave_one_out`: full, and without each; `cumulative`: without all, then one after the other put in, in their order, up
    to full; `pairs`: full, without each, and without each two."""

    @field_validator("components")
    @classmethod
    def _components_differ(cls, components: list[str]) -> list[str]:
        if twice := sorted({name for name in components if components.count(name) > 1}):
            raise ValueError(f"the component {twice[0]!r} stands twice. Keep one of them")
        return components


class Distribution(Spec):
    """What one field of a search may be: exactly one of `float`, `int` and `categorical`."""

    float: _FloatRange | None = None
    """Low and high, both included: a real number."""
    int: _IntRange | None = None
    """Low and high, both included: a whole number."""
    categorical: list[Any] | None = None
    """The choices."""
    log: bool = False
    """Draw the logarithm evenly: for scales, such as learning rates."""
    step: _Step | None = None
    """Only low, low + step, …"""
    when: dict[str, Any] = {}
    """Searched only where these fields, of the search or fixed, have this value (or one of a list): `{model.peft: lora}`."""

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
                raise ValueError("a categorical has no log and no step")
            if any(choice in self.categorical[:at] for at, choice in enumerate(self.categorical)) or len(self.categorical) < 2:
                raise ValueError(f"at least two choices are needed, all different; these are {self.categorical}")
            return self
        low, high = self.float or self.int or (0, 0)
        if low >= high:
            raise ValueError(f"low must be below high, these are {low:g} and {high:g}")
        if self.log and (low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and has no step")
        if self.int is not None and self.step is not None and self.step != round(self.step):
            raise ValueError(f"the step of an int is a whole number, this is {self.step:g}")
        return self

    @model_serializer
    def _without_what_it_is_not(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) not in (None, False, {})}


class SearchSpec(Spec):
    """A search by Optuna: every variant is searched for itself. Trials are compared on the validation segment alone."""

    space: dict[str, Distribution] = Field(min_length=1)
    """Dotted path of a field of model or train → what it may be, as Optuna's distributions."""
    sampler: Literal["tpe", "gp", "cmaes", "random", "nsga2"] = "tpe"
    """Who chooses the next point, by Optuna's name."""
    objectives: list[Objective] = Field(default=["val_rmse"], min_length=1, max_length=2)
    """What is minimised. The first is a validation error and selects; a second makes a front of trade-offs."""
    pruner: Literal["none", "median", "successive_halving", "hyperband"] = "none"
    """Who stops a trial early that does worse than others, by Optuna's name; one objective only."""
    pruner_warmup: int = Field(default=5, ge=1)
    """Epochs that every trial gets before the pruner may stop it (the least resource of successive halving and Hyperband)."""
    startup_trials: int = Field(default=10, ge=1)
    """Random points before the sampler goes by what it has seen; the size of a generation of `nsga2`."""
    points: list[dict[str, Any]] = []
    """Points to try first, such as a paper's settings; what a point leaves out is drawn."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampler, not of the trials: those have the study's first seed."""
    max_trials: int | None = Field(default=None, ge=1)
    """Trials of each variant, pruned and failed ones counted."""
    max_gpu_hours: float | None = Field(default=None, gt=0.0)
    """Each variant: no new trial once the trials took so many device-hours (of GPUs where they have any)."""
    max_wall: float | None = Field(default=None, gt=0.0)
    """Hours of searching, interruptions left out, after which no new trial begins."""
    storage: str | None = None
    """URL of an Optuna storage (`sqlite:////tmp/search.db`), for its dashboard; kept in memory if unset. Without a password: the
    database's client finds it in PGPASSWORD or ~/.pgpass (PostgreSQL), or in the file that ?read_default_file=… names (MySQL)."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_searched(cls, values: Any) -> Any:
        """A field set to null leaves the space, and the points: the base's value stands."""
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
    def _changes_what_is_trained(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        for path in space:
            if path.partition(".")[0] in ("data", "resources"):
                reason = "other data make other errors" if path.startswith("data.") else "resources change no error"
                raise ValueError(f"{path} cannot be searched: {reason}. Search fields of model and train")
        conditions_first(space)
        return space

    @model_validator(mode="after")
    def _can_be_run(self) -> SearchSpec:
        if self.objectives[0] not in ("val_rmse", "val_mae"):
            raise ValueError(f"the first objective selects and is val_rmse or val_mae, this is {self.objectives[0]}")
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("the two objectives are the same. Keep one of them")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(f"pruner: {self.pruner} compares one error, and this search has two objectives. Set pruner: none")
        if self.sampler == "nsga2" and self.pruner != "none":
            raise ValueError(f"pruner: {self.pruner} ends trials that sampler: nsga2 breeds from. Set pruner: none, or another sampler")
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError("sampler: cmaes has one objective, this search two. Choose nsga2, tpe, gp or random")
        if self.max_trials is None and self.max_gpu_hours is None and self.max_wall is None:
            raise ValueError("a search needs an end: set max_trials (--trials), max_gpu_hours or max_wall")
        for at, point in enumerate(self.points):
            if strays := [path for path in point if path not in self.space]:
                raise ValueError(f"points[{at}]: {strays[0]} is not in the space. There: {', '.join(self.space)}")
        return self


def conditions_first(space: dict[str, Distribution]) -> list[str]:
    """The paths of a space in an order in which every condition is known before what it decides.

    Raises:
        ValueError: conditions go round in a circle.
    """
    waits = {path: [other for other in found.when if other in space] for path, found in space.items()}
    try:
        return list(graphlib.TopologicalSorter(waits).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"`when` goes round in a circle: {' → '.join(error.args[1])}. Take one condition out") from None


class PaperSpec(Spec):
    """A published table that the study's rows are set beside."""

    file: str
    """A shipped paper, `st_vfm` or `st_vlm`, or the path of a description of one's own (.yaml)."""
    table: str | list[str]
    """`table3`, or several: `[table3, supplement_table1]`."""
    dataset: str | None = None
    """The paper's name of the data set. Unset: told by the data file's name."""
    rows: dict[str, str] = {}
    """Variant → the row of the table that it is. Variants that bear a row's name need no entry."""

    @property
    def tables(self) -> list[str]:
        return [self.table] if isinstance(self.table, str) else self.table


class StudySpec(Spec):
    """A study: what varies, and what does not."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the study's folder and its MLflow experiment."""
    description: str = ""
    """One or two sentences for the report."""
    base: BaseConfig
    variants: dict[str, dict[str, Any]] = {"base": {}}
    """Name → overrides of the base, as dotted paths or nested mappings. An ablation table is a list of these."""
    ablate: AblateSpec | None = None
    """Further variants, made from the model's declared components."""
    axes: dict[str, list[Any]] = {}
    """Dotted path → values; every combination is run with every variant."""
    search: SearchSpec | None = None
    """Fields that Optuna chooses, for every variant. With it the first seed searches; the others train what is selected."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Every variant is run with each."""
    reference: str | None = None
    """The variant that all others are compared with, seed by seed. Unset: `full` where there is one, else the first."""
    baselines: list[str] | None = None
    """Reference forecasts that stand in the table. Unset: every one the data allows."""
    paper: PaperSpec | None = None
    """A published table whose figures the report sets beside this study's."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"a seed stands twice in {seeds}; each is trained once")
        return seeds

    @field_validator("variants")
    @classmethod
    def _has_variants(cls, variants: dict[str, Any]) -> dict[str, Any]:
        if not variants:
            raise ValueError("no variants: leave the field out, or name at least one")
        return variants


class TrialSpec(Spec):
    """One training: everything resolved, nothing left to decide."""

    study: str
    variant: str
    axis_values: dict[str, Any] = {}
    """The values this trial takes on the study's axes, by dotted path."""
    seed: int
    data: DataSpec
    model: dict[str, Any]
    """The model's whole configuration, defaults filled in."""
    train: TrainSpec
    resources: ResourcesSpec
    baseline: bool = False
    """A reference forecast: same protocol, same tables, nothing to tune."""
