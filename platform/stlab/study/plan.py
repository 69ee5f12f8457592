"""From a study to its trials: axes × variants × seeds, each with an id made of everything that changes its numbers."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from stlab.catalog import config_class, config_values, create_config
from stlab.errors import ModelError, StudyError
from stlab.study.ablate import with_ablation
from stlab.study.errors import Problem, explain, problem, study_error
from stlab.study.identity import absolute, code_hash, library_versions, trial_id
from stlab.study.paper import paper_problems
from stlab.study.source import SECTIONS, StudySource, did_you_mean, flatten_overrides
from stlab.study.spec import FAMILY_DEFAULTS, DataSpec, ResourcesSpec, StudySpec, TrainSpec, TrialSpec
from stlab.version import __version__
from stmodels.baselines.config import BASELINES
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know of a data set."""

    name: str
    sha256: str
    synthetic: bool
    leaks: bool
    protocol: dict[str, Any]
    info: SeriesInfo


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its id, and what its directory says beside its specification."""

    spec: TrialSpec
    trial_id: str
    identity: dict[str, Any] = field(repr=False)
    cost: float = 1.0
    """Rough cost beside other trials of the same study; orders the work, promises nothing."""
    note: str = ""
    """What a search tells its trials apart by."""

    @property
    def label(self) -> str:
        """How a reader tells it from the others of its study."""
        axes = "".join(f", {path.rpartition('.')[2]}={value}" for path, value in self.spec.axis_values.items())
        seed = "" if self.spec.baseline or self.note else f", seed {self.spec.seed}"
        return f"{self.spec.variant}{axes}{seed}{self.note and f' {self.note}'}"


@dataclass(frozen=True)
class SearchBranch:
    """One search: a variant, at one point of the axes, whose searched fields Optuna chooses."""

    template: PlannedTrial
    """The trial with none of its searched fields chosen yet."""
    facts: DataFacts
    fixed: dict[str, Any]
    """Dotted fields that the axes and the variant set: they are not searched here."""

    @property
    def label(self) -> str:
        return self.template.label.removesuffix(f", seed {self.template.spec.seed}")

    @property
    def folder(self) -> str:
        """The label as the name of a folder; where signs had to go, a hash tells it from others."""
        plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.label).strip("-.")
        return plain if plain == self.label else f"{plain}-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Pack:
    """Trials that one worker group runs one after another: they need the same resources."""

    resources: ResourcesSpec
    trials: tuple[PlannedTrial, ...]

    @property
    def cost(self) -> float:
        return sum(trial.cost for trial in self.trials)


@dataclass(frozen=True)
class Plan:
    """The trials of a study, in the order of its tables; a trial that two rows share is trained once."""

    study: StudySpec
    trials: tuple[PlannedTrial, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know: baselines that the data does not allow, and why."""
    branches: tuple[SearchBranch, ...] = ()
    """The searches of a study that has one; ``trials`` are the baselines then."""

    def unique(self) -> list[PlannedTrial]:
        """Every trial once."""
        return list({trial.trial_id: trial for trial in self.trials}.values())


def make_plan(study: StudySpec, facts: Callable[[DataSpec], DataFacts], source: StudySource | None = None) -> Plan:
    """Every trial of a study, checked against its model and its data.

    Args:
        facts: reads a data set; called once a distinct specification.
        source: the text the study came from, so that errors name its lines.

    Raises:
        StudyError: a variant or an axis makes a trial that cannot be; all that is wrong is listed.
        DataError: the data cannot be used.
    """
    known: dict[DataSpec, DataFacts] = {}

    def facts_of(data: DataSpec) -> DataFacts:
        if data not in known:
            known[data] = facts(data)
        return known[data]

    study = with_ablation(study, source)
    specs, problems = _resolve(study, source)
    problems += paper_problems(study, source) + _unknown_reference(study, source)
    if problems:
        raise study_error(problems)
    trials = [_planned(spec, facts_of(spec.data)) for spec in specs]
    problems = [
        p for spec in specs if spec.seed == study.seeds[0] for p in _misfits(spec, facts_of(spec.data).info, source)
    ]
    problems += _twins(study, trials, source) + _dead_axes(study, trials, source)
    if problems:
        raise study_error(problems)
    baselines, notes = _baselines(study, specs, facts_of, source)
    if study.search is not None:
        return Plan(study, tuple(baselines), tuple(notes), tuple(_branches(study, trials, facts_of)))
    return Plan(study, (*baselines, *trials), tuple(notes))


def _branches(study: StudySpec, trials: Sequence[PlannedTrial], facts_of: Callable[[DataSpec], DataFacts]) -> Iterator[SearchBranch]:
    for trial in trials:
        if trial.spec.seed == study.seeds[0]:
            fixed = {**trial.spec.axis_values, **flatten_overrides(study.variants[trial.spec.variant])}
            yield SearchBranch(trial, facts_of(trial.spec.data), fixed)


