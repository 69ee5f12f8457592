"""Clauses on how a model learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stlab.catalog import create_config
from stlab.errors import first_line
from stlab.execution.noop_variants import effect_of, looks_same
from stlab.inspection.contract.subject import NotApplicable, Subject, is_close, random_batch
from stlab.training.checkpoint import load_trainable_state, trainable_state
from stlab.training.step import OptimiserStep
from stmodels.errors import ConfigError
from stmodels.layers.losses import mean_absolute

_LEARNT_STEPS = 150
_LEARNING_RATES = (1e-2, 1e-3)  # one of them should suit


def gradients(subject: Subject) -> str | None:
    """Every parameter that a stage trains gets a gradient from its loss."""
    subject.only_if_trained()
    model = subject.model().train()
    for stage in (*(stage.name for stage in subject.config.stages()), ""):
        model.zero_grad(set_to_none=True)
        model.begin(stage)
        subject.loss(model, subject.batch()).backward()  # type: ignore[no-untyped-call]
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if without:
            return f"no gradient reaches {', '.join(without[:5])}" + (f" in the stage {stage}" if stage else "")
    return None


def masks(subject: Subject) -> str | None:
    """Readings that are missing do not count in the loss."""
    subject.only_if_trained()
    model, batch = subject.still(), subject.batch()
    mask = torch.ones_like(batch.target, dtype=torch.bool)
    mask[:, 0] = False
    target = batch.target.clone()
    target[:, 0] = 9.0
    one = subject.comparable_loss(model, batch._replace(target_mask=mask))
    other = subject.comparable_loss(model, batch._replace(target=target, target_mask=mask))
    whole = subject.comparable_loss(model, batch._replace(target=target))
    if not is_close(one, other):
        return "the loss changes with a target that the mask leaves out"
    return "the loss does not read the target" if is_close(whole, other) else None


def criterion(subject: Subject) -> str | None:
    """The loss is measured by the model's criterion, which ``train.loss`` chooses."""
    subject.only_if_trained()
    model, batch = subject.still(), subject.batch()
    before = subject.comparable_loss(model, batch)
    model.criterion = lambda error, mask: 2 * mean_absolute(error, mask) + 1
    after = subject.comparable_loss(model, batch)
    return "train.loss changes nothing: its loss does not use self.criterion" if is_close(before, after) else None


def pretraining(subject: Subject) -> str | None:
    """A stage that reads ``data.pretrain`` takes batches of another grid, or of other sensors, than those of the forecasts."""
    stages = [stage.name for stage in subject.config.stages() if stage.reads_pretrain]
    if not stages:
        raise NotApplicable("it is not pre-trained on other data sets")
    info = subject.dataset.info
    first, *rest = info.shape
    other = info._replace(shape=(first, *(size + 2 for size in rest)) if info.family == "grid" else (first + 3, *rest), adjacency=None)
    try:
        subject.config.check_pretraining(info, other)
    except ConfigError as error:
        raise NotApplicable(f"it refuses them: {first_line(error)}") from error
    model = subject.model().train()
    for stage in stages:
        model.begin(stage)
        try:
            subject.loss(model, random_batch(other, 2)).backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whatever a model of somebody raises is what this looks for
            return f"the stage {stage} fails on {other.family} {other.shape}: {type(error).__name__}: {first_line(error)}"
    return None


def bfloat16(subject: Subject) -> str | None:
    """A step in bfloat16 gives finite gradients."""
    subject.only_if_trained()
    model = subject.model().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = subject.loss(model, subject.batch())
    loss.backward()  # type: ignore[no-untyped-call]
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return f"the gradient of {bad[0]} is not finite" if bad else None


def micro_batches(subject: Subject) -> str | None:
    """The gradients of a batch in parts are those of the whole batch."""
    subject.only_if_trained()
    if subject.config.WHOLE_BATCHES:
        raise NotApplicable(subject.config.WHOLE_BATCHES)
    found = []
    for parts in (1, 3):
        model = subject.still()
        step, index = subject.step(model, parts, clip_norm=math.inf)
        step(index, 0.0)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    whole, divided = found
    apart = [name for name in whole if name not in divided or not is_close(whole[name], divided[name], within=whole.values())]
    return f"the gradient of {apart[0]} is another in three parts" if apart else None


