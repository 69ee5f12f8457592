"""Raw records in a DuckDB table: files of different years and dialects, read together, with nothing dropped in silence.

A cell that is there but cannot be read is marked ``bad``, so that what is malformed can be counted and named.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import duckdb

from stlab.errors import DataError
from stlab.sources.dialects import EPOCHS, Dialect, TimeForm, has_decimal_comma, opened, text_dialect, time_form
from stlab.sources.layouts import LAYOUTS, Layout, folded, headless_layout, recognised
from stlab.sources.raw_files import RawFile
from stlab.sources.sql import Progress, executed, literal, number, quoted

_NULLS = ("", "NULL", "null", "NaN", "nan", "NA", "N/A", "None", "\\N")
EXAMPLES = 3
_MOST_CELLS = 100_000  # unreadable cells that are looked for in a file


@dataclass(frozen=True)
class Want:
    """What a command reads of each record. A role is a column of the table that results."""

    command: str
    times: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role → the file's column, as far as the user says it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Role → the option that says its column, for messages."""

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.times, *self.numbers, *self.texts)


@dataclass(frozen=True)
class Manner:
    """How times and text are to be read, as far as the user says it."""

    tz: str | None = None
    to_tz: str | None = None
    time_format: str | None = None
    separator: str | None = None
    encoding: str | None = None
    decimal: str | None = None