def plan_point(study: StudySpec, branch: SearchBranch, point: Mapping[str, Any], seed: int | None = None, note: str = "") -> PlannedTrial:
    """The trial at a point of a branch's space.

    Args:
        point: dotted path → value.
        seed: the study's first, unless told otherwise.
        note: stands in the trial's label.

    Raises:
        StudyError: no such trial can be; says why.
    """
    spec = branch.template.spec
    values = _merged(study, {**point, **branch.fixed})
    try:
        sections, problems = _sections(values, None, spec.variant)
    except ModelError as error:
        raise StudyError(str(error)) from error
    if problems:
        raise study_error(problems)
    chosen = TrialSpec(
        study=study.name, variant=spec.variant, axis_values=spec.axis_values, seed=spec.seed if seed is None else seed, **sections
    )
    problems = _misfits(chosen, branch.facts.info, None)
    if problems:
        raise study_error(problems)
    return replace(_planned(chosen, branch.facts), note=note)


def make_packs(trials: Sequence[PlannedTrial], slots: Mapping[ResourcesSpec, int]) -> list[Pack]:
    """Deal trials into as many packs as worker groups fit at once, so that all have work to the end.

    The costliest trials are dealt first, each to the pack with the least so far; baselines, which take seconds, lead.
    """
    packs: list[Pack] = []
    for resources in dict.fromkeys(trial.spec.resources for trial in trials):
        mine = [trial for trial in trials if trial.spec.resources == resources]
        hands: list[list[PlannedTrial]] = [[] for _ in range(min(max(1, slots[resources]), len(mine)))]
        for trial in sorted(mine, key=lambda t: -t.cost):
            min(hands, key=lambda hand: (sum(t.cost for t in hand), len(hand))).append(trial)
        packs += [Pack(resources, tuple(sorted(hand, key=lambda t: (not t.spec.baseline, -t.cost)))) for hand in hands]
    return packs


def _resolve(study: StudySpec, source: StudySource | None) -> tuple[list[TrialSpec], list[Problem]]:
    """The resolved specifications, in table order, and what is wrong with those that cannot be."""
    specs: list[TrialSpec] = []
    problems: list[Problem] = []
    for variant, overrides in study.variants.items():
        for point in _points(study.axes):
            own = flatten_overrides(overrides)
            if both := sorted(point.keys() & own.keys()):
                message = f"'{variant}' sets {both[0]}, which is an axis: one trial under several labels. Set it in one place."
                problems.append(problem(message, ("variants", variant), source))
                break
            changes = {**point, **own}
            if strays := [path for path in changes if path.partition(".")[0] not in SECTIONS]:
                message = f"`{strays[0]}`: a path starts with one of {', '.join(f'{name}.' for name in SECTIONS)}"
                problems.append(problem(message, ("variants", variant), source))
                continue
            values = _merged(study, changes)
            try:
                sections, found = _sections(values, source, variant)
            except ModelError as error:
                problems.append(problem(str(error), ("name",), source, section="model", variant=variant))
                continue
            problems += found
            if not found:
                specs += [
                    TrialSpec(study=study.name, variant=variant, axis_values=point, seed=seed, **sections)
                    for seed in study.seeds
                ]
    return specs, problems


def _points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _merged(study: StudySpec, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The base with overrides (dotted) laid over it, section by section.

    Another model starts from its own defaults, the base's fields are not its. Another family brings its own defaults in place
    of those that the base's family brought.
    """
    merged: dict[str, dict[str, Any]] = study.base.model_dump()
    model, data = merged["model"], merged["data"]
    if overrides.get("model.name", model["name"]) != model["name"]:
        merged["model"] = {}
    if overrides.get("data.family", data["family"]) != data["family"]:
        brought = FAMILY_DEFAULTS[data["family"]]
        merged["data"] = {name: value for name, value in data.items() if name not in brought or value != brought[name]}
    for path, value in overrides.items():
        section, _, name = path.partition(".")
        merged[section][name] = value
    return merged


def _sections(
    values: dict[str, dict[str, Any]], source: StudySource | None, variant: str
) -> tuple[dict[str, Any], list[Problem]]:
    """The validated sections of a trial."""
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    owners: dict[str, Any] = {
        "data": DataSpec,
        "model": config_class(values["model"]["name"]),
        "train": TrainSpec,
        "resources": ResourcesSpec,
    }
    for section, owner in owners.items():
        try:
            value = pydantic.TypeAdapter(owner).validate_python(values[section])
            sections[section] = _located(value)
        except pydantic.ValidationError as error:
            problems += explain(error, owner, source, section=section, variant=variant)
    return sections, problems


def _located(section: Any) -> Any:
    """A section with its paths made absolute: workers have working directories of their own. A model's as plain values."""
    if isinstance(section, DataSpec):
        paths = {"path": section.path, "node_ids": section.node_ids, "distances": section.distances}
        return section.model_copy(update={name: absolute(path) for name, path in paths.items() if path is not None})
    if isinstance(section, pydantic.BaseModel):
        return section
    files = section.files()
    return {name: absolute(value) if value in files else value for name, value in config_values(section).items()}


def _planned(spec: TrialSpec, facts: DataFacts) -> PlannedTrial:
    # What `auto` means is known now: a trial that says it and one that says the value are the same.
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"null": facts.protocol.get("mask", spec.data.null)})})
    config = create_config(spec.model)
    identity = {
        "dataset": facts.name,
        "synthetic": facts.synthetic,
        "leaks": facts.leaks,
        "protocol": json.dumps(facts.protocol, sort_keys=True),
        "data_sha256": facts.sha256,
        "code_version": f"{__version__}+{code_hash()[:10]}",
        "weights": spec.model.get("weights", "none"),
        "libraries": library_versions(),
    }
    return PlannedTrial(spec, trial_id(spec, config, facts.sha256), identity, config.relative_cost() * spec.data.train_ratio)


