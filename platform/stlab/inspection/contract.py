"""What every model has to keep to: one check a clause, run on data, for our own models and for those of others.

A check gets a :class:`Subject` and returns what is wrong, or None. It raises :class:`NotApplicable` where the clause says nothing about
the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stlab.catalog import config_class, config_values, create_config, create_model
from stlab.data import Dataset, Windows
from stlab.errors import ModelError, first_line
from stlab.execution.noop_variants import effect_of, looks_same
from stlab.study.spec import TrainSpec
from stlab.training.batches import BatchPlan
from stlab.training.checkpoint import load_trainable_state, trainable_state
from stlab.training.loss import training_loss
from stlab.training.setup import TrainingSetup
from stlab.training.step import OptimiserStep, make_optimiser, trainable
from stmodels.base import Forecaster
from stmodels.config import ModelConfig
from stmodels.errors import ConfigError
from stmodels.layers.losses import mean_absolute
from stmodels.rng import initialise
from stmodels.types import REFERENCE, Batch, SeriesInfo, ring

_WINDOWS = 6
_ROUNDING = 1e-4  # relative: float32 sums in another order, through a whole network
_LEARNT_STEPS = 150
_LEARNING_RATES = (1e-2, 1e-3)  # one of them should suit


class NotApplicable(Exception):
    """The clause says nothing about this model; the message gives the reason."""


class Subject:
    """A model under examination: its configuration and the data."""

    def __init__(self, values: Mapping[str, Any], dataset: Dataset) -> None:
        """``values`` are fields of the model, ``name`` among them.

        Raises:
            ConfigError, ModelError: there is no such model, or it cannot be built with these fields.
        """
        self.config: ModelConfig = create_config(dict(values))
        self.values = config_values(self.config)
        self.dataset = dataset
        self.windows = dataset.windows("train")
        self.is_trained = bool(trainable(self.model()))

    def model(self, seed: int = 0, info: SeriesInfo | None = None, **changes: Any) -> Forecaster:
        """A new model with the weights of a seed, fitted if it fits anything."""
        model = create_model({**self.values, **changes}, info or self.dataset.info)
        initialise(model, seed)
        if info is None:
            self.fit(model)
        return model

    def fit(self, model: Forecaster) -> None:
        """What is done with the train segment before a training."""
        if self.config.prepared_from() is not None:
            model.adopt(model.prepare(self.windows.readings()))
        model.fit(self.windows)

    def still(self, seed: int = 0, **changes: Any) -> Forecaster:
        """A model in training mode without dropout, so that two passes can be compared."""
        without: dict[str, Any] = {"dropout": 0.0} if "dropout" in self.values else {}
        model = self.model(seed, **{**changes, **without}).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    def batch(self, count: int = _WINDOWS) -> Batch:
        """Windows of the train segment, far from each other."""
        return self.windows.gather(torch.linspace(0, len(self.windows) - 1, min(count, len(self.windows))).long())

    def loss(self, model: Forecaster, batch: Batch) -> Tensor:
        return training_loss(model.loss_terms(model(batch), batch), self.config.loss_weights())

    def step(self, model: Forecaster, parts: int = 1, clip_norm: float = 1.0) -> tuple[OptimiserStep, Tensor]:
        """An optimiser step to be taken on the train windows, and the indices of a batch."""
        train = TrainSpec(batch_size=_WINDOWS, weight_decay=0.0, clip_norm=clip_norm)
        setup = TrainingSetup(
            model, self.dataset, train, 0, torch.device("cpu"), BatchPlan(_WINDOWS, parts=parts), self.config.loss_weights()
        )
        count = min(_WINDOWS, len(self.windows))
        return OptimiserStep(setup, make_optimiser(setup), self.windows), torch.arange(count)

    def only_if_trained(self) -> None:
        if not self.is_trained:
            raise NotApplicable("nothing in it is trained")


@torch.no_grad()
def forecast(model: Forecaster, batch: Batch) -> Tensor:
    return model.eval()(batch).value  # type: ignore[no-any-return]


def shapes(subject: Subject) -> str | None:
    """The forecast is (B, Q, *S), finite, and the loss is finite."""
    batch = subject.batch()
    found, wanted = forecast(subject.model(), batch), batch.target.shape
    if found.shape != wanted:
        return f"the forecast is {tuple(found.shape)}; (B, Q, *S) is {tuple(wanted)}"
    if not found.isfinite().all():
        return "the forecast is not finite"
    if subject.is_trained and not subject.loss(subject.model().train(), batch).isfinite():
        return "the loss is not finite"
    return None


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


def no_future(subject: Subject) -> str | None:
    """Nothing after the history changes the forecast: neither the target nor its mask, nor the series beyond the history."""
    model, batch = subject.model(), subject.batch()
    before = forecast(model, batch)
    other = batch._replace(target=torch.randn_like(batch.target))
    masked = other._replace(target_mask=torch.zeros_like(other.target, dtype=torch.bool))
    for what, changed in (("the target", other), ("the target's mask", masked)):
        if not torch.equal(forecast(model, changed), before):
            return f"the forecast changes with {what}"
    if subject.windows.series is not None:
        last = subject.windows.gather(torch.tensor([len(subject.windows) - 1]))
        model.fit(_Beyond(subject.windows, int(last.start) + subject.dataset.info.history))
        seen = forecast(subject.model(), last)
        if not _is_close(forecast(model, last), seen):
            return "the forecast changes with readings that come after the history"
    return None


class _Beyond:
    """Train windows whose series is another one from some step on."""

    def __init__(self, windows: Windows, first: int) -> None:
        assert windows.series is not None
        self.windows = windows
        self.series: Tensor | None = torch.cat([windows.series[:first], torch.full_like(windows.series[first:], 7.0)])

    def __len__(self) -> int:
        return len(self.windows)

    def gather(self, index: Tensor) -> Batch:
        return self.windows.gather(index)


def windows_apart(subject: Subject) -> str | None:
    """The windows of a batch do not see each other."""
    model, batch = subject.model(), subject.batch()
    changed = {name: value.clone() for name in ("history", "history_inputs") if (value := getattr(batch, name)) is not None}
    for value in changed.values():
        value[1:] = torch.randn_like(value[1:])
    one, other = forecast(model, batch)[:1], forecast(model, batch._replace(**changed))[:1]
    return None if _is_close(one, other) else "the forecast of a window changes with the other windows of its batch"


def masks(subject: Subject) -> str | None:
    """Readings that are missing do not count in the loss."""
    subject.only_if_trained()
    model, batch = subject.still(), subject.batch()
    mask = torch.ones_like(batch.target, dtype=torch.bool)
    mask[:, 0] = False
    target = batch.target.clone()
    target[:, 0] = 9.0
    with torch.no_grad():
        one = subject.loss(model, batch._replace(target_mask=mask))
        other = subject.loss(model, batch._replace(target=target, target_mask=mask))
        whole = subject.loss(model, batch._replace(target=target))
    if not _is_close(one, other):
        return "the loss changes with a target that the mask leaves out"
    return "the loss does not read the target" if _is_close(whole, other) else None


def criterion(subject: Subject) -> str | None:
    """The loss is measured by the model's criterion, which ``train.loss`` chooses."""
    subject.only_if_trained()
    model, batch = subject.still(), subject.batch()
    with torch.no_grad():
        before = subject.loss(model, batch)
        model.criterion = lambda error, mask: 2 * mean_absolute(error, mask) + 1
        after = subject.loss(model, batch)
    return "train.loss changes nothing: its loss does not use self.criterion" if _is_close(before, after) else None


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
    found = []
    for parts in (1, 3):
        model = subject.still()
        step, index = subject.step(model, parts, clip_norm=math.inf)
        step(index, 0.0)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    whole, divided = found
    apart = [name for name in whole if name not in divided or not _is_close(whole[name], divided[name], within=whole.values())]
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
    """Whether a module has the weights of the one of its name in another variant, where both have the same parameters."""
    own, others = (dict(m.named_parameters(recurse=False)) if m is not None else {} for m in (module, other))
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in others.items()}:
        return True
    return all(torch.equal(p, others[name]) for name, p in own.items())


