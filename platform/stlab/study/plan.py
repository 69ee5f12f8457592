"""From a study to its trials, read from top to bottom.

A study's variants, axes and seeds make trial specifications; each becomes a planned trial, whose id is a hash of everything that changes
its numbers (``packs`` deals them to worker groups). A study with a search has branches, whose trials are planned one by one instead.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stlab.catalog import create_config
from stlab.errors import DataError, StudyError
from stlab.model_files import short
from stlab.study.ablate import with_ablation
from stlab.study.aliases import current
from stlab.study.datasets import on_dataset, parts, refuse_equal_datasets, unusable_datasets
from stlab.study.errors import Problem, problem, study_error
from stlab.study.identity import code_version, document, id_of, library_versions, read_parts
from stlab.study.paper import paper_problems
from stlab.study.plan_checks import (
    bad_overrides,
    duplicate_variants,
    horizons_beyond,
    ineffective_axes,
    misfits,
    models_of_one_name,
    pretraining_misfits,
    unknown_reference,
)
from stlab.study.resolve import resolve
from stlab.study.source import StudySource, flatten_overrides
from stlab.study.spec import DataSpec, StudySpec, TrialSpec
from stmodels.baselines.config import BASELINES
from stmodels.config import READ_BY_SOME, marked
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stmodels.types import SeriesInfo


@dataclass(frozen=True)
class DataFacts:
    """The facts about a data set that the plan needs."""

    name: str
    sha256: str
    synthetic: bool
    leaks: bool
    protocol: dict[str, Any]
    info: SeriesInfo
    parts: Mapping[str, str] = field(default_factory=dict)
    """What only some models read of the data, with the hash of its content."""
    leaking_parts: frozenset[str] = frozenset()
    """Those that tell of later readings."""
    pretrain: Mapping[str, SeriesInfo] = field(default_factory=dict)
    """Path → the facts for the model of each data set of ``data.pretrain``."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial's specification, its id, and the further facts that its directory records."""

    spec: TrialSpec
    trial_id: str
    identity: dict[str, Any] = field(repr=False)
    cost: float = 1.0
    """Rough cost relative to the other trials of the study. It orders the work, and is no estimate of time."""
    note: str = ""
    """Distinguishes the trials of a search in their labels."""

    @property
    def label(self) -> str:
        """The name by which a reader distinguishes it from the other trials of its study."""
        axes = "".join(f", {path.rpartition('.')[2]}={value}" for path, value in self.spec.axis_values.items())
        seed = "" if self.spec.baseline or self.note else f", seed {self.spec.seed}"
        where = self.spec.dataset_entry and f"{self.spec.dataset_entry}: "
        return f"{where}{self.spec.variant}{axes}{seed}{self.note and f' {self.note}'}"


@dataclass(frozen=True)
class SearchBranch:
    """One search: a variant, at one point of the axes, whose searched fields Optuna chooses."""

    template: PlannedTrial
    """The trial before any of its searched fields is chosen."""
    facts: DataFacts
    fixed: dict[str, Any]
    """The fields, by dotted path, that the axes and the variant set: they are not searched in this branch."""
    beside: tuple[SearchBranch, ...] = ()
    """The same on the other data sets, where one configuration is searched for all of them (``search.over``)."""

    @property
    def everywhere(self) -> tuple[SearchBranch, ...]:
        """The branch on each of its data sets."""
        return (self, *self.beside)

    @property
    def label(self) -> str:
        where = f"{self.template.spec.dataset_entry}: " if self.beside else ""
        return self.template.label.removesuffix(f", seed {self.template.spec.seed}").removeprefix(where)

    @property
    def folder(self) -> str:
        """The label as a folder name. Other characters become dashes, and a hash then keeps the names distinct."""
        plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.label).strip("-.")
        return plain if plain == self.label else f"{plain}-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Plan:
    """The trials of a study, in the order of its tables. Two rows may share a trial, which is trained once."""

    study: StudySpec
    trials: tuple[PlannedTrial, ...]
    notes: tuple[str, ...] = ()
    """Notes for the reader: the baselines that the data does not allow, with the reasons."""
    branches: tuple[SearchBranch, ...] = ()
    """The branches of a study with a search, whose ``trials`` are the baselines alone."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The data sets that cannot be used, with the reasons; the study is without them."""

    def unique(self) -> list[PlannedTrial]:
        """Every trial once."""
        return list({trial.trial_id: trial for trial in self.trials}.values())


