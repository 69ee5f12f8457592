"""What a study says: frozen, validated, and nothing else. No files are read here and torch is not imported.

A study is a base, named overrides of it (variants), values of single fields (axes) and seeds. ``stlab.study_file`` reads one
from YAML, ``stlab.plan`` turns it into trials. What a model may be told is declared by the model itself (``stlab.catalog``), so
``model`` is an open mapping here and is checked against the model's own configuration when the plan is made.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Family = Literal["grid", "sensors"]

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
    """A checkpoint is written at the end of the first epoch after this many seconds (0: every epoch)."""

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


class StudySpec(Spec):
    """A study: what varies, and what does not."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the study's folder and its MLflow experiment."""
    description: str = ""
    """One or two sentences for the report."""
    base: BaseConfig
    variants: dict[str, dict[str, Any]] = {"base": {}}
    """Name → overrides of the base, as dotted paths or nested mappings. An ablation table is a list of these."""
    axes: dict[str, list[Any]] = {}
    """Dotted path → values; every combination is run with every variant."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Every variant is run with each."""
    baselines: list[str] | None = None
    """Reference forecasts that stand in the table. Unset: every one the data allows."""

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