def learning(subject: Subject) -> str | None:
    """One batch is learnt: its loss falls by half."""
    subject.only_if_trained()
    reached = math.inf
    for lr in _LEARNING_RATES:
        model = subject.still()
        step, index = subject.step(model)
        with torch.no_grad():
            first = float(subject.loss(model, subject.windows.gather(index)))
        for _ in range(_LEARNT_STEPS):
            now = float(step(index, lr).logged["loss"])
            reached = min(reached, now / first)
            if reached <= 0.5:
                return None
    return f"after {_LEARNT_STEPS} steps on one batch its loss is still {reached:.2f} of the first"


def components(subject: Subject) -> str | None:
    """Each declared component changes the parameters, the forecast or the gradients."""
    subject.only_if_trained()
    batch, weights = subject.batch(), subject.config.loss_weights()
    with_all = effect_of(subject.model(), batch, weights)
    for component, changes in _without_each(subject):
        config = create_config({**subject.values, **changes})
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


def network(subject: Subject) -> str | None:
    """The network matters to a model if, and only if, it says that it reads one."""
    if subject.dataset.info.family != "sensors":
        raise NotApplicable("a grid has no network")
    subject.only_if_trained()
    batch, weights = subject.batch(), subject.config.loss_weights()
    nodes = subject.dataset.info.shape[0]
    effects = []
    alone = ring(nodes)
    alone[0] = alone[:, 0] = 0
    for matrix in (ring(nodes), alone):
        model = subject.model(0, subject.dataset.info._replace(adjacency=matrix))
        subject.fit(model)
        effects.append(effect_of(model, batch, weights))
    return _as_it_says(subject, "network", "the network", looks_same(*effects))


