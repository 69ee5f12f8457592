"""Our errors compared with a paper's: which cell corresponds to a row, whether the two are comparable, and the verdict if they are.

A value in a paper is one number without an interval. If data, protocol and weights are the paper's as far as it prints them, the value is
compared with the 95 % interval over our seeds. Otherwise both are shown, with the reasons why they are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from stlab.papers import Cell, Paper, coverage, load_paper
from stlab.report.paper.data_facts import SeenData, differences, seen_data
from stlab.report.statistics.summary import Interval, Row, Summary, summarise
from stlab.storage import Store, outcome
from stlab.study.paper import paper_rows
from stlab.study.spec import PaperSpec

Verdict = Literal["within", "better", "worse", "no interval", "not comparable", "not measured", "not printed"]
Kind = Literal["data", "protocol", "weights", "meaning"]

_ERRORS = {"rmse": "test_rmse", "mae": "test_mae", "mape_percent": "test_mape"}
METRIC_NAMES = {
    "rmse": "RMSE",
    "mae": "MAE",
    "mape_percent": "MAPE, %",
    "training_minutes": "Training, min",
    "inference_minutes": "Inference, min",
}


@dataclass(frozen=True)
class Reason:
    """A reason why a value of ours and one of the paper are not comparable."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class ComparedValue:
    """One metric of one row: the paper's value as printed, ours with its interval, and the verdict."""

    metric: str
    paper: str | None
    ours: Interval | None
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A line of our table that corresponds to a row of the paper's."""

    label: str
    method: str
    train_ratio: float
    seeds: int
    compared: tuple[ComparedValue, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PaperComparison:
    """A table of the paper, compared with the study's rows."""

    paper: Paper
    table: str
    dataset: str | None
    """The paper's name of the data set; None if our data set is not in the paper."""
    our_dataset: str
    metrics: tuple[str, ...]
    entries: tuple[Entry, ...]
    coverage: tuple[Cell, ...]

    @property
    def shared(self) -> tuple[Reason, ...]:
        """Reasons that apply to every value that is shown."""
        values = [value for entry in self.entries for value in entry.compared if value.paper is not None]
        return tuple(r for r in (values[0].reasons if values else ()) if all(r in value.reasons for value in values))


def compare_with_paper(
    store: Store, rows: Iterable[Row], study: Mapping[str, Any], axes: Sequence[str] | None = None
) -> list[PaperComparison]:
    """Compare the study's rows with each table that its ``paper`` names; empty if it names none.

    Args:
        rows: rows of ``trials.parquet``.
        study: the resolved study as a mapping.

    Raises:
        StudyError: the paper, its table or its data set is not known.
        ProtocolMismatch: the rows were made by different protocols.
    """
    if not study.get("paper"):
        return []
    spec, rows = PaperSpec.model_validate(study["paper"]), list(rows)
    paper = load_paper(spec.file)
    lines = [line for line in summarise(rows, axes) if not line.baseline]
    by_id = {row["trial_id"]: row for row in rows if not row.get("baseline")}
    name = next((str(row["dataset"]) for row in rows if row.get("dataset")), "")
    dataset = spec.dataset or paper.find_dataset(name)
    first = next((row for row in by_id.values() if outcome(row) == "finished"), None)
    seen = seen_data(store, first) if first else None
    return [_compare_table(paper, spec, table, dataset, name, lines, by_id, seen) for table in spec.tables]


def _compare_table(
    paper: Paper,
    spec: PaperSpec,
    table: str,
    dataset: str | None,
    name: str,
    lines: Sequence[Summary],
    rows: Mapping[str, Row],
    seen: SeenData | None,
) -> PaperComparison:
    mapping = paper_rows(spec, paper, table, dict.fromkeys(line.variant for line in lines))
    metrics = tuple(paper.metrics(table)) or ("rmse", "mae")
    entries = []
    for line in lines:
        method = mapping.get(line.variant)
        if method is None:
            continue
        row = next((rows[one] for one in line.trial_ids), None) or _any_row(rows, line)
        entries.append(_entry(paper, table, dataset, name, line, method, row, seen, metrics))
    ratios = {entry.train_ratio for entry in entries} or {1.0}
    held = dataset if dataset in paper.datasets(table) else None
    stands_in = any(reason.kind == "data" for entry in entries for value in entry.compared for reason in value.reasons)
    cells = coverage(paper, table, mapping, held, ratios, is_paper_data=not stands_in)
    return PaperComparison(paper, table, held, name, metrics, tuple(entries), tuple(cells))


def _any_row(rows: Mapping[str, Row], line: Summary) -> Row:
    """A row for a line without a finished trial; its seeds share the configuration."""
    return next((row for row in rows.values() if row.get("variant") == line.variant), {})


def _entry(
    paper: Paper, table: str, dataset: str | None, name: str, line: Summary, method: str, row: Row, seen: SeenData | None,
    metrics: Sequence[str],
) -> Entry:
    ratio = float(line.axis_values.get("data.train_ratio") or row.get("param.data.train_ratio") or 1.0)
    reasons, notes = comparability(paper, dataset, name, method, row, seen)
    printed = paper.cell(table, method, dataset, ratio) if dataset is not None else {}
    all_notes = [*paper.notes(table, method, dataset if printed or not paper.has_numbers(table) else None), *notes]
    compared = tuple(_compared_value(paper, table, metric, printed.get(metric), line, reasons) for metric in metrics)
    return Entry(line.label, method, ratio, line.n, compared, tuple(dict.fromkeys(all_notes)))


def _compared_value(
    paper: Paper, table: str, metric: str, printed: str | None, line: Summary, reasons: Sequence[Reason]
) -> ComparedValue:
    facts = paper.table(table)
    ours: Interval | None = getattr(line, _ERRORS[metric]) if metric in _ERRORS else None
    if facts.ours.get(metric) == "wall_minutes" and line.seconds is not None:
        ours = Interval(line.seconds / 60)
    if metric in facts.not_comparable or metric not in _ERRORS:
        reasons = [*reasons, Reason("meaning", facts.not_comparable.get(metric, "what it measures is not described"))]
    return ComparedValue(metric, printed, ours, verdict(printed, ours, reasons), tuple(reasons))


def verdict(printed: str | None, ours: Interval | None, reasons: Sequence[Reason] = ()) -> Verdict:
    """How our mean over seeds compares with a printed value; lower is better.

    A printed value stands for every number that rounds to it: 1.06 stands for all from 1.055 to 1.065. ``within`` means that our 95 %
    interval contains one of these, ``better`` and ``worse`` that it lies below or above all of them.
    """
    theirs = printed_range(printed)
    if theirs is None:
        return "not printed"
    if ours is None:
        return "not measured"
    if reasons:
        return "not comparable"
    if ours.half_width is None:
        return "no interval"
    low, high = ours.mean - ours.half_width, ours.mean + ours.half_width
    return "better" if high < theirs[0] else "worse" if low > theirs[1] else "within"


def printed_range(text: str | None) -> tuple[float, float] | None:
    """The range of numbers that round to ``text``; None if it is not a number."""
    try:
        value = Decimal(text or "")
    except InvalidOperation:
        return None
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        return None
    half = Decimal(5).scaleb(exponent - 1)
    return float(value - half), float(value + half)


def comparability(
    paper: Paper, dataset: str | None, name: str, method: str, row: Row, seen: SeenData | None
) -> tuple[list[Reason], list[str]]:
    """The reasons why a row of ours is not comparable with a method's values, and further notes for the reader.

    Args:
        dataset: the paper's name of the data set; None if our data set is not in the paper.
        name: our data set's name.
        row: a row of ``trials.parquet``.
        seen: the facts about the data that the row's test forecasts show; None if none were kept.
    """
    notes: list[str] = []
    reasons = [Reason("data", text) for text in _data_reasons(paper, dataset, name, row, seen, notes)]
    reasons += [Reason("protocol", text) for text in _protocol_reasons(paper, dataset, method, row)]
    reasons += [Reason("weights", text) for text in _weights_reasons(paper, method, row, notes)]
    facts = paper.facts.datasets.get(dataset) if dataset is not None else None
    for path, theirs in facts.settings.items() if facts else ():
        ours = row.get(f"param.{path}")
        if ours and ours != theirs:  # a setting that is switched off is the variant's purpose
            notes.append(f"The paper sets {path} to {theirs} on {dataset}; this row has {ours}.")
    return reasons, notes


def _data_reasons(
    paper: Paper, dataset: str | None, name: str, row: Row, seen: SeenData | None, notes: list[str]
) -> list[str]:
    if row.get("synthetic"):
        return ["our data were generated, not measured"]
    if dataset is None:
        return [f"{name or 'our data set'} is not one of the paper's data sets; if it is, set paper.dataset"]
    if seen is None:
        return ["the content of our data is unknown, because no test forecasts were kept"]
    found, unknown = differences(paper.facts.datasets[dataset], seen)
    if found:
        return [f"our data are not {dataset}: {'; '.join(found)}"]
    if unknown and row.get("leaks") and paper.find_dataset(name) == dataset:
        notes.append(f"{name} is assumed to be the paper's {dataset} by its name and size, since ready-made windows have no dates.")
    elif unknown:
        return [f"the content of our data is unknown in {', '.join(unknown)}"]
    else:
        notes.append(f"{name} agrees with {dataset} in size, step and dates; the paper has no hash of its content.")
    return []


def _protocol_reasons(paper: Paper, dataset: str | None, method: str, row: Row) -> list[str]:
    printed = paper.facts.protocol
    ours = json.loads(row.get("protocol") or "{}")
    if not ours:
        return ["our protocol is unknown, because no trial has written its fingerprint"]
    found = []
    for field in ("family", "history", "horizon"):
        theirs = getattr(printed, field)
        if theirs is not None and ours.get(field) != theirs:
            found.append(f"{field} is {ours.get(field)}, the paper's {theirs}")
    split = ours.get("split")
    ready_made = printed.leaks and bool(row.get("leaks")) and isinstance(split, str)
    if printed.split and not ready_made and not _same_shares(split, printed.split):
        found.append(f"split is {_shares(split)}, the paper's {_shares(printed.split)}")
    if printed.mask is not None and ours.get("mask") != (None if printed.mask == "none" else printed.mask):
        found.append(f"missing readings are {_mask(ours.get('mask'))}, the paper's {_mask(printed.mask)}")
    if printed.leaks and not row.get("leaks"):
        found.append(f"the paper's scaler leaks: {printed.leak or 'it has seen the test segment'}; ours has not seen it")
    elif row.get("leaks") and not printed.leaks:
        found.append("our protocol leaks values from after the forecast")
    scale = paper.facts.datasets[dataset].scale if dataset is not None else None
    if scale is not None and float(ours.get("scale", 1.0)) != scale:
        found.append(f"errors are times {ours.get('scale', 1.0):g}, the paper's times {scale:g} (data.scale)")
    method_facts = paper.facts.methods.get(method)
    return found + ([method_facts.protocol_unknown] if method_facts and method_facts.protocol_unknown else [])


def _weights_reasons(paper: Paper, method: str, row: Row, notes: list[str]) -> list[str]:
    facts = paper.facts.methods.get(method)
    if facts is None or facts.backbone is None:
        return []
    backbone, weights = row.get("param.model.backbone"), str(row.get("weights") or row.get("param.model.weights") or "unknown")
    found = [f"backbone {backbone}, the paper's {facts.backbone}"] if backbone != facts.backbone else []
    if weights in ("random", "none", "unknown"):
        found.append(f"frozen weights {weights}, the paper's pretrained")
    elif weights != "pretrained":
        notes.append("Our frozen weights come from a file; they are assumed to be the published ones.")
    return found


def _same_shares(ours: Any, theirs: Sequence[float]) -> bool:
    if not isinstance(ours, Sequence) or isinstance(ours, str) or len(ours) != len(theirs):
        return False
    return all(abs(a - b) < 1e-9 for a, b in zip(ours, theirs, strict=True))


def _shares(split: Any) -> str:
    return split if isinstance(split, str) else "/".join(f"{100 * share:.3g}" for share in split or ()) or "unknown"


def _mask(mask: Any) -> str:
    return "none" if mask in (None, "none") else f"those equal to {mask:g}"
