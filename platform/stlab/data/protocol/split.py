"""The segments of a series and the windows in them (protocol: "Split")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.content import SEGMENTS
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec


def share_of(share: float, steps: int) -> int:
    """floor(share · steps) for the share as it was written: 0.15 is 15/100, not the binary number slightly below it."""
    return math.floor(Fraction(str(share)) * steps)


def boundaries(steps: int, split: Sequence[float]) -> tuple[int, int]:
    """Ends of the train and the validation segment: floor(share · T), shares summed exactly (0.7 + 0.15 is 85/100)."""
    train, validation = (Fraction(str(share)) for share in split[:2])
    return math.floor(train * steps), math.floor((train + validation) * steps)


def segments_of(steps: int, split: Sequence[float], train_ratio: float) -> dict[str, tuple[int, int]]:
    """Segment → (first step, end). Few-shot uses the first ``train_ratio`` of the train segment; the rest of it belongs to no segment."""
    train_end, validation_end = boundaries(steps, split)
    return {
        "train": (0, share_of(train_ratio, train_end)),
        "validation": (train_end, validation_end),
        "test": (validation_end, steps),
    }


def window_count(segment: tuple[int, int], length: int) -> int:
    """The number of windows of ``length`` steps that lie completely in a segment."""
    return max(0, segment[1] - segment[0] - length + 1)


def too_short_message(steps: int, spec: DataSpec, source: str) -> str | None:
    """The message if a segment holds no window, or None."""
    length = spec.history + spec.horizon
    found = segments_of(steps, spec.split, spec.train_ratio)
    short = [name for name in SEGMENTS if window_count(found[name], length) < 1]
    if not short:
        return None
    sizes = ", ".join(f"{name} {found[name][1] - found[name][0]}" for name in SEGMENTS)
    ratio = "" if spec.train_ratio == 1 else f" (train_ratio {spec.train_ratio:g})"
    return (
        f"{source}: {steps} steps are too few: a window has {spec.history} + {spec.horizon} = {length} steps, and "
        f"the segments have {sizes}{ratio}. At least {steps_needed(spec)} steps are needed; or shorten data.history "
        "and data.horizon, or change data.split or data.train_ratio."
    )


def steps_needed(spec: DataSpec) -> int:
    """The smallest number of steps with which every segment has a window."""
    length = spec.history + spec.horizon

    def suffices(steps: int) -> bool:
        found = segments_of(steps, spec.split, spec.train_ratio).values()
        return all(window_count(segment, length) > 0 for segment in found)

    # Two floors take less than two steps from a segment, so this number suffices. A smaller one may suffice too: search downwards.
    smallest = min(spec.split[0] * spec.train_ratio, spec.split[1], spec.split[2])
    steps = math.ceil((length + 2) / smallest)
    while suffices(steps - 1):
        steps -= 1
    return steps


def split_series(steps: int, spec: DataSpec, source: str) -> dict[str, tuple[int, int]]:
    """Segment → (first step, end), each with at least one window.

    Raises:
        DataError: a segment has fewer steps than a window; the message gives the number of steps that is needed.
    """
    message = too_short_message(steps, spec, source)
    if message:
        raise DataError(message)
    return segments_of(steps, spec.split, spec.train_ratio)


def used_steps(segments: Mapping[str, tuple[int, int]]) -> NDArray[np.bool_]:
    """(T,) True at every step that lies in a segment, and therefore in a window."""
    used = np.zeros(segments["test"][1], dtype=bool)
    for start, end in segments.values():
        used[start:end] = True
    return used
