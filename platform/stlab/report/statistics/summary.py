"""From trials to the lines of a table: means over seeds, their intervals, and the baselines that each line beats."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stlab.storage import outcome, single_protocol, table_rows

CONFIDENCE = 0.95
_SLOT_OF_WEEK = re.compile(r"(slot|hour)[\s_-]*of[\s_-]*week|(slot|hour) of the week", re.IGNORECASE)

Row = Mapping[str, Any]

SYMBOLS = {"model.flow_weight": "λ", "train.flow_loss_weight": "λ"}
"""Dotted path of a field → its symbol in papers. Earlier records have λ in ``train``."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, its 95 % Student-t interval ``mean ± half_width``, and the sample standard deviation.

    Interval and deviation are None for one seed.
    """

    mean: float
    half_width: float | None = None
    sd: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval | None:
        """The interval; None if there are no values. It assumes independent seeds with nearly normal errors."""
        if not values:
            return None
        n = len(values)
        mean = math.fsum(values) / n
        if n < 2:
            return cls(mean)
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        return cls(mean, _quantile(n - 1) * sd / math.sqrt(n), sd)


@functools.cache
def _quantile(degrees: int) -> float:
    """Student's t for a two-sided interval. A table asks for the same one again and again, and SciPy takes a while each time."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


@dataclass(frozen=True)
class Summary:
    """One line of the table: a variant at one setting of the axes, or a baseline."""

    label: str
    variant: str
    axis_values: dict[str, Any]
    baseline: bool
    n: int
    """Finished seeds; the means are over these."""
    failed: int
    missing: int
    """Planned seeds that have no result and did not fail, because they have not run or have not ended."""
    pruned: int
    test_rmse: Interval | None
    test_mae: Interval | None
    test_mape: Interval | None
    test_rmse_unmasked: Interval | None
    test_mae_unmasked: Interval | None
    val_rmse: Interval | None
    trainable_params: int | None
    total_params: int | None
    seconds: float | None
    """Mean wall time of a finished trial, s."""
    peak_memory_bytes: int | None
    """The largest of the finished trials."""
    weights: str | None
    information: str | None
    """What a forecast may know: ``window``, ``calendar`` or ``period``; None for trials of before it was recorded."""
    leaks: bool
    synthetic: bool
    trial_ids: tuple[str, ...]
    """Finished trials, in the order of the rows."""
    beats: tuple[str, ...] = field(default=())
    """Labels of the baselines with a larger mean test RMSE."""

    @property
    def planned(self) -> int:
        """All seeds, however they ended."""
        return self.n + self.failed + self.missing + self.pruned

    @property
    def rank_rmse(self) -> float:
        """The mean test RMSE, by which lines are sorted; infinite if there is none."""
        return self.test_rmse.mean if self.test_rmse else math.inf


