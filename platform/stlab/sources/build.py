"""From files of raw records to a data set: ``stlab data grid``, ``zones`` and ``sensors``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.errors import DataError
from stlab.sources.cells import Cells, box_of, counted_cells, metric_cells
from stlab.sources.clock import checked_zone, clock_changes, covered_steps, step_seconds
from stlab.sources.outcome import Outcome, Tally, check_malformed, share
from stlab.sources.raw_files import RawFile, raw_files
from stlab.sources.readings import How, ReadingTable
from stlab.sources.records import Loaded, Manner, Progress, Want, database, executed, load, quoted
from stlab.sources.span import Span, said_time
from stlab.sources.trips import End, TripCounter, central_box, counted_grid, mark_duplicates
from stlab.sources.write import checked_target, write_grid, write_network

if TYPE_CHECKING:
    import duckdb

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Request:
    """What every command is told: the options of the command line, under their names there."""

    files: Sequence[str]
    out: str
    step: str
    command: str = ""
    """As it was typed, for the metadata."""
    tz: str | None = None
    to_tz: str | None = None
    time_format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    begin: str | None = None
    end: str | None = None
    max_bad: str = "1%"
    duplicates: str = "drop"
    without: Sequence[str] = ()
    force: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Columns:
    """Role → the files' column, as far as it is said, and the option that says it."""

    said: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Job:
    """Records that are loaded, and what the outcome needs."""

    request: Request
    seconds: int
    begin: datetime | None
    end: datetime | None
    target: Path
    files: Sequence[RawFile] = ()
    loaded: Loaded = field(default_factory=Loaded)

    def outcome(
        self, span: Span, tallies: Sequence[Tally], rows_between: object, facts: Mapping[str, object]
    ) -> Outcome:
        request, loaded = self.request, self.loaded
        common: dict[str, object] = {
            "begin": span.start.isoformat(), "end": span.end.isoformat(), "step_seconds": span.seconds, "steps": span.steps,
            "tz": request.to_tz or request.tz, "layouts": loaded.layouts, "read_as": loaded.dialects,
        }  # fmt: skip
        zone = request.to_tz or request.tz
        if zone is not None and zone != "UTC":
            changes = clock_changes(zone, span.start, span.end)
            common["clock_changes"] = [change.words(rows_between(change.begin, change.end)) for change in changes]  # type: ignore[operator]
            common["clock_steps"] = covered_steps(changes, span.start, span.seconds)
        return Outcome(
            request.command,
            [file.name for file in self.files],
            tallies,
            loaded.malformed,
            loaded.examples,
            {**common, **facts},
        )


def make_grid(
    request: Request, columns: Columns, *, also_end: bool, cells: str | None = None, cell_metres: float | None = None,
    h3: int | None = None, box: Box | None = None,
) -> Outcome:  # fmt: skip
    """Trips counted in the cells of a map.

    Args:
        also_end: whether trips are counted where they end, too.
        cells, cell_metres, h3: one of them: rows × columns, the side of square cells, or the resolution of H3's hexagons.
        box: south, west, north, east; None for the central 99 % of the coordinates.

    Raises:
        DataError: what is wrong with the files or the options.
    """
    if sum(given is not None for given in (cells, cell_metres, h3)) != 1:
        raise DataError("give one of --cells 16x8, --cell-metres 500 and --h3 8.")
    said_box = None if box is None else box_of(box)
    ends = [
        End("outflow", "time", ("lat", "lon")),
        *([End("inflow", "end_time", ("end_lat", "end_lon"))] if also_end else []),
    ]
    want = Want(
        "grid",
        tuple(end.time for end in ends),
        tuple(role for end in ends for role in end.place),
        (),
        columns.said,
        columns.options,
    )
    with _loaded(request, want, (".npz",) if h3 is None else (".parquet",)) as (connection, job):
        chosen = said_box or central_box(connection, ends)
        facts: dict[str, object] = {
            "box": [chosen.south, chosen.west, chosen.north, chosen.east],
            "box_said": said_box is not None,
        }
        if h3 is not None:
            from stlab.sources.hexagons import mark_hexagons

            places = mark_hexagons(connection, ends, said_box, h3)
            counter = TripCounter(connection, ends, places, job.loaded)
            span, outcome = _counted(job, counter, facts | {"h3": h3})
            _write_places(connection, job, span, ends, outcome)
            return outcome
        grid = counted_cells(chosen, cells) if cells is not None else metric_cells(chosen, float(cell_metres or 0))
        counter = TripCounter(
            connection, ends, {end.channel: grid.index(*map(quoted, end.place)) for end in ends}, job.loaded
        )
        span, outcome = _counted(job, counter, facts | _cell_facts(grid))
        values = counted_grid(connection, span, len(ends), grid.rows * grid.columns).reshape(
            span.steps, len(ends), grid.rows, grid.columns
        )
        write_grid(job.target, values, span.timestamps(), [end.channel for end in ends], outcome.metadata())
        return outcome


def _cell_facts(cells: Cells) -> dict[str, object]:
    height, width = (side / count for side, count in zip(cells.box.metres, (cells.rows, cells.columns), strict=True))
    box = cells.box
    return {
        "rows": cells.rows, "columns": cells.columns, "cell_metres": [round(height, 1), round(width, 1)],
        "box": [box.south, box.west, box.north, box.east], "row_0": "north", "column_0": "west",
    }  # fmt: skip


