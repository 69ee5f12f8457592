"""Commands that turn raw records into data sets: ``stlab data grid``, ``zones``, ``sensors``, ``convert`` and ``formats``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlab.cli.options import coloured, console_for_output

if TYPE_CHECKING:
    from stlab.sources.build import Request
    from stlab.sources.sql import Progress

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES", help="CSV (also .gz, .zst, .zip) or Parquet; paths, patterns in quotes, and s3://… alike."
    ),
]
Step = Annotated[str, typer.Option("--step", help="Length of a step: 5min, 30min, 1h. It divides a day.")]
Tz = Annotated[
    str | None,
    typer.Option(
        "--tz",
        metavar="ZONE",
        help="Time zone of the times: America/New_York, UTC, …; of the result where they have offsets.",
    ),
]
ToTz = Annotated[
    str | None, typer.Option("--to-tz", metavar="ZONE", help="Time zone of the result, where the times are in another.")
]
Format = Annotated[
    str | None,
    typer.Option(
        "--time-format", help="How times are written, as strptime has it: '%d.%m.%Y %H:%M'; or epoch, epoch_ms."
    ),
]
Delimiter = Annotated[
    str | None, typer.Option("--delimiter", help="Between the columns of a text file. Default: by its first line.")
]
Encoding = Annotated[
    str | None,
    typer.Option("--encoding", help="Of a text file: utf-8, latin-1 or utf-16. Default: seen from its bytes."),
]
Begin = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="First step. Default: the first day with enough records.")
]
End = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="End, not included. Default: after the last day with enough.")
]
MaxBad = Annotated[str, typer.Option("--max-bad", help="Share of malformed rows from which on the files are refused.")]
Duplicates = Annotated[
    str, typer.Option("--duplicates", help="Rows that are equal in every column: drop all but one, or keep.")
]
Out = Annotated[
    str, typer.Option("--out", metavar="FILE", help="The data set: .npz for a grid, .parquet for a network.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the data set if it is there.")]


def grid(
    files: Files,
    out: Out,
    step: Step = "1h",
    cells: Annotated[str | None, typer.Option("--cells", metavar="ROWSxCOLUMNS", help="Cut the box so: 16x8.")] = None,
    cell_metres: Annotated[float | None, typer.Option("--cell-metres", help="Side of square cells.")] = None,
    h3: Annotated[int | None, typer.Option("--h3", help="Resolution of H3's hexagons; they become a network.")] = None,
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            "--box", metavar="SOUTH WEST NORTH EAST", help="Degrees. Default: the central 99 % of the coordinates."
        ),
    ] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="When a trip begins.")] = None,
    lat: Annotated[str | None, typer.Option("--lat", metavar="COLUMN", help="Latitude where it begins.")] = None,
    lon: Annotated[str | None, typer.Option("--lon", metavar="COLUMN", help="Longitude where it begins.")] = None,
    also_end: Annotated[
        tuple[str, str, str] | None,
        typer.Option("--also-end", metavar="LAT LON TIME", help="Columns of a trip's end: count inflow, too."),
    ] = None,
    starts_only: Annotated[bool, typer.Option("--starts-only", help="Of a known layout, count no inflow.")] = False,
    tz: Tz = None,
    to_tz: ToTz = None,
    time_format: Format = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    begin: Begin = None,
    end: End = None,
    max_bad: MaxBad = "1%",
    duplicates: Duplicates = "drop",
    force: Force = False,
) -> None:
    """Count trips in the cells of a map: outflow where they begin, inflow where they end."""
    from stlab.sources import words
    from stlab.sources.build import make_grid

    end_roles = dict(zip(("end_lat", "end_lon", "end_time"), also_end or (), strict=False))
    columns = _columns(
        {"time": time, "lat": lat, "lon": lon, **end_roles},
        dict.fromkeys(("end_lat", "end_lon", "end_time"), "--also-end"),
    )
    is_known_layout = not (time or lat or lon)
    options: dict[str, Any] = {
        "also_end": bool(also_end) or (is_known_layout and not starts_only),
        "cells": cells,
        "cell_metres": cell_metres,
        "h3": h3,
        "box": box,
    }
    with _progress() as told:
        request = _request(
            files, out, step, tz, to_tz, time_format, delimiter, encoding, begin, end, max_bad, duplicates, force, told
        )
        outcome = make_grid(request, columns, **options)
    _print(words.lines(outcome), out)


def zones(
    files: Files,
    out: Out,
    step: Step = "30min",
    zone: Annotated[str | None, typer.Option("--zone", metavar="COLUMN", help="Zone where a trip begins.")] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="When it begins.")] = None,
    also_end: Annotated[
        str | None, typer.Option("--also-end", metavar="COLUMN", help="Zone where it ends: count the inflow, too.")
    ] = None,
    end_time: Annotated[str | None, typer.Option("--end-time", metavar="COLUMN", help="When it ends.")] = None,
    starts_only: Annotated[bool, typer.Option("--starts-only", help="Of a known layout, count no inflow.")] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="ZONE", help="A zone to leave out: 264. May be repeated.")
    ] = None,
    tz: Tz = None,
    to_tz: ToTz = None,
    time_format: Format = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    begin: Begin = None,
    end: End = None,
    max_bad: MaxBad = "1%",
    duplicates: Duplicates = "drop",
    force: Force = False,
) -> None:
    """Count trips by the zones that they name: a network of zones."""
    from stlab.errors import UserError
    from stlab.sources import words
    from stlab.sources.build import make_zones

    columns = _columns(
        {"zone": zone, "time": time, "end_zone": also_end, "end_time": end_time},
        {"end_zone": "--also-end", "end_time": "--end-time"},
    )
    if end_time and not also_end:
        raise UserError(f"--end-time {end_time}: say the zone of the end, too: --also-end COLUMN.")
    with_end = bool(also_end) or (not (zone or time) and not starts_only)
    with _progress() as told:
        request = _request(
            files,
            out,
            step,
            tz,
            to_tz,
            time_format,
            delimiter,
            encoding,
            begin,
            end,
            max_bad,
            duplicates,
            force,
            told,
            without or (),
        )
        outcome = make_zones(request, columns, also_end=with_end)
    _print(words.lines(outcome), out)


def sensors(
    files: Files,
    out: Out,
    step: Step = "5min",
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="When a reading was taken.")] = None,
    node: Annotated[str | None, typer.Option("--node", metavar="COLUMN", help="Id of the sensor.")] = None,
    value: Annotated[
        list[str] | None, typer.Option("--value", metavar="COLUMN", help="Readings, a channel each. May be repeated.")
    ] = None,
    how: Annotated[
        str, typer.Option("--how", help="How several readings of a step become one: mean, sum, max, min, last.")
    ] = "mean",
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NODE", help="A sensor to leave out. May be repeated.")
    ] = None,
    decimal: Annotated[
        str | None, typer.Option("--decimal", help="Decimal sign. Default: a comma where it separates no columns.")
    ] = None,
    tz: Tz = None,
    to_tz: ToTz = None,
    time_format: Format = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    begin: Begin = None,
    end: End = None,
    max_bad: MaxBad = "1%",
    duplicates: Duplicates = "drop",
    force: Force = False,
) -> None:
    """Bring readings of sensors or counters, one a line, onto even steps."""
    from dataclasses import replace

    from stlab.errors import UserError
    from stlab.sources import words
    from stlab.sources.build import make_sensors

    if how not in ("mean", "sum", "max", "min", "last"):
        raise UserError(f"--how {how}: give mean, sum, max, min or last.")
    columns = _columns({"time": time, "node": node}, {})
    with _progress() as told:
        request = _request(
            files,
            out,
            step,
            tz,
            to_tz,
            time_format,
            delimiter,
            encoding,
            begin,
            end,
            max_bad,
            duplicates,
            force,
            told,
            without or (),
        )
        outcome = make_sensors(replace(request, decimal=decimal), columns, values=value or (), how=how)  # type: ignore[arg-type]
    _print(words.lines(outcome), out)


def convert(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or folder in a layout that `stlab data formats` lists.")],
    out: Out,
    start: Annotated[str | None, typer.Option("--start", metavar="TIME", help="Time of the first step, for files without dates.")] = None,
    step: Annotated[str | None, typer.Option("--step", help="Length of a step, where the files do not say it.")] = None,
    distances: Annotated[
        str | None, typer.Option("--distances", metavar="FILE.csv", help="Write the edges of the network, for data.distances.")
    ] = None,
    force: Force = False,
) -> None:
    """Turn a data set of another project into one of stlab's: .npz, or .parquet for a network."""
    from stlab.sources.convert import convert as converted

    made = converted(path, out, start=start, step=step, distances=distances, force=force, command=_command())
    found = made.foreign
    axes = "T, C, H, W" if found.family == "grid" else "T, N, C"
    lines = [("read", f"{path} ({found.layout})"), ("shape", f"({axes}) = {found.values.shape}, {found.family}")]
    if found.times is not None:
        lines.append(("times", f"{found.times[0]} to {found.times[-1]}"))
    lines.append(("missing", f"{made.missing:,} of {found.values.size:,} values"))
    lines += [("note", note) for note in found.notes]
    if made.edges is not None:
        lines.append(("edges", f"{len(found.edges):,} in {made.edges}: --set data.distances={made.edges}"))
    _print(lines, out, more=" --set data.family=sensors" if found.family == "sensors" and out.endswith(".npz") else "")


