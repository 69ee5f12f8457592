"""No-op variants, whose changes to the model do nothing, are refused: they would fill a row of the table with noise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stlab.catalog import create_config
from stlab.errors import StudyError
from stlab.execution.models import build_model, threads_of
from stlab.study.plan import Plan, PlannedTrial
from stlab.study.spec import TrialSpec
from stlab.training.loss import training_loss
from stlab.training.step import trainable
from stlab.training.trial import dataset_for
from stmodels.base import Forecaster
from stmodels.rng import initialise, named_seed, seeded
from stmodels.types import Batch

_WINDOWS = 4
_MOVE = 0.1  # standard deviation
_ROUNDING = 1e-5  # relative; float32 sums in another order differ by less

Pair = tuple[PlannedTrial, PlannedTrial]


class Effect(NamedTuple):
    """Everything that a change to a model can show in its first optimiser steps."""

    parameters: dict[str, torch.Size]
    forecast: Tensor  # (B, Q, *S)
    gradients: dict[str, Tensor]  # of the training loss: the first optimiser step is made of them
    moved: Tensor  # (B, Q, *S): the forecast after every trained weight has moved, for what starts at zero and acts later


def refuse_noop_variants(plan: Plan) -> None:
    """Refuse two variants of one training whose models have the same parameters, forecast and first optimiser step.

    Models start from the same seed and see the same few train windows. Variants that differ in data or training are left alone, and
    so are those that differ at any point of the study's axes.

    Raises:
        StudyError: names the variants and the fields that do nothing.
    """
    effects: dict[str, Effect] = {}

    def is_same(one: PlannedTrial, other: PlannedTrial) -> bool:
        for trial in (one, other):
            if trial.trial_id not in effects:
                with threads_of(trial.spec.resources):
                    effects[trial.trial_id] = effect_of_trial(trial.spec)
        return one.trial_id == other.trial_id or looks_same(effects[one.trial_id], effects[other.trial_id])

    noops: dict[str, str] = {}
    for pairs in _candidates(plan):
        one, other = pairs[0]
        if not {one.spec.variant, other.spec.variant} & noops.keys() and all(is_same(*pair) for pair in pairs):
            noops[other.spec.variant] = _message(one, other)
    if noops:
        raise StudyError("\n".join(noops.values()))


def _candidates(plan: Plan) -> Iterator[list[Pair]]:
    """For every two variants that differ in their models alone: their trials of the first seed, a pair for each point of the axes.

    A pair is on one data set. A variant may be left out on some of them.
    """
    rows: dict[str, dict[str, PlannedTrial]] = {}
    for trial in plan.trials:
        if not trial.spec.baseline and trial.spec.seed == plan.study.seeds[0]:
            point = json.dumps([trial.spec.dataset_entry, list(trial.spec.axis_values.items())], default=str)
            rows.setdefault(trial.spec.variant, {})[point] = trial
    for one, other in itertools.combinations(rows.values(), 2):
        pairs = [(trial, other[point]) for point, trial in one.items() if point in other]
        if pairs and all(_trained_alike(first.spec, second.spec) for first, second in pairs):
            yield pairs


def _trained_alike(one: TrialSpec, other: TrialSpec) -> bool:
    """Whether nothing differs but what can be seen in a first step: neither what is done before it, nor how the training goes on."""
    mine, others = create_config(one.model), create_config(other.model)
    before = (mine.stages(), mine.prepared_from()) == (others.stages(), others.prepared_from())
    return before and (one.data, one.train, one.model["name"]) == (other.data, other.train, other.model["name"])


def effect_of_trial(spec: TrialSpec) -> Effect:
    """Build a trial's model, draw its weights, and let it forecast a few train windows. A model without weights is fitted first."""
    model = build_model(spec)
    initialise(model, spec.seed)
    config, dataset = create_config(spec.model), dataset_for(spec.data)
    windows = dataset.windows("train", past=config.past(dataset.info))
    if not trainable(model):
        model.fit(windows)
    batch = windows.gather(torch.linspace(0, len(windows) - 1, min(_WINDOWS, len(windows))).long())
    return effect_of(model, batch, config.loss_weights(), spec.seed)


def effect_of(model: Forecaster, batch: Batch, weights: Mapping[str, float], seed: int = 0) -> Effect:
    """Let a model forecast a batch, and take the gradients of its loss, whose terms have these weights."""
    with torch.no_grad():
        forecast = model.eval()(batch).value
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "switches"))  # dropout draws alike
        model.train()
        loss = training_loss(model.loss_terms(model(batch), batch), weights)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    return Effect(
        {name: parameter.shape for name, parameter in model.named_parameters()},
        forecast,
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        _after_a_move(model, batch, seed),
    )


@torch.no_grad()
def _after_a_move(model: Forecaster, batch: Batch, seed: int) -> Tensor:
    """The forecast with other trained weights, which are put back."""
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if name in before:
            with seeded(seed, f"move/{name}"):
                parameter.add_(_MOVE * torch.randn(parameter.shape))
    forecast = model.eval()(batch).value
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.copy_(before[name])
    return forecast


def looks_same(one: Effect, other: Effect) -> bool:
    """Whether two models have the same parameters, forecasts and gradients, up to rounding."""
    if one.parameters != other.parameters or one.gradients.keys() != other.gradients.keys():
        return False
    gradients = [(gradient, other.gradients[name]) for name, gradient in one.gradients.items()]
    return _close([(one.forecast, other.forecast), (one.moved, other.moved)]) and _close(gradients)


def _close(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    apart = math.hypot(*(float((a.double() - b.double()).norm()) for a, b in pairs))
    return apart <= _ROUNDING * math.hypot(*(float(a.double().norm()) for a, _ in pairs))


def _message(one: PlannedTrial, other: PlannedTrial) -> str:
    fields = [name for name, value in other.spec.model.items() if one.spec.model.get(name) != value]
    return (
        f"variants.{other.spec.variant}: changes nothing against '{one.spec.variant}' "
        f"({', '.join(f'model.{name}={other.spec.model[name]}' for name in fields)}): the same parameters, the same forecast and the same "
        "first optimiser step. It would fill a row of the table with noise: remove it."
    )