def make_zones(request: Request, columns: Columns, *, also_end: bool) -> Outcome:
    """Trips counted by the zones that the records name: a network whose nodes are the zones.

    Raises:
        DataError: what is wrong with the files or the options.
    """
    ends = [End("outflow", "time", ("zone",)), *([End("inflow", "end_time", ("end_zone",))] if also_end else [])]
    want = Want(
        "zones", tuple(end.time for end in ends), (), tuple(end.place[0] for end in ends), columns.said, columns.options
    )
    with _loaded(request, want, (".parquet",)) as (connection, job):
        counter = TripCounter(
            connection, ends, {end.channel: quoted(end.place[0]) for end in ends}, job.loaded, request.without
        )
        span, outcome = _counted(job, counter, {})
        _write_places(connection, job, span, ends, outcome)
        return outcome


def _counted(job: _Job, counter: TripCounter, facts: Mapping[str, object]) -> tuple[Span, Outcome]:
    span = counter.span(job.begin, job.end, job.seconds)
    tallies = counter.count(span, job.request.progress)
    return span, job.outcome(span, tallies, counter.rows_between, facts)


def _write_places(
    connection: duckdb.DuckDBPyConnection, job: _Job, span: Span, ends: Sequence[End], outcome: Outcome
) -> None:
    """Write every place at every step; without a trip there, 0."""
    odd = connection.execute(
        "SELECT count(*) FROM counts WHERE NOT regexp_full_match(place, '0|[1-9][0-9]{0,17}')"
    ).fetchone()
    node = "CAST(place AS BIGINT)" if odd and odd[0] == 0 else "place"
    sums = ", ".join(f"sum(trips) FILTER (channel = {i}) AS {quoted(end.channel)}" for i, end in enumerate(ends))
    filled = ", ".join(f"CAST(coalesce({quoted(end.channel)}, 0) AS DOUBLE) AS {quoted(end.channel)}" for end in ends)
    nodes = connection.execute("SELECT count(DISTINCT place) FROM counts").fetchone()
    outcome.facts |= {"nodes": nodes[0] if nodes else 0, "zero_is_a_reading": True}
    query = (
        f"WITH c AS (SELECT step, place, {sums} FROM counts GROUP BY step, place), "
        f"places AS (SELECT DISTINCT place FROM counts), s AS (SELECT CAST(range AS BIGINT) AS step FROM range({span.steps})) "
        f"SELECT {span.first_time('s.step')} AS timestamp, {node.replace('place', 'places.place')} AS node, {filled} "
        "FROM s CROSS JOIN places LEFT JOIN c ON c.step = s.step AND c.place = places.place ORDER BY 1, 2"
    )
    write_network(connection, query, job.target, outcome.metadata())


def make_sensors(request: Request, columns: Columns, *, values: Sequence[str], how: How = "mean") -> Outcome:
    """Readings of sensors or counters on even steps: a network whose nodes they are.

    Args:
        values: the columns with readings, each a channel; empty for those of a known layout.
        how: how several readings of a step become one.

    Raises:
        DataError: what is wrong with the files or the options.
    """
    from stlab.sources.layouts import LAYOUTS

    target = checked_target(request.out, (".parquet",), request.force)
    known = next(layout for layout in LAYOUTS if layout.headless)
    names = list(values) or list(known.roles["values"])
    roles = {f"value{i}": name for i, name in enumerate(names)}
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"--value {twice[0]}: is given twice. Name each column once.")
    options = {**columns.options, **dict.fromkeys(roles, "--value")}
    want = Want("sensors", ("time",), tuple(roles), ("node",), {**columns.said, **roles}, options)
    with _loaded(request, want, (".parquet",)) as (connection, job):
        table = ReadingTable(connection, roles, how, job.loaded, request.without)
        span = table.span(job.begin, job.end, job.seconds)
        tallies = table.write(span, request.progress)
        outcome = job.outcome(span, tallies, table.rows_between, {"how": how, **table.facts(span)})
        chosen = ", ".join(quoted(name) for name in names)
        write_network(
            connection, f"SELECT timestamp, node, {chosen} FROM steps ORDER BY 1, 2", target, outcome.metadata()
        )
        return outcome


@contextmanager
def _loaded(request: Request, want: Want, suffixes: Sequence[str]) -> Iterator[tuple[duckdb.DuckDBPyConnection, _Job]]:
    """The records of a request in a database that lasts as long as the block; its options are checked before anything is read."""
    seconds, most = step_seconds(request.step), share(request.max_bad)
    tz = None if request.tz is None else checked_zone(request.tz, "--tz")
    to_tz = None if request.to_tz is None else checked_zone(request.to_tz, "--to-tz")
    if to_tz and not tz:
        raise DataError(f"--to-tz {to_tz}: say the zone that the times are in, too: --tz UTC.")
    begin = None if request.begin is None else said_time(request.begin, "--from")
    end = None if request.end is None else said_time(request.end, "--to")
    if begin and end and begin >= end:
        raise DataError(f"--from {request.begin} --to {request.end}: the end has to be later than the beginning.")
    if request.duplicates not in ("drop", "keep"):
        raise DataError(f"--duplicates {request.duplicates}: give drop or keep.")
    job = _Job(request, seconds, begin, end, checked_target(request.out, suffixes, request.force))
    manner = Manner(tz, to_tz, request.time_format, request.delimiter, request.encoding, request.decimal)
    with tempfile.TemporaryDirectory(prefix="stlab-") as folder:
        (archives := Path(folder, "archives")).mkdir()
        job.files = raw_files(request.files, archives)
        with database(Path(folder), request.progress) as connection:
            job.loaded = load(connection, job.files, want, manner, request.progress)
            if not job.loaded.rows:
                raise DataError(f"{', '.join(file.name for file in job.files[:3])}: a header and no row.")
            check_malformed(job.loaded, most)
            if request.duplicates == "drop":
                mark_duplicates(connection, request.progress)
            else:
                executed(connection, "CREATE TABLE surplus (id BIGINT)")
            yield connection, job
