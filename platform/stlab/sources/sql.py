"""DuckDB as this package uses it: a database in a scratch folder, statements that tell their progress, and pieces of SQL.

DuckDB keeps to a limit of memory: the records may be many times larger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MEMORY = "1GB"
"""What DuckDB may hold at once; beyond it uses the scratch folder."""
Progress = Callable[[str, float], None]
"""Hears what is done at the moment, and how much of it: 0 to 1."""


@contextmanager
def database(scratch: Path, progress: Progress | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB database in a folder, which reports how far its statements are."""
    import duckdb

    connection = duckdb.connect(str(scratch / "records.duckdb"))
    try:
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute(f"SET temp_directory = {literal(str(scratch / 'spilled'))}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET TimeZone = 'UTC'")
        if progress is not None:
            connection.execute("SET enable_progress_bar = true")
            connection.execute("SET enable_progress_bar_print = false")
            connection.execute("SET progress_bar_time = 0")
        yield connection
    finally:
        connection.close()


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def id_of(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> str:
    """SQL of the ids of a column; numbers where all are numbers, so that they are sorted as such."""
    odd = f"SELECT count(*) FROM {table} WHERE NOT regexp_full_match({column}, '0|[1-9][0-9]{{0,17}}')"
    return f"CAST({column} AS BIGINT)" if number(connection, odd) == 0 else column


def number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one number that a query gives; 0 for none."""
    row = connection.execute(query).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def executed(
    connection: duckdb.DuckDBPyConnection, statement: str, doing: str = "", progress: Progress | None = None
) -> duckdb.DuckDBPyConnection:
    """The result of a statement, whose progress is told while it runs."""
    if progress is None:
        return connection.execute(statement)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            progress(doing, max(connection.query_progress(), 0.0) / 100)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return connection.execute(statement)
    finally:
        ended.set()
        watcher.join()
        progress(doing, 1.0)
