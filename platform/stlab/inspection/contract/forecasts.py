"""Clauses on what a model forecasts, and from what."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stlab.data import Windows
from stlab.errors import ModelError, first_line
from stlab.execution.noop_variants import effect_of, looks_same
from stlab.inspection.contract.subject import NotApplicable, Subject, default_model, forecast, is_close, random_batch
from stlab.training.step import trainable
from stmodels.errors import ConfigError
from stmodels.types import REFERENCE, Batch, Readings, SeriesInfo, ring


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
        subject.fit(model, _Beyond(subject.windows, int(last.start) + subject.dataset.info.history))
        seen = forecast(subject.model(), last)
        if not is_close(forecast(model, last), seen):
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

    def readings(self) -> Readings:
        return self.windows.readings()


def windows_apart(subject: Subject) -> str | None:
    """The windows of a batch do not see each other."""
    model, batch = subject.model(), subject.batch()
    changed = {name: value.clone() for name in ("history", "history_inputs", "past") if (value := getattr(batch, name)) is not None}
    for value in changed.values():
        value[1:] = torch.randn_like(value[1:])
    one, other = forecast(model, batch)[:1], forecast(model, batch._replace(**changed))[:1]
    return None if is_close(one, other) else "the forecast of a window changes with the other windows of its batch"


def season(subject: Subject) -> str | None:
    """``target_season``, which leaves the target out, is no input: the forecast is a sum with it, or does not read it."""
    model, batch = subject.model(), subject.batch()
    if batch.target_season is None:
        raise NotApplicable("the data have no mean by slot of the week")
    shift = torch.randn_like(batch.target_season)
    moved = forecast(model, batch._replace(target_season=batch.target_season + shift)) - forecast(model, batch)
    is_fine = is_close(moved, shift) or not bool(moved.any())
    return None if is_fine else "it reads target_season, which knows of the target on train windows: read target_profile"


def information(subject: Subject) -> str | None:
    """The calendar and readings of earlier days matter only to a model whose ``information()`` says so, by which tables group rows."""
    says, batch, slots = subject.config.information(), subject.batch(), subject.dataset.info.slots_per_day
    if says == "period":
        raise NotApplicable("it may read all that is known")
    seasons = ("history_season", "target_season", "target_profile", "past")
    earlier = {name: torch.randn_like(value) for name in seasons if (value := getattr(batch, name)) is not None}
    changes = {"earlier days (past, or the means by slot of the week)": earlier}
    if says == "window" and slots is not None and batch.history_slot is not None and batch.target_slot is not None:
        shift = slots + slots // 3
        changes["the calendar"] = {
            "history_slot": (batch.history_slot + shift) % (7 * slots), "target_slot": (batch.target_slot + shift) % (7 * slots)
        }  # fmt: skip
    weights = subject.config.loss_weights()
    before = effect_of(subject.model(), batch, weights)
    for what, changed in changes.items():
        if not looks_same(before, effect_of(subject.model(), batch._replace(**changed), weights)):
            return f"it reads {what}, and its information() says {says}"
    return None


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
    channels = info.inputs or 2
    effects = []
    for seed in (0, 1):
        model = subject.model(0, info._replace(inputs=channels))
        if info.inputs:
            subject.fit(model)
        drawn = torch.randn(*batch.history.shape[:3], channels, generator=torch.Generator().manual_seed(seed))
        effects.append(effect_of(model, batch._replace(history_inputs=drawn), weights))
    return _as_it_says(subject, "inputs", "further channels", looks_same(*effects))


def _as_it_says(subject: Subject, part: str, words: str, is_same: bool) -> str | None:
    says = part in subject.config.reads()
    if says and is_same:
        return f"it says that it reads {words}, and others make the same forecast"
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
        batch = random_batch(info, 2, past=subject.config.past(info))
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


def parameters(subject: Subject) -> str | None:
    """With its default fields the model has as many trainable parameters as it declares."""
    declared = subject.config.PARAMETERS
    if declared is None:
        raise NotApplicable("it declares no number")
    model = default_model(subject.values["name"], REFERENCE[subject.config.FAMILIES[0]])
    found = sum(p.numel() for p in trainable(model))
    return f"it has {found:,} trainable parameters and declares {declared:,}" if found != declared else None
