"""Summarise the content of a data file and its split, before anything trains. Most problems are listed instead of raised."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stlab.data.formats.checks import missing_message
from stlab.data.formats.content import (
    CHANNEL_AXIS,
    DAY_SECONDS,
    FAMILY_AXES,
    SEGMENTS,
    ReadyWindows,
    Series,
    channel_names,
    channels_of,
    content_hash,
    numbered_channels,
    windows_hash,
)
from stlab.data.formats.readers import read_content
from stlab.data.from_windows import unfit_message
from stlab.data.inputs import further_channels
from stlab.data.protocol.season import season_count, slot_of_week
from stlab.data.protocol.split import segments_of, too_short_message, used_steps, window_count
from stlab.errors import DataError
from stlab.inspection.findings import findings
from stlab.report.figures.coverage import Coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec

_MOST_NAMED = 10


@dataclass(frozen=True)
class ChannelSummary:
    """One channel over all steps and places, without missing values. The figures are None if all values are missing."""

    name: str
    low: float | None
    mean: float | None
    high: float | None
    zero_percent: float | None


@dataclass(frozen=True)
class SensorSummary:
    """A sensor network, for the channel that is forecast. Values that are not finite or equal ``data.null`` are no readings."""

    nodes: int
    named: bool
    """Whether the file or ``data.node_ids`` gives the ids of the nodes."""
    channel: str
    channel_index: int
    null: float | None
    without_reading_percent: float
    dead: list[str]
    """Nodes without a reading in the train segment, by id or by index from 0."""
    edges: int | None
    """The number of edges in ``data.distances``."""


@dataclass(frozen=True)
class SegmentSummary:
    """One segment: the numbers of its steps and windows, and the times of its first and last step."""

    name: str
    steps: int | None  # None for ready-made windows
    windows: int
    start: str | None
    end: str | None


@dataclass(frozen=True)
class DataSummary:
    """The summary that ``stlab data inspect`` prints."""

    path: str
    name: str
    synthetic: bool
    family: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    sha256: str
    start: str | None
    end: str | None
    step_seconds: int | None
    slots_per_day: int | None
    missing: int
    channels: list[ChannelSummary]
    segments: list[SegmentSummary]
    season_count: int
    """The number of train steps at the rarest slot of the week. 0: no mean by slot of the week is possible."""
    sensors: SensorSummary | None = None
    problems: list[str] = field(default_factory=list)
    """The problems that would stop a study on this data."""
    findings: list[str] = field(default_factory=list)
    """What is odd about the readings, with what to do."""

    @property
    def by_slot_of_week(self) -> bool:
        """Whether the mean by slot of the week, and so that baseline, is possible."""
        return self.season_count > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "by_slot_of_week": self.by_slot_of_week}

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line on the terminal."""
        rows = [
            ("data", f"{self.path}{' (synthetic)' if self.synthetic else ''}"),
            (
                "shape",
                f"({', '.join(f'{axis} {size}' for axis, size in zip(self.axes, self.shape, strict=True))}), "
                f"{self.family}",
            ),
            ("content", f"sha256 {self.sha256}"),
            ("time", _time_text(self.start, self.end, self.step_seconds, self.slots_per_day)),
            ("missing", f"{self.missing} values" if self.missing else "none"),
        ]
        rows += [] if self.sensors is None else _sensor_lines(self.sensors)
        rows += [(c.name, _range_text(c)) for c in self.channels]
        for segment in self.segments:
            steps = "" if segment.steps is None else f"{segment.steps} steps, "
            span = "" if segment.start is None else f", {segment.start} to {segment.end}"
            rows.append((segment.name, f"{steps}{segment.windows} windows{span}"))
        seen = (
            f"possible: {self.season_count} train steps at the rarest slot"
            if self.by_slot_of_week
            else "not possible"
        )
        rows.append(("mean by slot of the week", seen))
        rows += [("finding", finding) for finding in self.findings]
        return rows + [("problem", problem) for problem in self.problems]


