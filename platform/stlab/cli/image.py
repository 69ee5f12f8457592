"""``stlab image``: what a window of a sensor network looks like as a correlation image, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlab.cli.options import SetOption, console_for_output, data_spec
from stlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stlab.data import Dataset


def image(
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="A data file; of a grid each cell is a node.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="The window's first step: time or index. Default: 0.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option("--nodes", metavar="A:B", help="Nodes by index: 0:20 (20 left out), or 3,8,11. Default: all."),
    ] = None,
    overrides: SetOption = None,
    picture: Annotated[Path | None, typer.Option(help="Where it goes; by default NAME_image.png here.")] = None,
) -> None:
    """Draw a window's correlation image: dynamic time warping, cross-correlation, spectrum, and the three together."""
    spec = data_spec(data, overrides or [], family="sensors")
    if spec.family != "sensors":
        raise UserError(f"data.family: {spec.family}: an image is of nodes. Leave it out: cells are nodes too.")
    from stlab.data import load_dataset
    from stlab.report.model_input import choose_nodes, node_scores

    dataset = load_dataset(spec)
    window = _cut(dataset, data, at, nodes)
    target = _target(dataset, picture)
    channels = _channels(window)
    scores = node_scores(channels)
    lowest = choose_nodes(scores).outstanding
    target.write_bytes(_draw(dataset, window, channels, list(lowest)))
    console = console_for_output()
    for label, text in [*_lines(dataset, data, window, scores, lowest), ("picture", str(target))]:
        console.print(f"{label:<12}", style="bold", end="", highlight=False)
        console.print(text, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Window:
    """P steps of the chosen nodes, scaled."""

    start: int
    first: np.datetime64 | None  # time of the first step
    last: np.datetime64 | None
    nodes: list[int]
    of: int  # nodes in all
    values: torch.Tensor  # (1, N, P)


def _cut(dataset: Dataset, path: str, at: str | None, nodes: str | None) -> _Window:
    """Raises UserError: no such window or nodes."""
    import numpy as np

    series = dataset.windows("train").series
    if series is None:
        raise UserError(f"{path}: ready-made windows have no place in a series. Give the series they were cut from.")
    length, history = len(series), dataset.info.history
    start = find_step(at, length, history, dataset.train.timestamps, dataset.info.slots_per_day)
    chosen = find_nodes(nodes, series.shape[1])
    times = dataset.train.timestamps
    step = None if dataset.info.slots_per_day is None else np.timedelta64(86_400 // dataset.info.slots_per_day, "s")
    first = None if times is None or step is None else times[0] + start * step
    return _Window(
        start=start,
        first=first,
        last=None if first is None or step is None else first + (history - 1) * step,
        nodes=chosen,
        of=series.shape[1],
        values=series[start : start + history, chosen, 0].T[None],
    )


def find_step(
    at: str | None, length: int, history: int, timestamps: np.ndarray | None, slots_per_day: int | None
) -> int:
    """The step at which a window starts, from a time or an index.

    Args:
        at: an ISO time, or the index of a step; None for the first.
        length: steps of the series.
        history: steps of the window.
        timestamps: of the series, from its first step on; None where it has none.

    Raises:
        UserError: not a time or an index, a time between steps, a window that is not wholly inside the series.
    """
    if at is None:
        return 0
    last = length - history
    if at.strip().lstrip("-").isdigit():
        step = int(at)
        if not 0 <= step <= last:
            raise UserError(
                f"--at {at}: a window of {history} steps can start at step 0 to {last}; the series has {length} steps."
            )
        return step
    if timestamps is None or slots_per_day is None:
        raise UserError(
            f"--at {at}: the data have no timestamps. Give the index of a step, 0 to {last}, or the times with --set "
            "data.start=… --set data.step_minutes=…."
        )
    return _step_of_time(at, last, history, timestamps[0].item(), 86_400 // slots_per_day)


def _step_of_time(at: str, last: int, history: int, first: datetime, seconds: int) -> int:
    from datetime import timedelta

    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        raise UserError(f"--at {at}: neither an ISO time, as {first.isoformat()}, nor a step's index.") from None
    if time.tzinfo is not None:
        local = time.replace(tzinfo=None).isoformat()
        raise UserError(f"--at {at}: the data's times have no time zone. Leave it out: {local}.")
    end = first + timedelta(seconds=seconds * last)
    if not first <= time <= end:
        raise UserError(
            f"--at {at}: outside the series. A window of {history} steps can start from {first.isoformat()} to "
            f"{end.isoformat()}."
        )
    step, rest = divmod((time - first).total_seconds(), seconds)
    if rest:
        before = first + timedelta(seconds=seconds * step)
        after = before + timedelta(seconds=seconds)
        near = before.isoformat() if after > end else f"{before.isoformat()} or {after.isoformat()}"
        raise UserError(f"--at {at}: between two steps, which are {seconds} s apart. Give {near}.")
    return int(step)


def find_nodes(text: str | None, count: int) -> list[int]:
    """Indices of nodes from ``0:20``, ``3,8,11`` or both, ``0:4,9``; None means all ``count``.

    Raises:
        UserError: not of that form, empty, outside the network, a node twice.
    """
    if text is None:
        return list(range(count))
    chosen: list[int] = []
    for part in text.split(","):
        first, colon, end = (piece.strip() for piece in part.partition(":"))
        numbers = [first, end] if colon else [first]
        if not all(number.isdigit() or (colon and not number) for number in numbers):
            raise UserError(f"--nodes {text}: '{part}' is neither A:B nor an index. Give 0:{min(count, 20)}, say.")
        start = int(first or 0)
        stop = int(end) if end else count if colon else start + 1
        if start >= stop:
            raise UserError(
                f"--nodes {text}: '{part}' holds no node, as the end is left out. Give 0:{min(count, 20)}, say."
            )
        if stop > count:
            raise UserError(f"--nodes {text}: there are {count} nodes, 0 to {count - 1}; '{part}' goes beyond.")
        chosen += range(start, stop)
    if twice := sorted({node for node in chosen if chosen.count(node) > 1}):
        raise UserError(f"--nodes {text}: node {twice[0]} is there twice. Name each node once.")
    return chosen


def _target(dataset: Dataset, picture: Path | None) -> Path:
    target = picture or Path(f"{dataset.name.replace(' ', '_')}_image.png")
    if target.exists() and picture is None:
        raise UserError(f"{target} is there already; say where the picture goes with --picture.")
    if not target.parent.is_dir():
        raise UserError(f"--picture {target}: there is no folder {target.parent}. Make it, or give another.")
    return target


def _channels(window: _Window) -> dict[str, np.ndarray]:
    from stmodels.correlation import CHANNELS, correlation_image, correlation_volume

    pixels = correlation_image(correlation_volume(window.values))[0].numpy()
    return dict(zip(CHANNELS, pixels, strict=True))


def _draw(dataset: Dataset, window: _Window, channels: dict[str, np.ndarray], marked: list[int]) -> bytes:
    from stlab.report.figures.nodes import image_figure
    from stlab.report.figures.style import render

    title = f"{dataset.name}, {_span(window, ' to ')}, {_how_many(window)}"
    return render(image_figure(channels, [str(node) for node in window.nodes], marked, title), "png")


def _span(window: _Window, to: str) -> str:
    steps = window.values.shape[-1]
    if window.first is None:
        return f"steps {window.start}{to}{window.start + steps - 1}"
    first, last = (str(time).replace("T", " ")[:-3] for time in (window.first, window.last))
    return f"{first}{to}{last[11:] if last[:10] == first[:10] else last}"


def _how_many(window: _Window) -> str:
    return f"{window.of} nodes" if len(window.nodes) == window.of else f"{len(window.nodes)} of {window.of} nodes"


def _lines(
    dataset: Dataset, path: str, window: _Window, scores: np.ndarray, lowest: tuple[int, ...]
) -> list[tuple[str, str]]:
    """Label and text, in reading order, for a terminal."""
    import numpy as np

    from stlab.report.model_input import THRESHOLD, without_missing

    measured = dataset.scaler.inverse(window.values.double()).numpy() + 0.0  # no −0 from scaling and back
    readings = without_missing(measured, dataset.protocol.get("mask"))
    missing = int(np.isnan(readings).sum())
    span = "none" if missing == readings.size else f"{np.nanmin(readings):.4g} to {np.nanmax(readings):.4g}"
    found = [f"{_name(dataset, window.nodes[node])} ({f'{scores[node]:.1f}'.replace('-', '−')})" for node in lowest]
    told = f"{', '.join(found)} (likeness to the others as a robust z score)" if found else "too few nodes to say"
    if found and scores.min() >= THRESHOLD:
        told = f"none clearly; lowest {told}"
    return [
        ("data", path),
        ("window", f"step {window.start}, {window.values.shape[-1]} steps: {_span(window, ' to ')}"),
        ("nodes", f"{_how_many(window)}; the image is made of these alone"),
        ("readings", span + (f", {missing} of {readings.size} missing" if missing else "")),
        ("stands out", told),
    ]


def _name(dataset: Dataset, node: int) -> str:
    return str(node) if dataset.node_names is None else f"{node} [{dataset.node_names[node]}]"