def summarise(rows: Iterable[Row], axes: Sequence[str] | None = None) -> list[Summary]:
    """The lines of a study's table: variants in the order they first appear, then baselines by test RMSE.

    Failed, pruned and missing seeds are counted beside the finished ones; a mean is over finished seeds only.

    Args:
        rows: rows of ``trials.parquet``; trials of a search that were not selected are left out.
        axes: dotted paths that the study varies. Unset: the ``param.*`` columns that differ within a variant.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    rows = table_rows(rows)
    single_protocol(rows)
    axes = (
        [path for path in axes if any(f"param.{path}" in row for row in rows)] if axes is not None else infer_axes(rows)
    )
    groups: dict[tuple[bool, str, str], list[Row]] = {}
    for row in rows:
        values = _axis_values(row, axes)
        key = (bool(row.get("baseline")), str(row.get("variant")), json.dumps(values, default=str))
        groups.setdefault(key, []).append(row)
    names, fixed = _short_names(axes), _fixed(rows, axes)
    lines = []
    for group in groups.values():
        values = _axis_values(group[0], axes)
        shown = {path: value for path, value in values.items() if (str(group[0].get("variant")), path) not in fixed}
        lines.append(_summary(group, values, [f"{names[path]}={plain(value)}" for path, value in shown.items()]))
    variants = [line for line in lines if not line.baseline]
    baselines = sorted((line for line in lines if line.baseline), key=lambda line: line.rank_rmse)
    return [_with_beaten(line, baselines) for line in [*variants, *baselines]]


def infer_axes(rows: Sequence[Row]) -> list[str]:
    """Dotted paths of the configuration that differ between trials of one variant, resources excepted."""
    found: dict[str, None] = {}
    seen: dict[tuple[str, str], Any] = {}
    for row in rows:
        # A trial that never started has no configuration, so it says nothing about the axes.
        if row.get("baseline") or not any(
            value is not None for name, value in row.items() if name.startswith("param.")
        ):
            continue
        for name, value in row.items():
            if name.startswith("param.") and not name.startswith("param.resources."):
                before = seen.setdefault((str(row.get("variant")), name), value)
                if before != value:
                    found[name.removeprefix("param.")] = None
    return list(found)


def slot_of_week(summaries: Sequence[Summary], line: Summary | None = None) -> Summary | None:
    """The mean by slot of the week, which is the baseline that counts; None if there is none.

    If an axis changes the data (few-shot ratios), it is the one on ``line``'s data.
    """
    return next(
        (b for b in summaries if b.baseline and is_slot_of_week(b.variant) and (line is None or _same_data(line, b))),
        None,
    )


def strongest_baseline(summaries: Sequence[Summary], line: Summary | None = None) -> Summary | None:
    """The baseline with the lowest mean test RMSE, on ``line``'s data if one is given; None if none was tested."""
    tested = [b for b in summaries if b.baseline and b.test_rmse and (line is None or _same_data(line, b))]
    return min(tested, key=lambda b: b.rank_rmse, default=None)


def anchor(summaries: Sequence[Summary], line: Summary | None = None) -> Summary | None:
    """The baseline that a variant is compared with: the mean by slot of week, or else the best baseline on its data.

    The best baseline is used if some variant has no mean by slot of week. A series of a few weeks has none, nor has the first part of a
    longer one.
    """
    if has_slot_of_week(summaries):
        return slot_of_week(summaries, line)
    return strongest_baseline(summaries, line)


def has_slot_of_week(summaries: Sequence[Summary]) -> bool:
    """Whether the baselines on every variant's data include the mean by slot of week."""
    baselines = [line for line in summaries if line.baseline]
    variants = [line for line in summaries if not line.baseline]
    return bool(variants) and all(slot_of_week(baselines, line) is not None for line in variants)


def is_slot_of_week(name: str) -> bool:
    """Whether a baseline of this name is the mean by slot (hour) of the week."""
    return _SLOT_OF_WEEK.search(name) is not None


def best_variant(summaries: Sequence[Summary]) -> Summary | None:
    """The variant with the lowest mean test RMSE, or validation RMSE if none was tested; None if none finished."""
    variants = [line for line in summaries if not line.baseline]
    tested = [line for line in variants if line.test_rmse]
    if tested:
        return min(tested, key=lambda line: line.rank_rmse)
    return min(
        (line for line in variants if line.val_rmse),
        key=lambda line: line.val_rmse.mean if line.val_rmse else 0.0,
        default=None,
    )


def lowest_mae(summaries: Sequence[Summary]) -> Summary | None:
    """The variant with the lowest mean test MAE; None if none was tested."""
    tested = [(line.test_mae.mean, line) for line in summaries if not line.baseline and line.test_mae]
    return min(tested, key=lambda pair: pair[0])[1] if tested else None