def network(
    path: Annotated[str, typer.Argument(metavar="FILE.csv", help="The nodes' places; with --routed, a list from,to,cost.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE.csv", help="The edges, for data.distances.")],
    node: Annotated[str, typer.Option("--node", metavar="COLUMN", help="Id of a node, as the readings have it.")] = "node",
    lat: Annotated[str, typer.Option("--lat", metavar="COLUMN", help="Its latitude.")] = "lat",
    lon: Annotated[str, typer.Option("--lon", metavar="COLUMN", help="Its longitude.")] = "lon",
    routed: Annotated[bool, typer.Option("--routed", help="The file has lengths of routes instead of places.")] = False,
    neighbours: Annotated[int | None, typer.Option("--neighbours", help="Edges from each node to so many nearest.")] = None,
    radius_metres: Annotated[float | None, typer.Option("--radius-metres", help="Edges no longer than this.")] = None,
    force: Force = False,
) -> None:
    """Make the edges of a network, with lengths and Gaussian weights, from the places of its nodes or from routes."""
    from stlab.sources.network import build_network

    made = build_network(path, out, node=node, lat=lat, lon=lon, routed=routed, neighbours=neighbours, metres=radius_metres, force=force)
    alone = len(made.nodes) - len(set(made.ends.ravel().tolist()))
    lines = [
        ("nodes", f"{len(made.nodes):,}, {alone:,} without an edge"),
        ("edges", f"{len(made.ends):,}, {made.metres.min():.0f} to {made.metres.max():.0f} m, in the direction from, to"),
        ("weight", f"exp(−(cost / σ)²), σ = {made.sigma:.1f} m, the deviation of all costs"),
    ]
    _print(lines, out, next_step=("use it", f"--set data.distances={shlex.quote(out)} --set data.graph=gaussian"))