@dataclass(frozen=True)
class Malformed:
    """A record that cannot be read."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass
class Loaded:
    """What was read: counts, and in the connection the table ``records``."""

    rows: int = 0
    malformed: int = 0
    examples: list[Malformed] = field(default_factory=list)
    dialects: list[str] = field(default_factory=list)
    """How files were read that are no plain CSV."""
    layouts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Group:
    """Files that one statement reads."""

    dialect: Dialect
    layout: str
    columns: tuple[tuple[str, str], ...]
    """Role, column."""
    times: tuple[tuple[str, TimeForm], ...]
    decimal_comma: bool


def check_named(connection: duckdb.DuckDBPyConnection, left_out: Sequence[str], roles: Sequence[str]) -> None:
    """Refuse to leave out what no record names.

    Raises:
        DataError: an id of ``--without`` stands in none of the roles.
    """
    for place in left_out:
        named = " OR ".join(f"{quoted(role)} = {literal(place)}" for role in roles)
        if not number(connection, f"SELECT count(*) FROM records WHERE {named}"):
            raise DataError(f"--without {place}: no record names that. Is it written so in the files?")


def load(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[RawFile],
    want: Want,
    manner: Manner,
    progress: Progress | None = None,
) -> Loaded:
    """Read all files into the table ``records``: for each role a column, and ``bad_<role>`` where its cell cannot be read.

    Beside them stand ``file``, and ``row_hash`` of the whole row.

    Raises:
        DataError: a file lacks a column, or its times cannot be understood.
    """
    groups: dict[_Group, list[RawFile]] = defaultdict(list)
    for file in files:
        groups[_group(connection, file, want, manner)].append(file)
    loaded = Loaded()
    connection.execute(f"CREATE TABLE records ({', '.join(_table_columns(want))})")
    for at, (group, members) in enumerate(groups.items()):
        _insert(connection, at, group, members, want, manner, progress)
        if not group.dialect.is_parquet:
            _rejected(connection, at, members, loaded)
        loaded.dialects += [words for words in [group.dialect.words()] if words and words not in loaded.dialects]
        if group.decimal_comma and "decimal comma" not in loaded.dialects:
            loaded.dialects.append("decimal comma")
        loaded.layouts += [title for title in [group.layout] if title and title not in loaded.layouts]
    loaded.rows = number(connection, "SELECT count(*) FROM records") + loaded.malformed
    _unreadable_cells(connection, groups, want, manner, loaded)
    order = [file.name for file in files]
    loaded.examples.sort(key=lambda example: (order.index(example.file), example.line))
    return loaded


def _table_columns(want: Want) -> list[str]:
    kinds = [(want.times, "TIMESTAMP"), (want.numbers, "DOUBLE"), (want.texts, "VARCHAR")]
    columns = [f"{quoted(role)} {kind}" for roles, kind in kinds for role in roles]
    return [
        "file VARCHAR",
        "row_hash UBIGINT",
        *columns,
        *(f"{quoted(f'bad_{role}')} BOOLEAN" for role in (*want.times, *want.numbers)),
    ]


def _group(connection: duckdb.DuckDBPyConnection, file: RawFile, want: Want, manner: Manner) -> _Group:
    if file.is_parquet:
        dialect, sample = _parquet_dialect(connection, file)
    else:
        dialect, rows = text_dialect(file, manner.separator, manner.encoding)
        sample = {name: [row[i] for row in rows if i < len(row)] for i, name in enumerate(dialect.header)}
    headless = headless_layout(file.base) if not file.is_parquet else None
    layout = headless if headless and headless.command == want.command else recognised(dialect.header, want.command)
    columns = {role: _column(role, dialect, layout, want, file) for role in want.roles}
    _check_apart(columns, want, file)
    kinds = dict(zip(dialect.header, dialect.types, strict=True)) if file.is_parquet else {}
    times = tuple(
        (
            role,
            _form(
                kinds.get(columns[role], "VARCHAR"), sample.get(columns[role], []), layout, manner, file, columns[role]
            ),
        )
        for role in want.times
    )
    numbers = [cell for role in want.numbers for cell in sample.get(columns[role], [])] if not file.is_parquet else []
    comma = manner.decimal == "," or (manner.decimal is None and has_decimal_comma(numbers, dialect.separator, file))
    return _Group(dialect, layout.title if layout else "", tuple(columns.items()), times, comma)


def _parquet_dialect(connection: duckdb.DuckDBPyConnection, file: RawFile) -> tuple[Dialect, dict[str, list[str]]]:
    source = _source([file], Dialect((), is_parquet=True), "")
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
        texts = [name for name, kind, *_ in described if kind == "VARCHAR"]
        rows = (
            connection.execute(f"SELECT {', '.join(map(quoted, texts))} FROM {source} LIMIT 1000").fetchall()
            if texts
            else []
        )
    except duckdb.Error as error:
        raise DataError(
            f"{file.name}: no Parquet file, or damaged ({str(error).splitlines()[0]}). Fetch it again."
        ) from error
    header = tuple(str(row[0]) for row in described)
    dialect = Dialect(header, header, is_parquet=True, types=tuple(str(row[1]) for row in described))
    return dialect, {name: [row[i] or "" for row in rows] for i, name in enumerate(texts)}


def _column(role: str, dialect: Dialect, layout: Layout | None, want: Want, file: RawFile) -> str:
    """The file's column that plays a role, as DuckDB calls it."""
    option, names = want.options.get(role, role), dialect.names
    if role in want.columns:
        wanted = want.columns[role]
        found = [i for i, name in enumerate(names) if name == wanted]
        found = found or [i for i, name in enumerate(names) if folded(name) == folded(wanted)]
        if len(found) == 1:
            return dialect.header[found[0]]
        if found:
            several = ", ".join(f"'{names[i]}'" for i in found)
            raise DataError(f"{file.name}: '{wanted}' ({option}) may be any of the columns {several}. Name one of them.")
        near = difflib.get_close_matches(folded(wanted), [folded(name) for name in names], n=1, cutoff=0.5)
        hint = next(f" Did you mean '{name}'?" for name in names if folded(name) == near[0]) if near else ""
        raise DataError(f"{file.name}: there is no column '{wanted}' ({option}).{hint} Its columns: {', '.join(names)}.")
    if layout is not None and role in layout.roles:
        wanted_names = {folded(name) for name in layout.roles[role]}
        return next(dialect.header[i] for i, name in enumerate(names) if folded(name) in wanted_names)
    known = ", ".join(known.title for known in LAYOUTS if known.command == want.command)
    raise DataError(
        f"{file.name}: which column is it? Say it with {option}. Its columns: {', '.join(names)}. (Known without a word: {known}.)"
    )


def _check_apart(columns: Mapping[str, str], want: Want, file: RawFile) -> None:
    """Refuse two roles in one column, which two spellings of its name may give."""
    first: dict[str, str] = {}
    for role in (*want.numbers, *want.texts):
        if (other := first.setdefault(columns[role], role)) != role and not {role, other} <= {"zone", "end_zone"}:
            options = " and ".join(want.options.get(one, one) for one in (other, role))
            raise DataError(f"{file.name}: {options} both name the column '{columns[role]}'.")


def _form(
    kind: str, sample: Sequence[str], layout: Layout | None, manner: Manner, file: RawFile, column: str
) -> TimeForm:
    """How the times of a column are written, which DuckDB reads as ``kind``."""
    is_number = any(word in kind for word in ("INT", "DOUBLE", "FLOAT", "DECIMAL"))
    if manner.time_format and (kind == "VARCHAR" or (manner.time_format in EPOCHS and is_number)):
        form = TimeForm(manner.time_format)
    elif kind.startswith(("TIMESTAMP", "DATE")):
        form = TimeForm(has_offset=kind.endswith("TIME ZONE"))
    elif kind != "VARCHAR":
        raise DataError(
            f"{file.name}: column '{column}' holds {kind}, not times. Seconds since 1970? --time-format epoch."
        )
    elif layout is not None and layout.time_format:
        form = TimeForm(layout.time_format)
    else:
        form = time_form(sample, file, column, month_first=layout is not None)  # all known publishers are American
    is_absolute = form.has_offset or form.format in EPOCHS or "%z" in form.format
    if is_absolute and not (manner.to_tz or manner.tz):
        raise DataError(
            f"{file.name}: the times of column '{column}' say their distance from UTC, but slots of the week are in local time. "
            "Say which: --tz America/New_York, or --tz UTC."
        )
    return form