def resumption(subject: Subject) -> str | None:
    """Its weights and buffers are all it needs to go on exactly."""
    subject.only_if_trained()
    straight = subject.model().train()
    step, index = subject.step(straight)
    _take(step, index, range(4))
    first = subject.model().train()
    before, index = subject.step(first)
    _take(before, index, range(2))
    resumed = subject.model(seed=1).train()
    after, index = subject.step(resumed)
    load_trainable_state(resumed, trainable_state(first))
    after.optimiser.load_state_dict(before.optimiser.state_dict())
    _take(after, index, range(2, 4))
    one, other = trainable_state(straight), trainable_state(resumed)
    apart = [name for name in one if not torch.equal(one[name], other[name])]
    return f"{apart[0]} is another after it was saved and loaded" if apart else None


def _take(step: OptimiserStep, index: Tensor, numbers: range) -> None:
    for number in numbers:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            step(index, 1e-3)


def seeds(subject: Subject) -> str | None:
    """One seed gives the same weights every time, another seed gives others, and variants draw shared modules alike."""
    subject.only_if_trained()
    one, again, other = (trainable_state(subject.model(seed)) for seed in (0, 0, 1))
    if any(not torch.equal(one[name], again[name]) for name in one):
        return "the same seed gives other weights: draw them in `reset_parameters`"
    if all(torch.equal(one[name], other[name]) for name in one):
        return "the seed changes no weight: draw them in `reset_parameters`"
    modules = dict(subject.model(0).named_modules())
    for component, changes in _without_each(subject):
        others = dict(subject.model(0, **changes).named_modules())
        for name, module in modules.items():
            if not _starts_alike(module, others.get(name)):
                return f"the module {name} starts from other weights without {component}"
    return None


def _starts_alike(module: nn.Module, other: nn.Module | None) -> bool:
    """Whether a module has the weights of the one of its name in another variant, where both have the same parameters.

    One that a variant starts at zero is not drawn there.
    """
    own, others = (dict(m.named_parameters(recurse=False)) if m is not None else {} for m in (module, other))
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in others.items()}:
        return True
    is_drawn = all(any(bool(p.any()) for p in one.values()) for one in (own, others))
    return not is_drawn or all(torch.equal(p, others[name]) for name, p in own.items())


def learning(subject: Subject) -> str | None:
    """One batch is learnt: its loss falls by half. Of several terms that of the forecast counts, since others may be below zero."""
    subject.only_if_trained()
    reached = math.inf
    for lr in _LEARNING_RATES:
        model, first = subject.still(), math.nan
        step, index = subject.step(model)
        for number in range(_LEARNT_STEPS):
            logged = step(index, lr).logged
            now = float(logged.get("loss.forecast", logged["loss"]))
            first = now if number == 0 else first
            reached = min(reached, now / first)
            if reached <= 0.5:
                return None
    return f"after {_LEARNT_STEPS} steps on one batch its loss is still {reached:.2f} of the first"


def components(subject: Subject) -> str | None:
    """Each declared component changes the parameters, the forecast, the gradients or the stages of the training."""
    subject.only_if_trained()
    batch, weights = subject.batch(), subject.config.loss_weights()
    with_all = effect_of(subject.model(), batch, weights)
    for component, changes in _without_each(subject):
        config = create_config({**subject.values, **changes})
        if config.stages() != subject.config.stages():
            continue
        if looks_same(with_all, effect_of(subject.model(0, **changes), batch, config.loss_weights())):
            return f"without {component} nothing changes"
    return None


def _without_each(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each component that is on and can be left out by itself, with the model's fields that switch it off."""
    for component, off in subject.config.components().items():
        changes = {path.removeprefix("model."): value for path, value in off.items() if path.startswith("model.")}
        if all(subject.values[field] == value for field, value in changes.items()) or off.keys() <= subject.config.inert():
            continue
        try:
            create_config({**subject.values, **changes}).check(subject.dataset.info)
        except ConfigError:
            continue
        yield component, changes


def traced(subject: Subject) -> str | None:
    """Forward pass and loss are traced whole, so that ``train.compile`` meets no break."""
    if subject.config.UNTRACED:
        raise NotApplicable(subject.config.UNTRACED)
    subject.only_if_trained()
    model, batch = subject.still(), subject.batch(2)

    def loss() -> Tensor:
        return subject.loss(model, batch)

    try:
        torch._dynamo.reset()
        torch.compile(loss, fullgraph=True, backend="eager")()
    except Exception as error:  # noqa: BLE001 - the tracer raises many kinds
        return f"it is not traced: {first_line(error)}"
    return None