def inputs(subject: Subject) -> str | None:
    """Further channels matter to a model if, and only if, it says that it reads them."""
    info = subject.dataset.info
    if info.family != "sensors":
        raise NotApplicable("a grid has no further channels: all of them are forecast")
    subject.only_if_trained()
    batch, weights = subject.batch(), subject.config.loss_weights()
    model = subject.model(0, info._replace(inputs=2))
    shape = (*batch.history.shape[:3], 2)
    effects = []
    for level in (0.0, 1.0):
        subject.fit(model)
        effects.append(effect_of(model, batch._replace(history_inputs=torch.full(shape, level)), weights))
    return _as_it_says(subject, "inputs", "further channels", looks_same(*effects))


def _as_it_says(subject: Subject, part: str, words: str, is_same: bool) -> str | None:
    says = part in subject.config.reads()
    if says and is_same:
        return f"it says that it reads {words}, and without that nothing changes"
    return None if says or is_same else f"it reads {words} and does not say so: NEEDS, or reads()"


def odd_sizes(subject: Subject) -> str | None:
    """Data of any size are forecast, or refused with an error that names the field."""
    for info in _odd(subject.dataset.info):
        size = f"{info.family} {info.shape}, {info.history} → {info.horizon} steps"
        try:
            subject.config.check(info)
            model = subject.model(0, info)
        except (ConfigError, ModelError) as error:
            if subject.is_trained and not ("model." in str(error) or "data." in str(error)):
                return f"{size}: the error names no field: {first_line(error)}"
            continue
        except Exception as error:  # noqa: BLE001 - whatever a model of somebody raises is what this looks for
            return f"{size}: {type(error).__name__} instead of a ConfigError: {first_line(error)}"
        if not subject.is_trained:
            continue  # what is not fitted cannot forecast
        batch = random_batch(info, 2)
        try:
            found = forecast(model, batch)
        except Exception as error:  # noqa: BLE001 - as above
            return f"{size}: `check` lets it pass and the forecast fails: {type(error).__name__}: {first_line(error)}"
        if found.shape != batch.target.shape:
            return f"{size}: the forecast is {tuple(found.shape)}"
    return None


