"""From files of raw records to a data set: ``stlab data grid``, ``zones`` and ``sensors``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.errors import DataError
from stlab.sources.cells import Cells, box_of, counted_cells, metric_cells
from stlab.sources.clock import checked_zone, clock_changes, covered_steps, step_seconds
from stlab.sources.dialects import checked_encoding, checked_separator
from stlab.sources.layouts import LAYOUTS
from stlab.sources.outcome import Outcome, Tally, check_malformed, share
from stlab.sources.raw_files import RawFile, raw_files
from stlab.sources.readings import How, ReadingTable
from stlab.sources.records import Loaded, Manner, Want, load
from stlab.sources.span import Span, said_time
from stlab.sources.sql import Progress, database, executed, id_of, number, quoted
from stlab.sources.trips import End, TripCounter, central_box, counted_grid, mark_duplicates
from stlab.sources.write import checked_target, write_grid, write_network

if TYPE_CHECKING:
    import duckdb

Box = tuple[float, float, float, float]
Between = Callable[[Span, datetime, datetime], int]
_MOST_BYTES = 8_000_000_000
_DETECTOR_VALUES = next(layout for layout in LAYOUTS if layout.headless).roles["values"]


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
        self, span: Span, lost: Sequence[str], tallies: Sequence[Tally], kept_between: Between, facts: Mapping[str, object]
    ) -> Outcome:
        """The outcome of this job.

        Args:
            kept_between: how many records that are kept lie between two local times.
        """
        request, loaded = self.request, self.loaded
        common: dict[str, object] = {
            "begin": span.start.isoformat(), "end": span.end.isoformat(), "step_seconds": span.seconds, "steps": span.steps,
            "tz": request.to_tz or request.tz, "layouts": loaded.layouts, "read_as": loaded.dialects, "left_out_days": list(lost),
        }  # fmt: skip
        common |= _clock_facts(request, span, kept_between)
        return Outcome(request.command, [file.name for file in self.files], tallies, loaded.malformed, loaded.examples, {**common, **facts})


def _clock_facts(request: Request, span: Span, kept_between: Between) -> dict[str, object]:
    """What changes of the clocks do to the records: of the result's zone, and of the times' own where that is another."""
    zone, own = request.to_tz or request.tz, request.tz
    facts: dict[str, object] = {}
    if zone is not None and zone != "UTC":
        changes = clock_changes(zone, span.start, span.end)
        facts["clock_changes"] = [change.words(kept_between(span, change.begin, change.end)) for change in changes]
        facts["clock_steps"] = covered_steps(changes, span.start, span.seconds)
    if own is not None and own not in ("UTC", zone):
        day = timedelta(days=1)
        said = [change.words_of_source(own) for change in clock_changes(own, span.start - day, span.end + day)]
        facts["clock_changes"] = [*facts.get("clock_changes", []), *said]  # type: ignore[misc]
    return facts


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
        chosen = said_box or central_box(connection, ends)
        facts["box_said"] = said_box is not None
        grid = counted_cells(chosen, cells) if cells is not None else metric_cells(chosen, float(cell_metres or 0))
        counter = TripCounter(
            connection, ends, {end.channel: grid.index(*map(quoted, end.place)) for end in ends}, job.loaded
        )
        span, outcome = _counted(job, counter, facts | _cell_facts(grid))
        if (size := 4 * span.steps * len(ends) * grid.rows * grid.columns) > _MOST_BYTES:
            raise DataError(
                f"{span.steps:,} steps of {grid.rows} × {grid.columns} cells are {size / 1e9:.0f} GB. Give larger cells, longer steps, or "
                "--from and --to."
            )
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
    span, lost = counter.span(job.begin, job.end, job.seconds)
    tallies = counter.count(span, job.request.progress)
    return span, job.outcome(span, lost, tallies, counter.rows_between, facts)


def _write_places(
    connection: duckdb.DuckDBPyConnection, job: _Job, span: Span, ends: Sequence[End], outcome: Outcome
) -> None:
    """Write every place at every step; without a trip there, 0."""
    node = id_of(connection, "counts", "place")
    sums = ", ".join(f"sum(trips) FILTER (channel = {i}) AS {quoted(end.channel)}" for i, end in enumerate(ends))
    filled = ", ".join(f"CAST(coalesce({quoted(end.channel)}, 0) AS DOUBLE) AS {quoted(end.channel)}" for end in ends)
    nodes = number(connection, "SELECT count(DISTINCT place) FROM counts")
    outcome.facts |= {"nodes": nodes, "zero_is_a_reading": True}
    query = (
        f"WITH c AS (SELECT step, place, {sums} FROM counts GROUP BY step, place), "
        f"places AS (SELECT DISTINCT place, {node} AS node FROM counts), "
        f"s AS (SELECT CAST(range AS BIGINT) AS step FROM range({span.steps})) "
        f"SELECT {span.first_time('s.step')} AS timestamp, places.node AS node, {filled} "
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
    names = list(values) or list(_DETECTOR_VALUES)
    roles = {f"value{i}": name for i, name in enumerate(names)}
    folded_names = [name.casefold() for name in names]
    for i, name in enumerate(folded_names):
        if name in folded_names[:i]:
            raise DataError(f"--value {names[i]}: is given twice, at most in another case. Name each column once.")
        if name in ("timestamp", "node"):
            raise DataError(f"--value {names[i]}: the result has a column of that name. Rename it in the file.")
    option = "--value" if values else "--value, by default those of Caltrans PeMS"
    options = {**columns.options, **dict.fromkeys(roles, option)}
    want = Want("sensors", ("time",), tuple(roles), ("node",), {**columns.said, **roles}, options)
    with _loaded(request, want, (".parquet",)) as (connection, job):
        table = ReadingTable(connection, roles, how, job.loaded, request.without)
        span, lost = table.span(job.begin, job.end, job.seconds)
        tallies = table.write(span, request.progress)
        outcome = job.outcome(span, lost, tallies, table.rows_between, {"how": how, **table.facts(span)})
        write_network(connection, _whole_span(names, span), job.target, outcome.metadata())
        return outcome


def _whole_span(names: Sequence[str], span: Span) -> str:
    """SQL of all readings, with a row without a reading where nobody has one in the first or the last step, so that the span is kept."""
    chosen = ", ".join(map(quoted, names))
    ends = f"(SELECT {span.first_time('0')} AS timestamp UNION SELECT {span.first_time(str(span.steps - 1))})"
    nothing = f"(SELECT min(node) FROM steps){', NULL' * len(names)}"
    empty = f"SELECT timestamp, {nothing} FROM {ends} WHERE timestamp NOT IN (SELECT timestamp FROM steps)"
    return f"SELECT timestamp, node, {chosen} FROM steps UNION ALL {empty} ORDER BY 1, 2"


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
    if request.decimal not in (None, ",", "."):
        raise DataError(f"--decimal {request.decimal}: give , or .")
    job = _Job(request, seconds, begin, end, checked_target(request.out, suffixes, request.force))
    delimiter = None if request.delimiter is None else checked_separator(request.delimiter)
    encoding = None if request.encoding is None else checked_encoding(request.encoding)
    manner = Manner(tz, to_tz, request.time_format, delimiter, encoding, request.decimal)
    with tempfile.TemporaryDirectory(prefix="stlab-") as folder:
        (archives := Path(folder, "archives")).mkdir()
        job.files = raw_files(request.files, archives)
        if any(file.path.resolve() == job.target.resolve() for file in job.files):
            raise DataError(f"--out {request.out}: is one of the files that are read. Name another.")
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