FactsOf = Callable[[DataSpec], DataFacts]


def make_plan(study: StudySpec, facts: FactsOf, source: StudySource | None = None, *, skip_bad: bool = False) -> Plan:
    """Plan every trial of a study, and check it against its model and its data.

    Args:
        facts: reads a data set; it is called once for each distinct specification.
        source: the text of the study, so that errors name its lines.
        skip_bad: leave out the data sets that cannot be used, of several. The plan's study is without them, and the plan says why.

    Raises:
        StudyError: some trials cannot exist; the message lists every problem.
        DataError: the data cannot be used; of several data sets, the message names those that cannot and those that can.
    """
    facts_of: FactsOf = functools.cache(facts)
    study = with_ablation(study, source)
    if problems := paper_problems(study, source) + unknown_reference(study, source) + models_of_one_name(study, source):
        raise study_error(problems)
    if study.search is not None and study.search.over is not None and not study.datasets:
        message = "this study names no data sets. Name them (datasets, or --datasets), or leave this out."
        raise study_error([problem(message, ("search", "over"), source)])
    if study.datasets:
        return _on_all_datasets(study, facts_of, source, skip_bad)
    return _on_one_dataset(study, facts_of, source)


def _on_all_datasets(study: StudySpec, facts: FactsOf, source: StudySource | None, skip_bad: bool) -> Plan:
    """The plans on each data set, one after the other."""
    wrong: list[str] = []
    unusable: dict[str, str] = {}
    plans: dict[str, Plan] = {}
    for name in study.datasets:
        part, problems = on_dataset(study, name, source)
        if part is None:
            wrong += str(study_error(problems)).splitlines()
            continue
        try:
            plans[name] = _on_one_dataset(part, facts, source and source.on(name), name)
        except DataError as error:
            unusable[name] = str(error)
        except StudyError as error:
            wrong += str(error).splitlines()
    if wrong:
        raise StudyError("\n".join(dict.fromkeys(wrong)))
    if unusable and not (skip_bad and plans):
        raise unusable_datasets(unusable, list(plans))
    refuse_equal_datasets({name: [*plan.trials, *(branch.template for branch in plan.branches)] for name, plan in plans.items()})
    return Plan(
        study.model_copy(update={"datasets": {name: study.datasets[name] for name in plans}}),
        tuple(trial for plan in plans.values() for trial in plan.trials),
        tuple(_notes_of_all({name: plan.notes for name, plan in plans.items()})),
        tuple(_branches_over_datasets(study, [branch for plan in plans.values() for branch in plan.branches])),
        unusable,
    )


def _branches_over_datasets(study: StudySpec, branches: Sequence[SearchBranch]) -> Iterator[SearchBranch]:
    """The branches of all data sets: one for each of them, or with ``search.over`` one for all."""
    if study.search is None or study.search.over is None:
        yield from branches
        return
    groups: dict[str, list[SearchBranch]] = {}
    for branch in branches:
        groups.setdefault(branch.label.removeprefix(f"{branch.template.spec.dataset_entry}: "), []).append(branch)
    for first, *others in groups.values():
        if any(other.template.spec.resources != first.template.spec.resources for other in others):
            message = "the same worker groups train a point on all data sets, so their resources are the same. Set them in the base."
            raise StudyError(f"search.over: {message}")
        yield replace(first, beside=tuple(others))