def _odd(info: SeriesInfo) -> Iterator[SeriesInfo]:
    shapes = ((2, 7, 5), (1, 4, 9)) if info.family == "grid" else ((1, 1), (7, 1), (5, 2))
    for shape in shapes:
        yield info._replace(shape=shape, adjacency=None if info.adjacency is None else ring(shape[0]))
    for history, horizon in ((5, 7), (1, 1), (7, 2)):
        yield info._replace(history=history, horizon=horizon)
    yield info._replace(slots_per_day=None, season_count=0, residual_std=None)


def random_batch(info: SeriesInfo, count: int, seed: int = 0) -> Batch:
    """Normal values everywhere; slots run on from a random one."""
    rng = torch.Generator().manual_seed(seed)

    def normal(steps: int) -> Tensor:
        return torch.randn(count, steps, *info.shape, generator=rng)

    start = torch.randint(0, 1000, (count,), generator=rng)
    batch = Batch(normal(info.history), normal(info.horizon), start)
    if info.inputs:
        further = torch.randn(count, info.history, info.shape[0], info.inputs, generator=rng)
        batch = batch._replace(history_inputs=further)
    if info.slots_per_day is None:
        return batch
    slot = (start[:, None] + torch.arange(info.history + info.horizon)) % (7 * info.slots_per_day)
    p = info.history
    return batch._replace(
        history_slot=slot[:, :p], target_slot=slot[:, p:], history_season=normal(p), target_season=normal(info.horizon)
    )


def parameters(subject: Subject) -> str | None:
    """With its default fields the model has as many trainable parameters as it declares."""
    declared = subject.config.PARAMETERS
    if declared is None:
        raise NotApplicable("it declares no number")
    model = default_model(subject.values["name"], REFERENCE[subject.dataset.info.family])
    found = sum(p.numel() for p in trainable(model))
    return f"it has {found:,} trainable parameters and declares {declared:,}" if found != declared else None


def default_model(name: str, info: SeriesInfo) -> Forecaster:
    """A model with its default fields and random weights, on the meta device: its parameters can be counted, and nothing is drawn.

    Raises:
        ConfigError: it cannot run on that data.
    """
    random = {"weights": "random"} if "weights" in config_class(name).__dataclass_fields__ else {}
    config = create_config({"name": name, **random})
    config.check(info)
    with torch.device("meta"):
        return create_model(config_values(config), info)


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


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "shapes": shapes,
    "gradients": gradients,
    "no future": no_future,
    "windows apart": windows_apart,
    "masks": masks,
    "criterion": criterion,
    "bfloat16": bfloat16,
    "micro-batches": micro_batches,
    "resumption": resumption,
    "seeds": seeds,
    "learning": learning,
    "components": components,
    "network": network,
    "inputs": inputs,
    "odd sizes": odd_sizes,
    "parameters": parameters,
    "traced": traced,
}
"""The clauses of the contract, in the order in which they are checked."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    clause: str
    meaning: str
    problem: str | None
    """What is wrong; None where nothing is."""
    skipped: str | None = None
    """Why the clause says nothing about the model."""


def examine(subject: Subject) -> Iterator[Finding]:
    """Run every check. An error that a check does not expect is a finding too."""
    for clause, check in CHECKS.items():
        meaning = (check.__doc__ or "").strip().splitlines()[0]
        try:
            problem = check(subject)
        except NotApplicable as reason:
            yield Finding(clause, meaning, None, str(reason))
            continue
        except Exception as error:  # noqa: BLE001 - the model is somebody's, and the table should be whole
            problem = f"{type(error).__name__}: {first_line(error)}"
        yield Finding(clause, meaning, problem)


def _is_close(one: Tensor, other: Tensor, within: Any = ()) -> bool:
    """Whether two tensors are equal up to rounding, beside their own size or that of the largest of ``within``."""
    size = max([one.norm(), other.norm(), *(tensor.norm() * 1e-2 for tensor in within)])
    return bool((one - other).norm() <= _ROUNDING * size)