def sources() -> None:
    """List public data sets: what they hold, where they are, under which terms, and the commands that make a study of them."""
    from stlab.sources.published import SOURCES

    console = console_for_output()
    for one in SOURCES:
        console.print(coloured(one.name, "bold", f"   {one.about}"), soft_wrap=True)
        console.print(f"  at     {one.address}", highlight=False, soft_wrap=True)
        console.print(f"  terms  {one.terms}", highlight=False, soft_wrap=True)
        for command in one.commands:
            console.print(f"  $ {command}", highlight=False, soft_wrap=True)
    console.print("stlab fetches none of them.", highlight=False)


def formats() -> None:
    """List the layouts that are known, and the columns or files that each needs."""
    from stlab.sources.foreign import LAYOUTS as FOREIGN
    from stlab.sources.layouts import LAYOUTS

    console = console_for_output()
    for layout in LAYOUTS:
        console.print(coloured(f"{layout.title}", "bold", f"   stlab data {layout.command}"), soft_wrap=True)
        for role, names in layout.roles.items():
            joined = ", ".join(names) if role == "values" else " or ".join(names)
            console.print(f"  {role:<9} {joined}", highlight=False, soft_wrap=True)
    for title, needs in FOREIGN:
        console.print(coloured(title, "bold", "   stlab data convert"), soft_wrap=True)
        console.print(f"  {needs}", highlight=False, soft_wrap=True)
    console.print("Other columns are said with the options of stlab data grid, zones and sensors.", highlight=False)


def _command() -> str:
    """The command as it was typed."""
    return shlex.join(["stlab", *sys.argv[1:]])


def _columns(said: Mapping[str, str | None], options: Mapping[str, str]) -> Any:
    from stlab.sources.build import Columns

    return Columns(
        {role: name for role, name in said.items() if name},
        {**{role: f"--{role.replace('_', '-')}" for role in said}, **options},
    )


def _request(
    files: list[str], out: str, step: str, tz: str | None, to_tz: str | None, time_format: str | None, delimiter: str | None,
    encoding: str | None, begin: str | None, end: str | None, max_bad: str, duplicates: str, force: bool, progress: Progress | None,
    without: tuple[str, ...] | list[str] = (),
) -> Request:  # fmt: skip
    from stlab.sources.build import Request

    return Request(
        files, out, step, _command(), tz, to_tz, time_format, delimiter, encoding, None, begin, end, max_bad, duplicates, tuple(without),
        force, progress,
    )  # fmt: skip


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """What is done at the moment, as a bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("looking", total=1.0)
        yield lambda doing, done: bar.update(task, description=doing, completed=done)


def _print(lines: Iterable[tuple[str, str]], out: str, more: str = "", next_step: tuple[str, str] | None = None) -> None:
    """What was made and of what, a line each."""
    console = console_for_output()
    found = [*lines, ("written", f"{out} ({_size(Path(out).expanduser().stat().st_size)})")]
    found.append(next_step or ("look at it", f"stlab data inspect {shlex.quote(out)}{more}"))
    width = max(len(label) for label, _ in found)
    for label, text in found:
        console.print(coloured(f"{label:<{width}}", "bold", f" {text}"), soft_wrap=True)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