def _misfits(spec: TrialSpec, info: SeriesInfo, source: StudySource | None) -> list[Problem]:
    """Why a trial's model cannot run on its data."""
    try:
        create_config(spec.model).check(info)
    except ConfigError as error:
        return [problem(f"{Path(spec.data.path).name}: {error}", (), source, section="model", variant=spec.variant)]
    return []


def _unknown_reference(study: StudySpec, source: StudySource | None) -> list[Problem]:
    if study.reference is None or study.reference in study.variants:
        return []
    hint = did_you_mean(study.reference, list(study.variants))
    message = f"there is no variant {study.reference!r} to compare with.{hint} There are: {', '.join(study.variants)}."
    return [problem(message, ("reference",), source)]


def _twins(study: StudySpec, trials: Sequence[PlannedTrial], source: StudySource | None) -> list[Problem]:
    """Variants that are the same trials under two names would fill the table with a row that says nothing."""
    first: dict[tuple[str, ...], str] = {}
    problems = []
    for variant in study.variants:
        ids = tuple(trial.trial_id for trial in trials if trial.spec.variant == variant)
        # A field that one variant searches and another fixes makes them two.
        ids += tuple(path for path in (study.search.space if study.search else ()) if path in flatten_overrides(study.variants[variant]))
        if ids in first:
            message = (
                f"the same trials as '{first[ids]}': nothing that '{variant}' sets changes parameters, output or training. "
                "Remove one of them."
            )
            problems.append(problem(message, ("variants", variant), source))
        first.setdefault(ids, variant)
    return problems


def _dead_axes(study: StudySpec, trials: Sequence[PlannedTrial], source: StudySource | None) -> list[Problem]:
    """Axes that change no variant: every row along one would be the same trial."""
    problems = []
    for path, values in study.axes.items():
        along: dict[str, set[str]] = {}
        for trial in trials:
            others = {p: v for p, v in trial.spec.axis_values.items() if p != path}
            along.setdefault(json.dumps([trial.spec.variant, trial.spec.seed, others]), set()).add(trial.trial_id)
        if len(values) > 1 and all(len(ids) == 1 for ids in along.values()):
            message = "changes nothing in any variant: parameters, output and training stay the same along it. Remove the axis."
            problems.append(problem(message, ("axes", path), source))
    return problems


def _baselines(
    study: StudySpec, specs: Sequence[TrialSpec], facts_of: Callable[[DataSpec], DataFacts], source: StudySource | None
) -> tuple[list[PlannedTrial], list[str]]:
    """The reference forecasts, once a data specification, and notes on those that the data does not allow."""
    wanted = BASELINES if study.baselines is None else study.baselines
    unknown = [name for name in wanted if name not in BASELINES]
    if unknown:
        message = f"there is no baseline {unknown[0]!r}. Allowed: {', '.join(BASELINES)}"
        raise study_error([problem(message, ("baselines",), source)])
    planned: list[PlannedTrial] = []
    notes: list[str] = []
    first: dict[DataSpec, TrialSpec] = {}
    for spec in specs:
        first.setdefault(spec.data, spec)
    for data, spec in first.items():
        for name in wanted:
            axis_values = {path: value for path, value in spec.axis_values.items() if path.startswith("data.")}
            model = {"name": name}
            try:
                create_config(model).check(facts_of(data).info)
            except ConfigError as error:
                notes.append(f"No baseline {error}.")
                continue
            # A variant may bring data of its own; its baselines are rows of their own then, not further seeds of the others.
            shared = any(other.axis_values == spec.axis_values and other is not spec for other in first.values())
            label = f"{name} · {spec.variant}" if shared and spec.variant != next(iter(first.values())).variant else name
            own = TrialSpec(
                study=study.name, variant=label, axis_values=axis_values, seed=0, data=data, model=model, train=spec.train,
                resources=spec.resources, baseline=True,
            )  # fmt: skip
            planned.append(_planned(own, facts_of(data)))
    return planned, notes
