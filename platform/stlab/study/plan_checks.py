"""Checks of a study's planned trials: each returns the problems that it finds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlab.catalog import create_config
from stlab.model_files import short
from stlab.study.errors import Problem, problem
from stlab.study.model_places import models_of
from stlab.study.source import SECTIONS, StudySource, did_you_mean, flatten_overrides
from stlab.study.spec import StudySpec, TrainSpec, TrialSpec
from stmodels.config import Stage
from stmodels.errors import ConfigError

if TYPE_CHECKING:
    from stlab.study.plan import PlannedTrial
    from stmodels.types import SeriesInfo


_CHANGED_BY_STAGES = {
    "batch_size", "clip_norm", "huber_delta", "loss", "lr", "milestone_factor", "milestones", "min_lr", "schedule", "warmup_epochs",
    "weight_decay",
}  # fmt: skip
"""The fields of ``train`` that a stage of a model may change."""


def bad_overrides(
    study: StudySpec, variant: str, overrides: Mapping[str, Any], source: StudySource | None
) -> list[Problem]:
    """A variant that sets an axis' field, or a path that starts with no section."""
    if both := sorted(study.axes.keys() & overrides.keys()):
        message = f"'{variant}' sets {both[0]}, which is an axis: one trial under several labels. Set it in one place."
    elif strays := [path for path in (*study.axes, *overrides) if path.partition(".")[0] not in SECTIONS]:
        message = f"`{strays[0]}`: a path starts with one of {', '.join(f'{name}.' for name in SECTIONS)}"
    else:
        return []
    return [problem(message, ("variants", variant), source)]


def unknown_reference(study: StudySpec, source: StudySource | None) -> list[Problem]:
    """A reference that is no variant of the study."""
    if study.reference is None or study.reference in study.variants:
        return []
    hint = did_you_mean(study.reference, list(study.variants))
    message = f"there is no variant {study.reference!r} to compare with.{hint} The variants are {', '.join(study.variants)}."
    return [problem(message, ("reference",), source)]


def horizons_beyond(study: StudySpec, specs: Sequence[TrialSpec], source: StudySource | None) -> list[Problem]:
    """Steps of ``report.horizons`` that no trial forecasts. On several data sets a table has a dash where a step is beyond its horizon."""
    if specs and specs[0].dataset_entry:
        return []
    longest = max((spec.data.horizon for spec in specs), default=0)
    if beyond := [step for step in study.report.horizons if step > longest]:
        message = f"step {beyond[0]} is beyond the horizon of {longest} steps. Leave it out, or raise data.horizon."
        return [problem(message, ("report", "horizons"), source)]
    return []


def models_of_one_name(study: StudySpec, source: StudySource | None) -> list[Problem]:
    """Two files of models that have the same name: a table could not tell them apart."""
    first: dict[str, str] = {}
    for name in models_of(study.model_dump()):
        if (other := first.setdefault(short(name), name)) != name:
            message = f"{other} and {name} have one name in tables, {short(name)}. Rename one of the files."
            return [problem(message, ("variants",), source)]
    return []


def misfits(spec: TrialSpec, info: SeriesInfo, source: StudySource | None) -> list[Problem]:
    """The reason why a trial's model cannot run on its data."""
    try:
        config = create_config(spec.model)
        config.check(info)
        if (past := config.past(info)) and past + info.history > info.lookback:
            raise ConfigError(
                f"the model {short(spec.model['name'])} reads {past} steps before the history of {info.history}, and the series begins "
                f"{info.lookback} steps before its first validation target: give more data, or let the model look less far back"
            )
        if past and config.PARAMETERS != 0 and info.train_steps and past + info.history + info.horizon > info.train_steps:
            raise ConfigError(
                f"the model {short(spec.model['name'])} reads {past} steps before each window, and the train segment of {info.train_steps} "
                "steps has no window after so many: give more data, or let the model look less far back"
            )
        if "network" in config.needs() and info.adjacency is None:
            raise ConfigError(_without_network(short(spec.model["name"]), info))
        if "inputs" in config.needs() and not info.inputs:
            raise ConfigError(
                f"the model {short(spec.model['name'])} needs further channels of sensors, and the data give none. Name them: data.inputs"
            )
        if config.WHOLE_BATCHES and spec.resources.workers > 1:
            raise ConfigError(
                f"resources.workers={spec.resources.workers} would share out the batches of {short(spec.model['name'])}, which needs them "
                f"whole: {config.WHOLE_BATCHES}. Set resources.workers to 1 for it"
            )
        for wrong in _bad_stages(config.stages(), spec.train):
            raise ConfigError(wrong)
        stretch = spec.train.curriculum_epochs or 0.0
        if stretch * (info.horizon - 1) >= spec.train.max_epochs:
            raise ConfigError(
                f"with train.curriculum_epochs={stretch:g} the loss never covers all {info.horizon} steps of the horizon in "
                f"train.max_epochs={spec.train.max_epochs}. Lower the one or raise the other"
            )
    except ConfigError as error:
        return [problem(f"{Path(spec.data.path).name}: {error}", (), source, section="model", variant=spec.variant)]
    return []