def _fixed(rows: Sequence[Row], axes: Sequence[str]) -> set[tuple[str, str]]:
    """(variant, axis) of variants that have one value on an axis on which another variant has several.

    Such an axis belongs to another study, so the value is left out of the variant's label.
    """
    seen: dict[str, dict[str, set[str]]] = {path: {} for path in axes}
    for row in rows:
        for path, value in {} if row.get("baseline") else _axis_values(row, axes).items():
            seen[path].setdefault(str(row.get("variant")), set()).add(json.dumps(value, default=str))
    varied = [path for path, variants in seen.items() if any(len(values) > 1 for values in variants.values())]
    return {(variant, path) for path in varied for variant, values in seen[path].items() if len(values) == 1}


def _summary(group: Sequence[Row], axis_values: dict[str, Any], settings: Sequence[str]) -> Summary:
    first = group[0]
    done = [row for row in group if outcome(row) == "finished"]
    count = {status: sum(outcome(row) == status for row in group) for status in ("failed", "pruned")}
    memory = _values(done, "peak_memory_bytes")
    seconds = _values(done, "wall_seconds")
    return Summary(
        label=" · ".join([str(first.get("variant")), *settings]),
        variant=str(first.get("variant")),
        axis_values=axis_values,
        baseline=bool(first.get("baseline")),
        n=len(done),
        failed=count["failed"],
        missing=len(group) - len(done) - count["failed"] - count["pruned"],
        pruned=count["pruned"],
        test_rmse=Interval.of(_values(done, "test_rmse")),
        test_mae=Interval.of(_values(done, "test_mae")),
        test_mape=Interval.of(_values(done, "test_mape")),
        test_rmse_unmasked=Interval.of(_values(done, "test_rmse_unmasked")),
        test_mae_unmasked=Interval.of(_values(done, "test_mae_unmasked")),
        val_rmse=Interval.of(_values(done, "val_rmse")),
        trainable_params=_first(group, "trainable_params"),
        total_params=_first(group, "total_params"),
        seconds=math.fsum(seconds) / len(seconds) if seconds else None,
        peak_memory_bytes=int(max(memory)) if memory else None,
        weights=_first(group, "weights"),
        information=_first(group, "information"),
        leaks=any(row.get("leaks") for row in group),
        synthetic=any(row.get("synthetic") for row in group),
        trial_ids=tuple(str(row.get("trial_id")) for row in done),
    )


def _with_beaten(line: Summary, baselines: Sequence[Summary]) -> Summary:
    beaten = tuple(
        b.label for b in baselines if b is not line and _same_data(line, b) and line.rank_rmse < b.rank_rmse < math.inf
    )
    return Summary(**{**vars(line), "beats": beaten})


def _same_data(line: Summary, baseline: Summary) -> bool:
    """Whether a baseline is on the line's data. Each value of an axis of the data (few-shot ratios) has baselines of its own."""
    return all(line.axis_values.get(path, value) == value for path, value in baseline.axis_values.items())


def _axis_values(row: Row, axes: Sequence[str]) -> dict[str, Any]:
    """The row's values on the axes. A baseline has no model, so only the axes of the data apply to it."""
    values = {path: row.get(f"param.{path}") for path in axes}
    if not row.get("baseline"):
        return values
    return {path: value for path, value in values.items() if path.startswith("data.") and value is not None}


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """The symbol or the last segment of each dotted path, or the whole path if two of them end alike."""
    paths = list(paths)
    last = [SYMBOLS.get(path, path.rsplit(".", 1)[-1]) for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}


def symbols_text(summaries: Sequence[Summary]) -> str:
    """The meaning of the symbols in the labels, ``λ: model.flow_weight.``; empty if there are none."""
    paths = dict.fromkeys(path for line in summaries for path in line.axis_values if f"{SYMBOLS.get(path)}=" in line.label)
    return "; ".join(f"{SYMBOLS[path]}: {path}" for path in paths) + ("." if paths else "")


def plain(value: Any) -> str:
    """A setting for the reader: 0.5, not 0.500000."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) is not None]


def _first(rows: Iterable[Row], name: str) -> Any:
    return next((row[name] for row in rows if row.get(name) is not None), None)