def summarise(spec: DataSpec, content: Series | ReadyWindows | None = None) -> DataSummary:
    """Summarise the data, and the segments into which the specification splits them.

    Args:
        content: what :func:`read_content` gives for the specification, where that is there already.

    Missing values and a series too short for the windows are listed as problems.

    Raises:
        DataError: the data cannot be read at all.
    """
    content = read_content(spec) if content is None else content
    return _of_windows(content, spec) if isinstance(content, ReadyWindows) else _of_series(content, spec)


def coverage_of(content: Series | ReadyWindows, spec: DataSpec) -> Coverage | None:
    """Which readings of the channel that is forecast are missing, and when the segments begin; None for data without times."""
    if isinstance(content, ReadyWindows) or content.timestamps is None or len(content.timestamps) < 2:
        return None
    used = channels_of(content, [spec.channel]) if spec.family == "sensors" else content
    gone = ~np.isfinite(used.values)
    if used.null is not None:
        gone |= used.values == np.float32(used.null)
    begins = {name: content.timestamps[start] for name, (start, _) in segments_of(len(gone), spec.split, spec.train_ratio).items()}
    return Coverage(content.timestamps, gone.reshape(len(gone), -1).mean(axis=1), begins)


def _of_series(series: Series, spec: DataSpec) -> DataSummary:
    values, times, steps = series.values, series.timestamps, len(series.values)
    used = channels_of(series, [spec.channel]) if spec.family == "sensors" else series
    segments = segments_of(steps, spec.split, spec.train_ratio)
    short = too_short_message(steps, spec, series.source)
    gaps = missing_message(used, spec.family) if spec.missing == "error" else None
    further = _problem_of_inputs(series, spec)
    has_slots = times is not None and steps > 1
    rarest = 0
    if times is not None and has_slots and not short:
        slots = slot_of_week(times, series.step_seconds)
        rarest = season_count(slots, series.slots_per_day, segments["train"][1], used_steps(segments))
    channels = np.moveaxis(values, 1 + CHANNEL_AXIS[spec.family], 0)
    names = channel_names(series, spec.family)
    return DataSummary(
        path=series.source,
        name=series.name,
        synthetic=series.synthetic,
        family=spec.family,
        axes=FAMILY_AXES[spec.family],
        shape=values.shape,
        sha256=content_hash(used.values, times),
        start=_text(times, 0, steps),
        end=_text(times, steps - 1, steps),
        step_seconds=series.step_seconds if has_slots else None,
        slots_per_day=series.slots_per_day if has_slots else None,
        missing=int((~np.isfinite(used.values)).sum()),
        channels=[_channel(name, channel) for name, channel in zip(names, channels, strict=True)],
        segments=[_segment(name, segment, spec, times) for name, segment in segments.items()],
        season_count=rarest,
        sensors=_sensors(used, segments["train"][1]) if spec.family == "sensors" else None,
        problems=[problem for problem in (gaps, further, short) if problem],
        findings=[] if short else findings(used, spec.family, segments),
    )


def _problem_of_inputs(series: Series, spec: DataSpec) -> str | None:
    """What keeps a study from the channels of ``data.inputs``."""
    chosen = further_channels(spec)
    if not chosen:
        return None
    try:
        further = channels_of(series, chosen, "data.inputs")
    except DataError as error:
        return str(error)
    return missing_message(further, spec.family) if spec.missing == "error" else None


def _sensors(series: Series, train_end: int) -> SensorSummary:
    values = series.values[:, :, 0]
    seen = np.isfinite(values)
    if series.null is not None:
        seen &= values != np.float32(series.null)
    dead = np.flatnonzero(~seen[:train_end].any(axis=0))
    return SensorSummary(
        nodes=values.shape[1],
        named=series.node_names is not None,
        channel=channel_names(series, "sensors")[0],
        channel_index=series.channels[0] if series.channels else 0,
        null=series.null,
        without_reading_percent=float(100 * (1 - seen.mean())),
        dead=[series.node_names[i] if series.node_names else str(i) for i in dead],
        edges=None if series.edges is None else len(series.edges),
    )