def _notes_of_all(notes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Every note once, behind the names of its data sets unless it concerns all of them."""
    names: dict[str, list[str]] = {}
    for name, said in notes.items():
        for note in said:
            names.setdefault(note, []).append(name)
    for note, where in names.items():
        yield note if len(where) == len(notes) else f"{', '.join(where)}: {note}"


def _on_one_dataset(study: StudySpec, facts_of: FactsOf, source: StudySource | None, dataset: str = "") -> Plan:
    """The plan of a study on one data set; ``dataset`` is its name where there are several."""
    specs, problems = _trial_specs(study, source, dataset)
    problems += horizons_beyond(study, specs, source)
    if problems:
        raise study_error(problems)

    trials = [_planned(spec, facts_of(spec.data)) for spec in specs]
    first_seed = [spec for spec in specs if spec.seed == study.seeds[0]]
    problems = [found for spec in first_seed for found in _misfits(spec, facts_of(spec.data), source)]
    problems += duplicate_variants(study, trials, source) + ineffective_axes(study, trials, source)
    if problems:
        raise study_error(problems)

    baselines, notes = _baselines(study, specs, facts_of, source)
    notes += [f"{path} is {current(path)} now. The old name goes on working." for path in (source.former_paths if source else ())]
    notes += _not_read(first_seed)
    if study.search is not None:
        return Plan(study, tuple(baselines), tuple(notes), tuple(_branches(study, trials, facts_of)))
    return Plan(study, (*baselines, *trials), tuple(notes))


def _trial_specs(study: StudySpec, source: StudySource | None, dataset: str) -> tuple[list[TrialSpec], list[Problem]]:
    """Variants × axes × seeds as resolved specifications, in the order of the tables, and what is wrong with the others."""
    specs: list[TrialSpec] = []
    problems: list[Problem] = []
    for variant, nested in study.variants.items():
        overrides = flatten_overrides(nested)
        if bad := bad_overrides(study, variant, overrides, source):
            problems += bad
            continue
        for point in _points(study.axes):
            sections, found = resolve(study, {**point, **overrides}, variant, source)
            problems += found
            if not found:
                specs += [
                    TrialSpec(study=study.name, dataset_entry=dataset, variant=variant, axis_values=point, seed=seed, **sections)
                    for seed in study.seeds
                ]
    return specs, problems


def _misfits(spec: TrialSpec, facts: DataFacts, source: StudySource | None) -> list[Problem]:
    return misfits(spec, facts.info, source) or pretraining_misfits(spec, facts.info, facts.pretrain, source)


def _not_read(specs: Sequence[TrialSpec]) -> list[str]:
    """Notes on the models that ignore the further channels of their data, and on data sets of a pre-training that nobody reads."""
    models = {short(spec.model["name"]): create_config(spec.model) for spec in specs if set(spec.data.inputs) - {spec.data.channel}}
    ignoring = [name for name, config in models.items() if "inputs" not in config.reads()]
    notes = [f"data.inputs: {', '.join(ignoring)} cannot read further channels and forecasts without them."] if ignoring else []
    named = [spec for spec in specs if spec.data.pretrain]
    if named and not any("pretrain" in create_config(spec.model).reads() for spec in named):
        notes.append("data.pretrain: no model of this study is pre-trained, so that nobody reads these data sets.")
    return notes


def _points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values, by dotted path; a single empty one where there are no axes."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _planned(spec: TrialSpec, facts: DataFacts) -> PlannedTrial:
    # `auto` is resolved first, so that a trial that says `auto` and one that says the value have the same id.
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"null": facts.protocol.get("mask", spec.data.null)})})
    config = create_config(spec.model)
    made = document(spec, config, facts.sha256, facts.parts)
    identity = {
        "dataset": spec.dataset_entry or facts.name,
        "synthetic": facts.synthetic,
        "leaks": facts.leaks or bool(facts.leaking_parts.intersection(config.reads())),
        "protocol": json.dumps(facts.protocol, sort_keys=True),
        "data_sha256": facts.sha256,
        **{f"{part}_sha256": sha256 for part, sha256 in read_parts(config, facts.parts).items()},
        "code_version": code_version(),
        "code": made["code"],
        "weights": "shuffled " * bool(spec.model.get("weights_shuffled")) + spec.model.get("weights", "none"),
        "information": config.information(),
        "libraries": library_versions(),
    }
    # On several data sets a trial takes as long as there are readings to learn from; on one they are the same for all.
    readings = float(max(1, facts.info.train_steps) * facts.info.series) if spec.dataset_entry else 1.0
    return PlannedTrial(spec, id_of(made), identity, config.relative_cost() * spec.data.train_ratio * readings)


_PLAIN = {name: DataSpec.model_fields[name].default for name in sorted(marked(DataSpec, READ_BY_SOME))}


def _baselines(
    study: StudySpec, specs: Sequence[TrialSpec], facts_of: FactsOf, source: StudySource | None
) -> tuple[list[PlannedTrial], list[str]]:
    """The reference forecasts, once for each data specification, and notes on those that the data does not allow."""
    wanted = BASELINES if study.baselines is None else study.baselines
    if unknown := [name for name in wanted if name not in BASELINES]:
        message = f"there is no baseline {unknown[0]!r}. Allowed: {', '.join(BASELINES)}"
        raise study_error([problem(message, ("baselines",), source)])
    first: dict[DataSpec, TrialSpec] = {}
    for spec in specs:
        first.setdefault(spec.data.model_copy(update=_PLAIN), spec)  # no reference forecast reads any of it
    planned: list[PlannedTrial] = []
    notes: list[str] = []
    for spec, name in itertools.product(first.values(), wanted):
        facts = facts_of(spec.data)
        try:
            create_config({"name": name}).check(facts.info)
        except ConfigError as error:
            notes.append(f"No baseline {error}.")
            continue
        label = _baseline_label(name, spec, list(first.values()))
        planned.append(_planned(_baseline_spec(spec, name, label), facts))
    return planned, notes


def _baseline_label(name: str, spec: TrialSpec, all_first: Sequence[TrialSpec]) -> str:
    """A baseline's name, with the variant where a variant brings data of its own: its baselines are rows of their own then."""
    shared = any(other.axis_values == spec.axis_values and other is not spec for other in all_first)
    return f"{name} · {spec.variant}" if shared and spec.variant != all_first[0].variant else name


def _baseline_spec(spec: TrialSpec, name: str, label: str) -> TrialSpec:
    data_axes = {path: value for path, value in spec.axis_values.items() if path.startswith("data.")}
    own = {"variant": label, "axis_values": data_axes, "seed": 0, "model": {"name": name}, "baseline": True}
    return spec.model_copy(update=own)


def _branches(study: StudySpec, trials: Sequence[PlannedTrial], facts_of: FactsOf) -> Iterator[SearchBranch]:
    """A branch for each variant at each point of the axes."""
    for trial in trials:
        if trial.spec.seed == study.seeds[0]:
            fixed = {**trial.spec.axis_values, **flatten_overrides(study.variants[trial.spec.variant])}
            yield SearchBranch(trial, facts_of(trial.spec.data), fixed)


def plan_point(study: StudySpec, branch: SearchBranch, point: Mapping[str, Any], seed: int | None = None, note: str = "") -> PlannedTrial:
    """Plan the trial at one point of a branch's search space.

    Args:
        point: dotted path → value.
        seed: the trial's seed; by default the study's first.
        note: is appended to the trial's label.

    Raises:
        StudyError: no such trial can exist; the message gives the reason.
    """
    template = branch.template.spec
    if template.dataset_entry and template.dataset_entry in study.datasets:
        study = parts(study, template.dataset_entry)[template.dataset_entry]
    sections, problems = resolve(study, {**point, **branch.fixed}, template.variant)
    if problems:
        raise study_error(problems)
    spec = template.model_copy(update={**sections, "seed": template.seed if seed is None else seed})
    if problems := _misfits(spec, branch.facts, None):
        raise study_error(problems)
    return replace(_planned(spec, branch.facts), note=note)
