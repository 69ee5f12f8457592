"""Files that this package makes: whole or not at all, and with what they were made of."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stlab.errors import DataError
from stlab.files import is_uri, told
from stlab.sources.sql import literal

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

METADATA = "stlab"
"""The key of a Parquet file's metadata, and the array of an npz file, with what the file was made of: JSON."""


def checked_target(out: str, suffixes: Sequence[str], force: bool) -> Path:
    """The path of an output.

    Raises:
        DataError: it is there and ``force`` is not set, its folder is not there, or its name ends otherwise.
    """
    if is_uri(out):
        raise DataError(f"--out {out}: give a file on this machine; copy it from there.")
    path = Path(out).expanduser()
    if path.suffix.lower() not in suffixes:
        raise DataError(f"--out {out}: the name has to end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise DataError(f"--out {out}: a folder. Give a file in it.")
    if path.exists() and not force:
        raise DataError(f"--out {out}: is there already. Name another file, or overwrite it with --force.")
    if not path.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {path.parent}. Create it, or name another.")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when all is written.

    Raises:
        DataError: the disk is full, or refuses.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written. {told(error)}") from error
    finally:
        beside.unlink(missing_ok=True)


def write_grid(
    path: Path,
    values: NDArray[np.float32],
    timestamps: NDArray[np.datetime64] | None,
    channels: Sequence[str] | None,
    metadata: str,
) -> None:
    """Write (T, C, H, W), or (T, N, C) of sensors, as the ``.npz`` that ``data.path`` takes."""
    arrays: dict[str, Any] = {"data": values, METADATA: np.array(metadata)}
    if timestamps is not None:
        arrays["timestamps"] = timestamps
    if channels is not None:
        arrays["channels"] = np.array(channels)
    with whole_file(path) as beside, beside.open("wb") as sink:
        np.savez_compressed(sink, **arrays)


def write_network(connection: duckdb.DuckDBPyConnection, query: str, path: Path, metadata: str) -> None:
    """Write the rows of a query (timestamp, node, values) as the Parquet that ``data.path`` takes."""
    import duckdb

    with whole_file(path) as beside:
        options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{METADATA}: {literal(metadata)}}}"
        try:
            connection.execute(f"COPY ({query}) TO {literal(str(beside))} ({options})")
        except duckdb.IOException as error:
            raise DataError(f"{path}: cannot be written. {str(error).splitlines()[0]}") from error
