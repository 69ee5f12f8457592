"""The sections of a trial: its data, how it is trained, and what it asks of the cluster.

Specifications are frozen and validated, and nothing else: no files are read here and torch is not imported. The fourth section, the
model, is declared by each model itself (``stlab.catalog``).
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from stmodels.config import KEEPS_COST, KEEPS_NUMBERS, READ_BY_SOME

Family = Literal["grid", "sensors"]

# The defaults of each family: steps of history and horizon, split, and the value that marks a missing reading.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "grid": {"history": 6, "horizon": 6, "split": (0.70, 0.15, 0.15), "null": None},
    "sensors": {"history": 12, "horizon": 12, "split": (0.60, 0.20, 0.20), "null": "auto"},
}


class Spec(BaseModel):
    """Base of every specification: it is frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSpec(Spec):
    """The series, how it is cut into windows, and the protocol."""

    path: Annotated[str, KEEPS_NUMBERS]
    """Path or URI of the data. Grid: `.npz` or UniST's `.json`; sensors: `.npz`, `.h5`, `.csv`, `.parquet`, or a grid. `synthetic:city` is
    generated."""
    family: Family = "grid"
    """`grid` (T, C, H, W) or `sensors` (T, N, C). The defaults of history, horizon, split and null depend on it."""
    history: int = Field(default=6, ge=1)
    """P, the number of steps that the model sees. Default: 6 (grid), 12 (sensors)."""
    horizon: int = Field(default=6, ge=1)
    """Q, the number of steps to forecast. Default: 6 (grid), 12 (sensors)."""
    split: tuple[float, float, float] = (0.70, 0.15, 0.15)
    """Shares of train, validation and test, contiguous in time. Default: 70/15/15 (grid), 60/20/20 (sensors)."""
    protocol: Literal["forecast", "unist"] = "forecast"
    """`forecast`: the model sees nothing later than the forecast. `unist`: the windows are ready-made, and the scaler is fitted on all
    segments, which leaks."""
    missing: Literal["error", "zero", "interpolate"] = "error"
    """Treatment of non-finite values. `zero` replaces them by 0, which counts as a missing reading where `null` is 0."""
    null: Literal["auto"] | Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The value that means "no reading". Loss and metrics leave it out; null: there is none. Default: null (grid), auto (sensors). `auto`
    is 0 for sensors, and null for the cells of a grid."""
    train_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    """Few-shot: the share of the train segment, counted from its start, that trials train on."""
    scale: float = Field(default=1.0, gt=0.0)
    """Reported errors are multiplied by this factor (Crowd and Cellular are reported ×10³)."""
    channel: int = Field(default=0, ge=0)
    """Sensors: index, from 0, of the channel that is forecast. All channels of a grid are forecast together."""
    inputs: Annotated[tuple[Annotated[int, Field(ge=0)], ...], READ_BY_SOME] = ()
    """Sensors: indices, from 0, of further channels, whose history a model is given beside that of `channel`, which may be among them.
    It counts for models that read them."""
    start: Annotated[str | None, KEEPS_NUMBERS] = None
    """Time of the first step (ISO, 2018-01-01T00:00), for a file without timestamps. stlab knows that of PEMS03, 04, 07 and 08."""
    step_minutes: Annotated[float | None, KEEPS_NUMBERS] = Field(default=None, gt=0.0)
    """Length of a step in minutes. It goes together with `start`."""
    node_ids: Annotated[str | None, KEEPS_NUMBERS] = None
    """Sensors: a text file with one node id per line, in the order of the data (PEMS03.txt)."""
    distances: Annotated[str | None, KEEPS_NUMBERS] = None
    """Sensors: a CSV file with the columns `from,to,cost` (or `distance`) and one edge per line. Nodes are named by id, or by index from 0
    if the data has no ids."""
    graph: Annotated[Literal["auto", "connection", "gaussian", "grid4", "correlation", "none"], READ_BY_SOME] = "auto"
    """Sensors: the network that models are given as a matrix. `connection`: 1 where `distances` connects two nodes. `gaussian`: near nodes
    weigh more, exp(−(cost/σ)²) as in DCRNN. `grid4`: neighbouring cells of a grid. `correlation`: nodes whose train readings correlate.
    `auto`: `connection` where there are distances, `grid4` for a grid, else none, as for more than 5,000 nodes. It counts for models that
    read it."""
    graph_threshold: Annotated[float, READ_BY_SOME] = Field(default=0.1, ge=0.0, lt=1.0)
    """`graph: gaussian` leaves out edges that weigh less."""
    graph_neighbours: Annotated[int, READ_BY_SOME] = Field(default=8, ge=1)
    """`graph: correlation`: the number of nodes that each chooses."""

    pretrain: Annotated[tuple[str, ...], READ_BY_SOME] = ()
    """Paths or URIs of the data sets that a pre-training reads instead of `path`, which may be among them. Each is split and scaled by
    itself, and its train segment alone is read. Grids and steps may differ. It counts for models that are pre-trained."""

    def without_pretraining(self) -> DataSpec:
        """The same without the data sets of a pre-training, for all that comes after it and for models that have none."""
        return self.model_copy(update={"pretrain": ()})

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

    @field_validator("graph")
    @classmethod
    def _graph_is_for_sensors(cls, value: str, info: ValidationInfo) -> str:
        if value not in ("auto", "none") and info.data.get("family") == "grid":
            raise ValueError(f"{value!r} is for sensors; the family is grid. Leave it out, or set data.family: sensors")
        return value

    @field_validator("channel", "inputs", "node_ids", "distances")
    @classmethod
    def _is_for_sensors(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("family") == "grid":
            raise ValueError(f"{value!r} is for sensors; the family is grid. Leave it out, or set data.family: sensors")
        return value

    @field_validator("inputs")
    @classmethod
    def _channels_are_named_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)} names a channel twice. Name each once")
        return value

    @field_validator("pretrain")
    @classmethod
    def _sets_are_named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [path for number, path in enumerate(value) if path in value[:number]]:
            raise ValueError(f"{twice[0]!r} is named twice. Name each data set once")
        return value

    @field_validator("start")
    @classmethod
    def _start_is_a_time(cls, start: str | None) -> str | None:
        if start is None:
            return None
        try:
            time = datetime.datetime.fromisoformat(start)
        except ValueError:
            raise ValueError(f"{start!r} is not an ISO time. Write 2018-01-01 or 2018-01-01T00:00:00") from None
        if time.tzinfo is not None or time.microsecond:
            raise ValueError(f"{start!r}: give local time in whole seconds, without a time zone: 2018-01-01T00:00:00")
        return start

    @model_validator(mode="after")
    def _start_goes_with_its_step(self) -> DataSpec:
        if (self.start is None) != (self.step_minutes is None):
            raise ValueError("start and step_minutes go together: the time of the first step, and the length of a step")
        return self

    @field_validator("split")
    @classmethod
    def _split_sums_to_one(cls, split: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
            raise ValueError(f"the three shares must be positive and sum to 1, these are {split} (sum {sum(split):g})")
        return split


class TrainSpec(Spec):
    """How a trial is trained."""

    max_epochs: Annotated[int, KEEPS_COST] = Field(default=200, ge=1)
    """Maximum number of epochs."""
    batch_size: int | None = Field(default=None, ge=1)
    """Windows per optimiser step, summed over all workers. Unset: 32 for sensors; for a grid 64 where H+W is below 32, 32 where it is
    below 48, and 16 otherwise."""
    lr: Annotated[float, KEEPS_COST] = Field(default=3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    loss: Annotated[Literal["model", "mse", "mae", "huber"], KEEPS_COST] = "model"
    """The error of a forecast that training minimises, as a mean over the present readings. `model`: what the model sets, which is `mae`
    unless its class says otherwise. Further terms of a model's loss stay as they are."""
    huber_delta: Annotated[float, KEEPS_COST] = Field(default=1.0, gt=0.0)
    """Huber's loss is squared for errors below this and linear above, in the unit of the data."""
    schedule: Annotated[Literal["cosine", "plateau", "steps"], KEEPS_COST] = "cosine"
    """Learning rate after the warm-up. `cosine`: it falls from lr to min_lr at max_epochs. `plateau`: it is reduced whenever the validation
    error stops improving. `steps`: it is reduced after the epochs in `milestones`."""
    milestones: Annotated[tuple[Annotated[int, Field(ge=1)], ...], KEEPS_COST] = ()
    """`schedule: steps` reduces the learning rate when so many epochs have ended, those of the warm-up included."""
    milestone_factor: Annotated[float, KEEPS_COST] = Field(default=0.5, gt=0.0, lt=1.0)
    """`schedule: steps` multiplies the learning rate by this factor."""
    min_lr: Annotated[float, KEEPS_COST] = Field(default=1e-5, ge=0.0)
    """Learning rate at the end of the cosine schedule and of a decay (`decay_epochs`), and the lower limit of the plateau schedule."""
    warmup_epochs: Annotated[int, KEEPS_COST] = Field(default=5, ge=0)
    """Number of epochs of linear warm-up before the schedule."""
    plateau_factor: Annotated[float, KEEPS_COST] = Field(default=0.5, gt=0.0, lt=1.0)
    """`schedule: plateau` multiplies the learning rate by this factor."""
    plateau_patience: Annotated[int, KEEPS_COST] = Field(default=10, ge=0)
    """`schedule: plateau` reduces the learning rate after more than this number of epochs without a validation error 0.01 % below the
    best."""
    weight_decay: Annotated[float, KEEPS_COST] = Field(default=1e-6, ge=0.0)
    """Decoupled weight decay of AdamW. With 0, AdamW is Adam."""
    clip_norm: Annotated[float, KEEPS_COST] = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this global norm. UniST uses 0.05."""
    patience: Annotated[int, KEEPS_COST] = Field(default=20, ge=1)
    """Training stops after this number of epochs without a better validation error."""
    decay_epochs: Annotated[int, KEEPS_COST] = Field(default=0, ge=0)
    """When `patience` runs out before `max_epochs`, training goes back to the best weights, and the learning rate falls linearly to
    `min_lr` in so many further epochs. 0: it just stops, which with a long cosine is near the peak rate."""
    curriculum_epochs: Annotated[float | None, KEEPS_COST] = Field(default=None, gt=0.0)
    """Curriculum by horizon: the loss covers the first step of the horizon, and one more after each so many epochs, which may be a
    fraction. Validation covers the whole horizon, and `patience` counts from the epoch in which the loss does. Unset: it always does."""
    select_by: Annotated[Literal["rmse", "mae"], KEEPS_COST] = "rmse"
    """The validation error that early stopping, the choice of the checkpoint and `schedule: plateau` use."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: autocast to bfloat16. `auto`: bf16 on a GPU that supports it, and fp32 on CPUs, so that a result does not depend on the model
    of the CPU."""
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpoint_seconds: Annotated[float, KEEPS_NUMBERS, KEEPS_COST] = Field(default=30.0, ge=0.0)
    """Seconds between checkpoints, which are written between two steps. 0: only at the end of every epoch."""
    step_timeout: Annotated[float | None, KEEPS_NUMBERS, KEEPS_COST] = Field(default=None, gt=0.0)
    """Seconds that a training step or a validation batch may take. After that the trial fails and says where it hung. Unset: no limit. The
    first step takes longer than the others, minutes with `compile`, so the limit must leave room for it."""

    def inert(self) -> set[str]:
        """Dotted fields that cannot change a number beside these values. They are not part of a trial's id."""
        unused = set() if self.schedule == "plateau" else {"train.plateau_factor", "train.plateau_patience"}
        unused |= set() if self.schedule == "steps" else {"train.milestones", "train.milestone_factor"}
        unused |= set() if self.schedule != "steps" or self.decay_epochs else {"train.min_lr"}
        unused |= set() if self.loss == "huber" else {"train.huber_delta"}
        # What is left at its default does what was done before the field came, and so leaves ids as they were.
        return unused | {f"train.{name}" for name in ("loss", "curriculum_epochs", "decay_epochs") if name not in self.changed()}

    @property
    def most_epochs(self) -> int:
        """The epochs of a training that early stopping does not end, or those of a decay after it."""
        return self.max_epochs + self.decay_epochs

    def changed(self) -> set[str]:
        """The fields that have another value than their default."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}

    @model_validator(mode="after")
    def _milestones_go_with_steps(self) -> TrainSpec:
        if self.schedule == "steps" and not self.milestones:
            raise ValueError("schedule: steps needs milestones, the numbers of epochs after which the learning rate is reduced: [20, 40]")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones are numbers of epochs in rising order, these are {list(self.milestones)}")
        return self


class ResourcesSpec(Spec):
    """The resources of one trial. How many trials run at once follows from them."""

    workers: int = Field(default=1, ge=1)
    """Number of processes that train one trial together (DDP)."""
    cpus: float = Field(default=1.0, gt=0.0)
    """CPU cores per worker. A worker uses as many threads."""
    gpus: float | None = Field(default=None, ge=0.0)
    """GPUs per worker; fractions are allowed. Unset: 1 if the cluster has GPUs, else 0."""
    max_gpus: float | None = Field(default=None, gt=0.0)
    """Maximum number of GPUs that the study uses at once on a shared cluster. Unset: all of them."""
    max_cpus: float | None = Field(default=None, gt=0.0)
    """Maximum number of CPU cores that the study uses at once. Unset: all of them."""
    infrastructure_retries: int = Field(default=3, ge=0)
    """How often a trial is resumed after its workers or their node died. Announced preemptions do not count."""
    trial_retries: int = Field(default=0, ge=0)
    """How often a trial that failed by its own error is resumed from its last checkpoint within the same run."""
    price_per_gpu_hour: Annotated[float | None, KEEPS_COST] = Field(default=None, ge=0.0)
    """Price of a GPU-hour in any currency. `stlab plan --probe` and the report then state the cost of a study."""
