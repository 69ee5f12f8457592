"""Commands on data: ``stlab data inspect`` and ``stlab image``, which draw a data set and one window of it without a model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlab.cli.options import SetOption, coloured, console_for_output, data_spec
from stlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stlab.data import Dataset


def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A data file, or synthetic:city. A network in .npz needs --set data.family=sensors.")
    ],
    overrides: SetOption = None,
    picture: Annotated[Path | None, typer.Option(help="File for the picture. Default: NAME.png in this folder.")] = None,
) -> None:
    """Show the shape, times, missing values, ranges and split of a data set, and draw its mean and its daily profile."""
    from stlab.data import load_dataset
    from stlab.data.formats.readers import READERS, read_content
    from stlab.inspection.data_summary import coverage_of, summarise
    from stlab.report.figures.data_set import data_set_figure
    from stlab.report.figures.style import render

    console = console_for_output()
    suffix = Path(path).suffix.lower()
    # If only networks are stored in this kind of file, the family is known.
    is_network = suffix in READERS["sensors"] and suffix not in READERS["grid"]
    spec = data_spec(path, overrides or [], **({"family": "sensors"} if is_network else {}))
    content = read_content(spec)
    summary = summarise(spec, content)
    lines = [(label, text) for label, text in summary.lines() if label != "problem"]  # the error below lists the problems
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        console.print(coloured(f"{label:<{width}}", "bold", f" {text}"), soft_wrap=True)
    if summary.problems:
        raise UserError("the data cannot be used as it is, so no picture was drawn.\n" + "\n".join(summary.problems))
    dataset = load_dataset(spec)
    target = _target(dataset, picture, "")
    target.write_bytes(render(data_set_figure(dataset, coverage_of(content, spec)), "png"))
    console.print(coloured(f"{'picture':<{width}}", "bold", f" {target}"), soft_wrap=True)


def image(
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="A data file. Each cell of a grid is a node.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="First step of the window: a time or an index. Default: 0.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option("--nodes", metavar="A:B", help="Nodes by index: 0:20 (without 20), or 3,8,11. Default: all."),
    ] = None,
    overrides: SetOption = None,
    picture: Annotated[Path | None, typer.Option(help="File for the picture. Default: NAME_image.png in this folder.")] = None,
) -> None:
    """Draw the correlation image of a window: dynamic time warping, cross-correlation, spectrum, and all three together."""
    spec = data_spec(data, overrides or [], family="sensors")
    if spec.family != "sensors":
        raise UserError(f"data.family: {spec.family}: the image relates nodes. Leave the family out: the cells of a grid are then nodes.")
    from stlab.data import load_dataset
    from stlab.report.model_input import choose_nodes, node_scores

    dataset = load_dataset(spec)
    window = _cut(dataset, data, at, nodes)
    target = _target(dataset, picture, "_image")
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
    of: int  # number of all nodes
    values: torch.Tensor  # (1, N, P)


def _cut(dataset: Dataset, path: str, at: str | None, nodes: str | None) -> _Window:
    """Cut the window. Raises UserError if there is no such window or node."""
    import numpy as np

    series = dataset.windows("train").series
    if series is None:
        raise UserError(f"{path}: ready-made windows have no position in a series. Give the series that they were cut from.")
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
        at: an ISO time, or the index of a step; None for the first step.
        length: number of steps of the series.
        history: number of steps of the window.
        timestamps: the times of the series from its first step on; None if it has none.

    Raises:
        UserError: ``at`` is neither a time nor an index, lies between two steps, or the window does not fit into the series.
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
        raise UserError(f"--at {at}: neither an ISO time, such as {first.isoformat()}, nor the index of a step.") from None
    if time.tzinfo is not None:
        local = time.replace(tzinfo=None).isoformat()
        raise UserError(f"--at {at}: the times of the data have no time zone. Leave it out: {local}.")
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
    """Indices of nodes from ``0:20``, ``3,8,11`` or both, ``0:4,9``. None means all ``count`` nodes.

    Raises:
        UserError: the text has another form, names no node, a node outside the network, or a node twice.
    """
    if text is None:
        return list(range(count))
    chosen: list[int] = []
    for part in text.split(","):
        first, colon, end = (piece.strip() for piece in part.partition(":"))
        numbers = [first, end] if colon else [first]
        if not all(number.isdigit() or (colon and not number) for number in numbers):
            raise UserError(f"--nodes {text}: '{part}' is neither A:B nor an index. Give, for example, 0:{min(count, 20)}.")
        start = int(first or 0)
        stop = int(end) if end else count if colon else start + 1
        if start >= stop:
            raise UserError(
                f"--nodes {text}: '{part}' holds no node, since the end is not included. Give, for example, 0:{min(count, 20)}."
            )
        if stop > count:
            raise UserError(f"--nodes {text}: there are {count} nodes, 0 to {count - 1}; '{part}' goes beyond.")
        chosen += range(start, stop)
    if twice := sorted({node for node in chosen if chosen.count(node) > 1}):
        raise UserError(f"--nodes {text}: node {twice[0]} appears twice. Name each node once.")
    return chosen


def _target(dataset: Dataset, picture: Path | None, suffix: str) -> Path:
    """The file that a figure is written to: ``--picture``, or the name of the data set in the working directory."""
    target = picture or Path(f"{dataset.name.replace(' ', '_')}{suffix}.png")
    if target.exists() and picture is None:
        raise UserError(f"{target} already exists. Name another file with --picture.")
    if not target.parent.is_dir():
        raise UserError(f"--picture {target}: there is no folder {target.parent}. Create it, or name another.")
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
    """Label and text of each line on the terminal."""
    import numpy as np

    from stlab.report.model_input import THRESHOLD, without_missing

    measured = dataset.scaler.inverse(window.values.double()).numpy() + 0.0  # adding 0 turns the −0 that scaling may leave into 0
    readings = without_missing(measured, dataset.protocol.get("mask"))
    missing = int(np.isnan(readings).sum())
    span = "none" if missing == readings.size else f"{np.nanmin(readings):.4g} to {np.nanmax(readings):.4g}"
    found = [f"{_name(dataset, window.nodes[node])} ({f'{scores[node]:.1f}'.replace('-', '−')})" for node in lowest]
    outliers = f"{', '.join(found)} (similarity to the others as a robust z score)" if found else "too few nodes to decide"
    if found and scores.min() >= THRESHOLD:
        outliers = f"none clearly; lowest {outliers}"
    return [
        ("data", path),
        ("window", f"step {window.start}, {window.values.shape[-1]} steps: {_span(window, ' to ')}"),
        ("nodes", f"{_how_many(window)}; the image is made of these alone"),
        ("readings", span + (f", {missing} of {readings.size} missing" if missing else "")),
        ("stands out", outliers),
    ]


def _name(dataset: Dataset, node: int) -> str:
    return str(node) if dataset.node_names is None else f"{node} [{dataset.node_names[node]}]"
