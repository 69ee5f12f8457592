"""Facts about a trial's data that its own files show, and their differences from the facts that a paper prints."""

from __future__ import annotations

import datetime
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stlab.papers import DatasetFacts
from stlab.report.statistics.summary import Row
from stlab.storage import Store

if TYPE_CHECKING:
    from stlab.data import Dataset

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class SeenData:
    """Facts about the data that the test forecasts show; a fact that they do not show is None."""

    shape: tuple[int, ...]
    """(H, W) of a grid, (N,) of sensors."""
    steps: int | None = None
    """Length of the series. If only every n-th window was kept, it may be up to n - 1 steps too short."""
    slack: int = 0
    """That n - 1."""
    step_minutes: float | None = None
    first: datetime.datetime | None = None
    last: datetime.datetime | None = None


def seen_data(store: Store, row: Row) -> SeenData | None:
    """The facts from the kept forecasts of a tested trial; None if none were kept."""
    try:
        table = store.read_table(f"trials/{row['trial_id']}/predictions.parquet", ["window", "horizon", "time"])
    except FileNotFoundError:
        return None
    protocol = json.loads(row.get("protocol") or "{}")
    metadata = {key.decode(): json.loads(value) for key, value in (table.schema.metadata or {}).items() if not key.startswith(b"ARROW")}
    shape = tuple(metadata["shape"])
    shape = shape[-2:] if protocol.get("family") == "grid" else shape[:1]
    if isinstance(protocol.get("split"), str) or not table.num_rows:
        return SeenData(shape)  # the numbers of ready-made windows are not steps of a series
    steps = max(table["window"].to_pylist()) + int(protocol["history"]) + int(protocol["horizon"])
    slack = int(metadata.get("every_nth_window", 1)) - 1
    times = sorted({time for time in table["time"].to_pylist() if time is not None})
    if len(times) < 2:
        return SeenData(shape, steps, slack)
    step = min(later - earlier for earlier, later in itertools.pairwise(times))
    return SeenData(shape, steps, slack, step.total_seconds() / 60, times[-1] - (steps - 1) * step, times[-1])


def planned_data(dataset: Dataset) -> SeenData:
    """The facts from the data set itself, before anything has been trained on it."""
    shape = dataset.info.shape[-2:] if dataset.info.family == "grid" else dataset.info.shape[:1]
    test = dataset.windows("test")
    if test.series is None:  # the numbers of ready-made windows are not steps of a series
        return SeenData(shape)
    steps, times = len(test.series), test.times(torch.arange(len(test)))
    if times is None:
        return SeenData(shape, steps)
    last = times.max().astype(datetime.datetime)
    step = (times[0, 1] - times[0, 0]).astype(datetime.timedelta) if times.shape[1] > 1 else None
    if step is None:
        return SeenData(shape, steps, last=last)
    return SeenData(shape, steps, 0, step.total_seconds() / 60, last - (steps - 1) * step, last)


def differences(facts: DatasetFacts, seen: SeenData) -> tuple[list[str], list[str]]:
    """The differences from the printed facts, and the printed facts that are unknown for our data. Dates may differ by a day."""
    found, unknown = [], []
    if facts.shape is not None and seen.shape != facts.shape:
        kind = "grid" if len(facts.shape) > 1 else "sensors"
        found.append(f"{kind} {_shape(seen.shape)}, the paper's {_shape(facts.shape)}")
    if facts.step_minutes is not None:
        if seen.step_minutes is None:
            unknown.append("step")
        elif seen.step_minutes != facts.step_minutes:
            found.append(f"step {seen.step_minutes:g} min, the paper's {facts.step_minutes:g} min")
    if facts.steps is not None:
        if seen.steps is None:
            unknown.append("length")
        elif not 0 <= facts.steps - seen.steps <= seen.slack:
            found.append(f"{seen.steps} steps, the paper's {facts.steps}")
    slack = _DAY + datetime.timedelta(minutes=seen.slack * (seen.step_minutes or 0))
    for name, theirs, ours in (("first", facts.first, seen.first), ("last", facts.last, seen.last)):
        if theirs is None:
            continue
        if ours is None:
            unknown.append(f"{name} day")
        elif abs(ours.date() - theirs) > slack:
            found.append(f"{'from' if name == 'first' else 'to'} {ours:%Y-%m-%d}, the paper's {theirs:%Y-%m-%d}")
    return found, unknown


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
