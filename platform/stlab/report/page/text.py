"""Text about results: formatted numbers, the protocol, caveats, and which variants beat the slot-of-week mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stlab.report.statistics.summary import Interval, Row, Summary, anchor, has_slot_of_week, is_slot_of_week, plain
from stlab.storage import outcome

SLOT_OF_WEEK = "the mean by slot of week"


@dataclass(frozen=True)
class ImageChannel:
    """A channel of an image for the reader: the meaning of a pixel (i, j) for nodes i and j, and of the values 0, 0.5 and 1."""

    title: str
    meaning: str
    low: str
    middle: str
    high: str
    is_distance: bool = False
    """A bright pixel means that the nodes differ, not that they are alike."""


_IMAGE_CHANNELS = {
    "dtw": ImageChannel(
        "dynamic time warping",
        "the accumulated difference along the best warping path, from the image's smallest (0) to its largest (1)",
        "alike",
        "",
        "unlike",
        is_distance=True,
    ),
    "cross_correlation": ImageChannel(
        "cross-correlation", "the largest correlation over all lags, from −1 (pixel 0) to 1 (pixel 1)", "−1", "0", "1"
    ),
    "spectrum": ImageChannel(
        "spectrum", "the correlation of the amplitude spectra, from −1 (pixel 0) to 1 (pixel 1)", "−1", "0", "1"
    ),
}


def image_channel(name: str) -> ImageChannel:
    """The description of a channel. An unknown channel goes by its own name, and a bright pixel means alike."""
    plain = name.replace("_", " ")
    return _IMAGE_CHANNELS.get(name) or ImageChannel(plain, f"the pixel of channel {plain}", "0", "0.5", "1")


def decimals(values: Iterable[float]) -> int:
    """How many decimals errors are printed with: three at usual sizes, fewer for large and more for small errors."""
    largest = max((abs(value) for value in values), default=1.0)
    for limit, digits in ((0.1, 5), (1.0, 4), (100.0, 3), (1000.0, 2)):
        if largest < limit:
            return digits
    return 1


def number(interval: Interval | None, digits: int = 3, plus_minus: str = " ± ") -> str:
    """``6.512 ± 0.041``; only the mean if there is no interval, and a dash if there is no mean."""
    if interval is None:
        return "–"
    half = "" if interval.half_width is None else f"{plus_minus}{interval.half_width:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half}"


def count(value: float | None) -> str:
    """A number of parameters: ``1.93 M``."""
    if value is None:
        return "–"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}" if value / size < 1000 else f"{value / size:.0f}{suffix}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(size: float | None) -> str:
    if size is None:
        return "–"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def seeds(line: Summary) -> str:
    """The number of seeds behind a mean, and how the others ended: ``2 of 3 (1 failed)``."""
    lost = [
        f"{n} {what}" for n, what in ((line.failed, "failed"), (line.missing, "missing"), (line.pruned, "pruned")) if n
    ]
    return (
        f"{line.n} of {line.planned} ({', '.join(lost)})" if lost else str(line.n)
    )


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """The protocol fingerprint as one sentence, without its full stop."""
    if not protocol:
        return "protocol unknown: no trial has written its fingerprint"
    parts = [str(protocol.get("family", "series"))]
    if channels := protocol.get("channels"):
        many = len(channels) if isinstance(channels, list) else channels
        parts[0] += f" of {many} channel{'' if many == 1 else 's'}"
    if protocol.get("channel") is not None:
        parts[0] = f"{protocol.get('family', 'series')}, channel {protocol['channel']} of the file"
    if protocol.get("history") and protocol.get("horizon"):
        parts.append(f"{protocol['history']} → {protocol['horizon']} steps")
    split = protocol.get("split")
    if isinstance(split, (list, tuple)):
        parts.append("split by time " + "/".join(f"{100 * share:.3g}" for share in split))
    elif split:
        parts.append(f"split: {split}")
    if scaler := protocol.get("scaler"):
        fitted = (
            "train, validation and test together" if protocol.get("protocol") == "unist" else "the train segment only"
        )
        parts.append(f"{scaler} scaler fitted on {fitted}")
    mask = protocol.get("mask")
    parts.append("no mask" if mask is None or mask == "none" else f"readings equal to {plain(mask)} masked out")
    if (missing := protocol.get("missing", "error")) not in ("error", "none"):
        parts.append({"zero": "gaps set to 0", "interpolate": "gaps interpolated"}.get(missing, f"gaps: {missing}"))
    if (scale := protocol.get("scale", 1.0)) != 1.0:
        parts.append(f"errors multiplied by {scale:g}")
    return ", ".join(parts)


def anchor_text(line: Summary) -> str:
    """The name of the baseline that variants are compared with."""
    return SLOT_OF_WEEK if is_slot_of_week(line.variant) else f"the best baseline, {line.label}"


@dataclass(frozen=True)
class Caveat:
    """A limit on what the results mean: a short text for the badge and a sentence for the reader."""

    badge: str
    sentence: str


def caveats(rows: Sequence[Row], protocol: Mapping[str, Any]) -> list[Caveat]:
    """The caveats of a table of these rows: generated data, random weights, a leak, a scale, or missing results."""
    trained = [row for row in rows if not row.get("baseline")]
    found: list[tuple[str, str]] = []
    if any(row.get("synthetic") for row in rows):
        says = "The data were generated, not measured, so the results are no evidence about a real city."
        found.append(("synthetic data", says))
    if random := list(dict.fromkeys(str(row.get("variant")) for row in trained if _random(row))):
        known = {row.get("variant") for row in trained if row.get("weights")}
        whose = "" if len(random) == len(known) else f" of {', '.join(random)}"
        says = f"Frozen backbone weights{whose} are random, so the results say nothing about a pretrained backbone."
        found.append(("random weights", says))
    if any(row.get("leaks") for row in rows):
        unist = protocol.get("protocol") == "unist"
        later = "the scaler has seen the test segment" if unist else "gaps were interpolated"
        says = f"The protocol leaks ({later}), so the results are not comparable with results without a leak."
        found.append(("protocol leaks", says))
    if (scale := protocol.get("scale", 1.0)) != 1.0:
        found.append((f"errors × {scale:g}", f"All errors are multiplied by {scale:g}."))
    return [Caveat(*one) for one in found + _incomplete(rows, trained)]


def _incomplete(rows: Sequence[Row], trained: Sequence[Row]) -> list[tuple[str, str]]:
    found = []
    outcomes = [outcome(row) for row in rows]
    failed = outcomes.count("failed")
    if lacking := sum(one not in ("finished", "pruned", "failed") for one in outcomes) + failed:
        says = f"Among {len(rows)} trials, baselines included, {failed} failed and {lacking - failed} did not run to the end"
        found.append(("incomplete", f"{says}; means are over the finished ones."))
    ran = [row for row in rows if outcome(row) == "finished"]
    if untested := sum(row.get("test_rmse") is None for row in ran):
        says = f"{untested} of {len(ran)} finished trials have not been measured on the test segment."
        found.append(("not all tested", says))
    if len({row.get("seed") for row in trained if outcome(row) == "finished"}) == 1:
        found.append(("one seed", "Each variant has one seed, so there are no intervals, and differences between variants may be chance."))
    return found


def _random(row: Row) -> bool:
    return str(row.get("weights") or "").lower().startswith("random")


@dataclass(frozen=True)
class Verdict:
    """How a variant compares with the anchor (``statistics.summary.anchor``), by RMSE (``beats``) and by MAE."""

    label: str
    sentence: str
    beats: bool
    beats_mae: bool


def verdicts(summaries: Sequence[Summary]) -> list[Verdict]:
    """A sentence for each tested variant: whether it beats the anchor, and how clearly."""
    pairs = [(line, anchor(summaries, line)) for line in summaries if not line.baseline]
    return [_verdict(line, held) for line, held in pairs if line.test_rmse and held and held.test_rmse]


def _verdict(line: Summary, held: Summary) -> Verdict:
    assert line.test_rmse
    assert held.test_rmse
    bar = held.test_rmse.mean
    digits = decimals([bar, line.test_rmse.mean])
    beats = line.test_rmse.mean < bar
    sentence = f"{'beats' if beats else 'does not beat'} {anchor_text(held)} (RMSE {bar:.{digits}f}): "
    sentence += number(line.test_rmse, digits)
    if line.test_rmse.half_width is None:
        sentence += "; one seed, so no interval"
    elif abs(line.test_rmse.mean - bar) <= line.test_rmse.half_width:
        sentence += "; the interval contains the baseline's error, so the order is not settled"
    beats_mae = beats
    if line.test_mae and held.test_mae:
        beats_mae = line.test_mae.mean < held.test_mae.mean
    if beats_mae != beats and line.test_mae and held.test_mae:
        errors = f"{line.test_mae.mean:.{digits}f} against {held.test_mae.mean:.{digits}f}"
        sentence += f"; by MAE it {'beats it' if beats_mae else 'does not'} ({errors})"
    return Verdict(line.label, sentence, beats, beats_mae)


def headline(summaries: Sequence[Summary]) -> str:
    """The verdict on all variants together, or the reason that there is none."""
    if not any(line.test_rmse for line in summaries if not line.baseline):
        return "No variant has been measured on the test segment, so none can be compared with the baselines."
    if not has_slot_of_week(summaries):
        some = any(line.baseline and is_slot_of_week(line.variant) for line in summaries)
        where = "exists for only some of these rows" if some else "is not among these results"
        missing = f"{SLOT_OF_WEEK.capitalize()}, the baseline that counts, {where}."
        has_parts = any(line.baseline and line.axis_values for line in summaries)
        return missing + (_strongest_of_each(summaries) if has_parts else _strongest(summaries))
    found = verdicts(summaries)
    if not found:
        return f"{SLOT_OF_WEEK.capitalize()}, the baseline that counts, has no result."
    anchors = [line for line in summaries if line.baseline and is_slot_of_week(line.variant)]
    bars = [line.test_rmse.mean for line in anchors if line.test_rmse]
    bar = SLOT_OF_WEEK if len(bars) > 1 else f"{SLOT_OF_WEEK} (RMSE {bars[0]:.{decimals(bars)}f})"
    lost = [verdict.label for verdict in found if not verdict.beats]
    if len(found) == 1:
        text = f"{found[0].label} {'does not beat' if lost else 'beats'} {bar}."
    elif not lost:
        text = f"All {len(found)} variants beat {bar}."
    elif len(lost) == len(found):
        text = f"No variant beats {bar}."
    else:
        text = f"{len(found) - len(lost)} of {len(found)} variants beat {bar}; not: {', '.join(lost)}."
    if only_rmse := [verdict.label for verdict in found if verdict.beats and not verdict.beats_mae]:
        text += f" By MAE that baseline is not beaten by {', '.join(only_rmse)}."
    return text + _strongest(summaries)


def _strongest_of_each(summaries: Sequence[Summary]) -> str:
    """If an axis varies the data: which rows beat the best baseline on their own part of it, and which do not."""
    found = verdicts(summaries)
    lost = [verdict.label for verdict in found if not verdict.beats]
    others = f"; not: {', '.join(lost)}" if lost else ""
    return f" {len(found) - len(lost)} of {len(found)} rows beat the best baseline on their own data{others}."


def _strongest(summaries: Sequence[Summary]) -> str:
    """Which variants beat the best baseline; empty if that is the mean by slot of week."""
    best = next((line for line in summaries if line.baseline and line.test_rmse), None)
    if best is None or best.test_rmse is None or is_slot_of_week(best.variant):
        return ""
    won = [line.label for line in summaries if not line.baseline and best.label in line.beats]
    bar = best.test_rmse.mean
    result = f"beaten by {', '.join(won)}" if won else "which no variant beats"
    return f" The best baseline is {best.label} (RMSE {bar:.{decimals([bar])}f}), {result}."
