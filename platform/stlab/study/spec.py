"""A study: a base, named overrides of it (variants), values of single fields (axes) and seeds.

Specifications are frozen and validated, and nothing else: no files are read here and torch is not imported. ``stlab.study.file`` reads
a study from YAML, and ``stlab.study.plan`` turns it into trials. Each model declares its own fields (``stlab.catalog``), so ``model``
is an open mapping here, and the plan checks it against the model's configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stlab.study.search_spec import Distribution, Objective, SearchSpec, conditions_first
from stlab.study.sections import FAMILY_DEFAULTS, DataSpec, Family, ResourcesSpec, Spec, TrainSpec

__all__ = [
    "FAMILY_DEFAULTS",
    "AblateSpec",
    "BaseConfig",
    "DataSpec",
    "Distribution",
    "Family",
    "Objective",
    "PaperSpec",
    "ReportSpec",
    "ResourcesSpec",
    "SearchSpec",
    "Spec",
    "StudySpec",
    "TrainSpec",
    "TrialSpec",
    "conditions_first",
]


OF_DATASETS = "datasets"
"""The base's path in a study whose data sets have their own."""


class BaseConfig(Spec):
    """The sections that all trials of a study share unless a variant or an axis overrides them."""

    data: DataSpec
    model: dict[str, Any]
    """The model's `name`, and fields of its configuration."""
    train: TrainSpec = TrainSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @field_validator("model")
    @classmethod
    def _names_a_model(cls, model: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(model.get("name"), str):
            raise ValueError("`name` is missing. Name one of the models that `stlab schema` lists")
        return model


class AblateSpec(Spec):
    """Variants that are generated from the components that the base's model declares."""

    components: list[str] = Field(min_length=1)
    """The components to leave out: by name, or by the field that switches them (`flow`, `cross_prompts`, `peft`, …)."""
    mode: Literal["leave_one_out", "cumulative", "pairs"] = "leave_one_out"
    """`leave_one_out`: the full model, and the model without each component. `cumulative`: the model without all components, which are then
    added one by one in their order up to the full model. `pairs`: as `leave_one_out`, and without each pair of components."""

    @field_validator("components")
    @classmethod
    def _components_differ(cls, components: list[str]) -> list[str]:
        if twice := sorted({name for name in components if components.count(name) > 1}):
            raise ValueError(f"the component {twice[0]!r} appears twice. Keep one of them")
        return components


class PaperSpec(Spec):
    """A published table that the report compares with the study's rows."""

    file: str
    """A shipped paper, `st_vfm` or `st_vlm`, or the path of your own description (.yaml)."""
    table: str | list[str]
    """One table, `table3`, or several: `[table3, supplement_table1]`."""
    dataset: str | None = None
    """The paper's name of the data set. Unset: derived from the name of the data file."""
    rows: dict[str, str] = Field(default={})
    """Variant → the row of the table that it corresponds to. A variant with the name of a row needs no entry."""

    @property
    def tables(self) -> list[str]:
        return [self.table] if isinstance(self.table, str) else self.table


class ReportSpec(Spec):
    """What a report shows beside its tables and figures."""

    horizons: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    """Steps ahead whose errors get a table of their own, `[3, 6, 12]`. A step beyond the horizon of the data is an error, and of one of
    several data sets a dash."""

    @field_validator("horizons")
    @classmethod
    def _steps_differ(cls, steps: list[int]) -> list[int]:
        if twice := [step for index, step in enumerate(steps) if step in steps[:index]]:
            raise ValueError(f"the step {twice[0]} appears twice. Keep one of them")
        return steps


class StudySpec(Spec):
    """A study: what its trials share, and what varies between them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The name of the study, of its folder and of its MLflow experiment."""
    description: str = ""
    """One or two sentences for the report."""
    base: BaseConfig
    datasets: dict[str, dict[str, Any]] = Field(default={})
    """Name → a data set: fields of `data` (`path`, `scale`, …), and for this data set alone overrides of the base's `model`, `train` and
    `resources`. Every variant is run on every data set, but for those that its `without` lists. Unset: on the base's data."""
    variants: dict[str, dict[str, Any]] = Field(default={"base": {}})
    """Name → overrides of the base, as dotted paths or nested mappings. Each variant is a row of the ablation table."""
    ablate: AblateSpec | None = None
    """Further variants, which are generated from the model's declared components."""
    axes: dict[str, list[Any]] = Field(default={})
    """Dotted path → values. Every combination of values is run with every variant."""
    search: SearchSpec | None = None
    """Fields that Optuna chooses for every variant. The search uses the first seed; the selected trial is then trained with all seeds."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Every variant is run with each of these seeds."""
    reference: str | None = None
    """The variant that all others are compared with, seed by seed. Unset: `full` if there is such a variant, else the first."""
    baselines: list[str] | None = None
    """The reference forecasts in the table. Unset: all that the data allows."""
    paper: PaperSpec | None = None
    """A published table that the report compares with this study."""
    report: ReportSpec = ReportSpec()
    """What the report shows beside its tables and figures. It changes no trial."""

    @model_validator(mode="before")
    @classmethod
    def _base_has_a_path(cls, values: Any) -> Any:
        """With ``datasets`` the base's path is that of none, so it may be left out."""
        if isinstance(values, dict) and values.get("datasets") and isinstance(base := values.get("base"), dict):
            data = base.get("data")
            if data is None or (isinstance(data, dict) and "path" not in data):
                return {**values, "base": {**base, "data": {"path": OF_DATASETS, **(data or {})}}}
        return values

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"a seed appears twice in {seeds}; each is trained once")
        return seeds

    @field_validator("variants")
    @classmethod
    def _has_variants(cls, variants: dict[str, Any]) -> dict[str, Any]:
        if not variants:
            raise ValueError("there are no variants. Leave the field out, or name at least one")
        return variants


class TrialSpec(Spec):
    """One training, with every field resolved."""

    study: str
    variant: str
    dataset_entry: str = ""
    """The name of the trial's entry in the study's ``datasets``; empty in a study that has none."""
    axis_values: dict[str, Any] = Field(default={})
    """The trial's values on the study's axes, by dotted path."""
    seed: int
    data: DataSpec
    model: dict[str, Any]
    """The model's whole configuration, with defaults filled in."""
    train: TrainSpec
    resources: ResourcesSpec
    baseline: bool = False
    """Whether this is a reference forecast, which shares the protocol and the tables but is not trained."""