def _segment(
    name: str, segment: tuple[int, int], spec: DataSpec, times: NDArray[np.datetime64] | None
) -> SegmentSummary:
    start, end = segment
    windows = window_count(segment, spec.history + spec.horizon)
    return SegmentSummary(name, end - start, windows, _text(times, start, end), _text(times, end - 1, end - start))


def _of_windows(content: ReadyWindows, spec: DataSpec) -> DataSummary:
    times, every = content.timestamps, np.concatenate([content.values[name] for name in SEGMENTS])
    all_times = None if times is None else np.sort(np.concatenate([times[name].ravel() for name in SEGMENTS]))
    problem = unfit_message(content, spec)
    return DataSummary(
        path=content.source,
        name=content.name,
        synthetic=False,
        family=spec.family,
        axes=("windows", "steps", *FAMILY_AXES[spec.family][1:]),
        shape=every.shape,
        sha256=windows_hash(content),
        start=_text(all_times, 0, 1),
        end=_text(all_times, -1, 1),
        step_seconds=None if content.slots_per_day is None else DAY_SECONDS // content.slots_per_day,
        slots_per_day=content.slots_per_day,
        missing=int((~np.isfinite(every)).sum()),
        channels=[_channel(numbered_channels(spec.family, every.shape[2:])[0], every)],
        segments=[
            SegmentSummary(
                name,
                None,
                len(content.values[name]),
                None if times is None else str(times[name].min()),
                None if times is None else str(times[name].max()),
            )
            for name in SEGMENTS
        ],
        season_count=0,
        problems=[] if problem is None else [problem],
    )


def _channel(name: str, values: NDArray[np.float32]) -> ChannelSummary:
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return ChannelSummary(name, None, None, None, None)
    return ChannelSummary(
        name, float(known.min()), float(known.mean()), float(known.max()), float(100 * (known == 0).mean())
    )


def _text(times: NDArray[np.datetime64] | None, index: int, steps: int) -> str | None:
    """The time at an index. None if there are no times or no steps."""
    return None if times is None or steps < 1 else str(times[index])


def _sensor_lines(sensors: SensorSummary) -> list[tuple[str, str]]:
    marker = "none is marked as missing" if sensors.null is None else f"{sensors.null:g} means none"
    rows = [
        ("nodes", f"{sensors.nodes}{'' if sensors.named else ', without ids'}"),
        ("forecast", f"{sensors.channel} (data.channel={sensors.channel_index})"),
        ("no reading", f"{sensors.without_reading_percent:.3g} % ({marker})"),
    ]
    if sensors.dead:
        more = f" and {len(sensors.dead) - _MOST_NAMED} more" if len(sensors.dead) > _MOST_NAMED else ""
        named = ", ".join(sensors.dead[:_MOST_NAMED])
        rows.append(("dead sensors", f"{len(sensors.dead)} without a reading in the train segment: {named}{more}"))
    return rows + ([] if sensors.edges is None else [("edges", str(sensors.edges))])


def _range_text(channel: ChannelSummary) -> str:
    if channel.low is None:
        return "all values missing"
    return f"{channel.low:g} to {channel.high:g}, mean {channel.mean:.4g}, {channel.zero_percent:.1f} % zeros"


def _time_text(start: str | None, end: str | None, step: int | None, slots_per_day: int | None) -> str:
    every = "" if step is None else f"step {step} s, {slots_per_day} slots a day"
    if start is None:
        return every or "no timestamps: no slots of the week, no baselines by hour or day (data.start and data.step_minutes give them)"
    return f"{start} to {end}, {every}"