def pretraining_misfits(
    spec: TrialSpec, info: SeriesInfo, others: Mapping[str, SeriesInfo], source: StudySource | None
) -> list[Problem]:
    """The reasons why a trial's model cannot be pre-trained on the data sets of ``data.pretrain``; ``others``: path → its facts."""
    config = create_config(spec.model)
    found = []
    for path, other in others.items() if "pretrain" in config.reads() else ():
        try:
            config.check_pretraining(info, other)
        except ConfigError as error:
            message = f"data.pretrain, {Path(path).name}: {error}"
            found.append(problem(message, (), source, section="model", variant=spec.variant))
    return found


def _bad_stages(stages: Sequence[Stage], train: TrainSpec) -> Iterator[str]:
    """What is wrong with the stages that a model declares, a sentence each."""
    seen: set[str] = set()
    for stage in stages:
        if not re.fullmatch(r"[A-Za-z]\w*", stage.name) or stage.name in seen:
            yield f"the stage {stage.name!r} needs a name of its own, of letters and digits, that begins with a letter"
        seen.add(stage.name)
        if stage.epochs < 1:
            yield f"the stage {stage.name} has {stage.epochs} epochs; it needs at least one"
        if unknown := sorted(stage.train.keys() - _CHANGED_BY_STAGES):
            yield f"the stage {stage.name} changes train.{unknown[0]}; it may change {', '.join(sorted(_CHANGED_BY_STAGES))}"
        elif stage.train.get("schedule") == "plateau":
            yield f"the stage {stage.name} has schedule: plateau, and no validation that could stop improving"
        else:
            try:
                type(train)(**{**train.model_dump(), "schedule": "cosine", **stage.train})
            except ValueError as error:
                yield f"the stage {stage.name}: {' '.join(str(error).split())}"


def _without_network(model: str, info: SeriesInfo) -> str:
    if info.family == "grid":
        return f"the model {model} needs a network, and a grid has none. Set data.family: sensors, which makes its cells the nodes"
    return (
        f"the model {model} needs a network, and the data have none. Set data.distances to a file of edges and data.graph to auto, "
        "connection or gaussian; or data.graph to grid4 (cells of a grid) or correlation"
    )


def duplicate_variants(study: StudySpec, trials: Sequence[PlannedTrial], source: StudySource | None) -> list[Problem]:
    """Variants that make the same trials under two names: the second row of the table would say nothing new."""
    first: dict[tuple[str, ...], str] = {}
    problems = []
    for variant in study.variants:
        ids = tuple(trial.trial_id for trial in trials if trial.spec.variant == variant)
        # Two variants also differ where one searches a field that the other fixes.
        own = flatten_overrides(study.variants[variant])
        ids += tuple(path for path in (study.search.space if study.search else ()) if path in own)
        if ids in first:
            entry = next((trial.spec.dataset_entry for trial in trials), "")
            where, remedy = (f" on {entry}", f", or leave one out there: `without: [{variant}]`") if entry else ("", "")
            message = (
                f"the same trials as '{first[ids]}': nothing that '{variant}' sets changes parameters, output or training{where}. "
                f"Remove one of them{remedy}."
            )
            problems.append(problem(message, ("variants", variant), source))
        first.setdefault(ids, variant)
    return problems


def ineffective_axes(study: StudySpec, trials: Sequence[PlannedTrial], source: StudySource | None) -> list[Problem]:
    """Axes that change no variant: all values of such an axis make the same trial."""
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