def _insert(
    connection: duckdb.DuckDBPyConnection, at: int, group: _Group, files: Sequence[RawFile], want: Want, manner: Manner,
    progress: Progress | None,
) -> None:  # fmt: skip
    dialect, column = group.dialect, dict(group.columns)
    parsed = _parsed(group, want, manner)
    texts = [_text_of(_raw(column[role], dialect)) for role in want.texts]
    # The same text is another time where it is read otherwise.
    row_hash = f"hash({literal(repr(group.times))}, {', '.join(map(quoted, dialect.header))})"
    bad = [_is_bad(_raw(column[role], dialect), sql) for role, sql in parsed.items()]
    chosen = ", ".join(["__file", row_hash, *parsed.values(), *texts, *bad])
    rejects = f"store_rejects = true, rejects_limit = 0, rejects_table = 'rejects{at}', rejects_scan = 'scans{at}'"
    try:
        statement = f"INSERT INTO records SELECT {chosen} FROM {_source(files, dialect, rejects)}"
        executed(connection, statement, "reading", progress)
    except duckdb.Error as error:
        names = ", ".join(file.name for file in files[:3]) + (", …" if len(files) > 3 else "")
        raise DataError(f"{names}: cannot be read. {_first_lines(error)}") from error


def _source(files: Sequence[RawFile], dialect: Dialect, rejects: str) -> str:
    """The files as SQL reads them, with their paths as ``__file``. ``rejects`` says what becomes of rows that are none."""
    paths = "[" + ", ".join(literal(str(file.path)) for file in files) + "]"
    if dialect.is_parquet:
        return f"read_parquet({paths}, filename = '__file', hive_partitioning = false)"
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in dialect.header)
    nulls = ", ".join(literal(text) for text in _NULLS)
    return (
        f"read_csv({paths}, columns = {{{columns}}}, auto_detect = false, header = {str(dialect.has_header).lower()}, "
        f"delim = {literal(dialect.separator)}, quote = '\"', escape = '\"', encoding = {literal(dialect.encoding)}, nullstr = [{nulls}], "
        f"skip = {dialect.skip}, filename = '__file', hive_partitioning = false, {rejects})"
    )


def _parsed(group: _Group, want: Want, manner: Manner) -> dict[str, str]:
    """Role → SQL of its value, for the roles whose cells may be unreadable."""
    column = dict(group.columns)
    times = {role: _time_of(_raw(column[role], group.dialect), form, group.dialect, manner) for role, form in group.times}
    return times | {role: _number_of(_raw(column[role], group.dialect), group) for role in want.numbers}


def _raw(column: str, dialect: Dialect) -> str:
    """SQL of a cell, NULL where it is empty; in CSV it is that already."""
    if dialect.is_parquet and dialect.types[dialect.header.index(column)] == "VARCHAR":
        return f"(CASE WHEN trim({quoted(column)}) NOT IN ({', '.join(map(literal, _NULLS))}) THEN {quoted(column)} END)"
    return quoted(column)


def _text_of(cell: str) -> str:
    """SQL of an id: without blanks around it, and a whole number without the .0 that pandas gives it where others are missing."""
    return f"nullif(regexp_replace(trim(CAST({cell} AS VARCHAR)), '^(\\d+)\\.0$', '\\1'), '')"


def _is_bad(cell: str, parsed: str) -> str:
    return f"{cell} IS NOT NULL AND ({parsed}) IS NULL"


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:3])


def _time_of(column: str, form: TimeForm, dialect: Dialect, manner: Manner) -> str:
    """SQL of a naive local time, in the zone that the output is in; NULL where the cell is no time."""
    zone = literal(manner.to_tz or manner.tz or "UTC")
    if form.format in EPOCHS:
        return f"timezone({zone}, TRY(to_timestamp(try_cast({column} AS DOUBLE) / {EPOCHS[form.format]})))"
    if form.has_offset or "%z" in form.format:
        aware = (
            f"try_strptime({column}, {literal(form.format)})"
            if "%z" in form.format
            else f"try_cast({column} AS TIMESTAMPTZ)"
        )
        guarded = (
            aware
            if dialect.is_parquet or "%z" in form.format
            else f"CASE WHEN regexp_matches({column}, '(Z|UTC|[+-][0-9:]+)$') THEN {aware} END"
        )
        return f"timezone({zone}, {guarded})"
    if form.format != "iso":
        forms = [form.format, *([f"{form.format}.%f"] if form.fractions else [])]
        naive = f"try_strptime({column}, [{', '.join(map(literal, forms))}])"
    elif dialect.is_parquet:
        naive = f"try_cast({column} AS TIMESTAMP)"
    else:  # DuckDB would take a time with an offset and forget the offset
        naive = f"CASE WHEN NOT regexp_matches({column}, ':.*[Z+-]') THEN try_cast({column} AS TIMESTAMP) END"
    if manner.to_tz and manner.tz and manner.to_tz != manner.tz:
        return f"timezone({literal(manner.to_tz)}, timezone({literal(manner.tz)}, {naive}))"
    return naive


def _number_of(column: str, group: _Group) -> str:
    text = f"replace({column}, ',', '.')" if group.decimal_comma and not group.dialect.is_parquet else column
    return f"CASE WHEN isfinite(try_cast({text} AS DOUBLE)) THEN try_cast({text} AS DOUBLE) END"


def _rejected(connection: duckdb.DuckDBPyConnection, group: int, files: Sequence[RawFile], loaded: Loaded) -> None:
    """Add the rows whose cells are not those of the header."""
    loaded.malformed += number(connection, f"SELECT count(*) FROM (SELECT DISTINCT file_id, line FROM rejects{group})")
    names = {str(file.path): file.name for file in files}
    wanted = EXAMPLES - len(loaded.examples)
    rows = connection.execute(
        f"SELECT s.file_path, r.line, any_value(r.error_message) FROM rejects{group} r JOIN scans{group} s USING (scan_id, file_id) "
        f"GROUP BY ALL ORDER BY 1, 2 LIMIT {max(wanted, 0)}"
    ).fetchall()
    loaded.examples += [
        Malformed(names[path], int(line), " ".join(str(message).split()).lower()) for path, line, message in rows
    ]


def _unreadable_cells(
    connection: duckdb.DuckDBPyConnection,
    groups: Mapping[_Group, Sequence[RawFile]],
    want: Want,
    manner: Manner,
    loaded: Loaded,
) -> None:
    """Add the rows of which a cell is there and cannot be read."""
    any_bad = " OR ".join(quoted(f"bad_{role}") for role in (*want.times, *want.numbers))
    found = dict(connection.execute(f"SELECT file, count(*) FROM records WHERE {any_bad} GROUP BY 1").fetchall())
    loaded.malformed += sum(found.values())
    for group, files in groups.items():
        for file in files:
            wanted = EXAMPLES - len(loaded.examples)
            if wanted > 0 and str(file.path) in found and not group.dialect.is_parquet:
                loaded.examples += _located(connection, file, group, want, manner)[:wanted]


def _located(
    connection: duckdb.DuckDBPyConnection, file: RawFile, group: _Group, want: Want, manner: Manner
) -> list[Malformed]:
    """The first lines of a text file with a cell that cannot be read. DuckDB numbers no lines, so the cells are looked for."""
    column, source = dict(group.columns), _source([file], group.dialect, "ignore_errors = true")
    bad: dict[int, set[str]] = {}
    for role, sql in _parsed(group, want, manner).items():
        rows = connection.execute(
            f"SELECT DISTINCT {quoted(column[role])} FROM {source} WHERE {_is_bad(quoted(column[role]), sql)} LIMIT {_MOST_CELLS}"
        ).fetchall()
        bad[group.dialect.header.index(column[role])] = {str(cell) for (cell,) in rows}
    kinds = {
        group.dialect.header.index(column[role]): "time" if role in want.times else "number"
        for role in (*want.times, *want.numbers)
    }
    found: list[Malformed] = []
    for line, cells in _lines(file, group.dialect):
        wrong = next((at for at, values in bad.items() if at < len(cells) and cells[at] in values), None)
        if wrong is not None:
            found.append(
                Malformed(file.name, line, f"{group.dialect.header[wrong]} is '{cells[wrong]}', no {kinds[wrong]}")
            )
        if len(found) == EXAMPLES:
            break
    return found


def _lines(file: RawFile, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """The rows of a text file, each with the number of its line."""
    with opened(file) as stream:
        reader = csv.reader(
            io.TextIOWrapper(stream, dialect.encoding, errors="replace", newline=""), delimiter=dialect.separator
        )  # type: ignore[arg-type]
        try:
            for cells in reader:
                if reader.line_num > dialect.skip + 1 or not dialect.has_header:
                    yield reader.line_num, cells
        except csv.Error:  # a quotation mark that stays open; what came before is told
            return
