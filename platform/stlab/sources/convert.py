"""A data set of another project as one of ours: ``stlab data convert``."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stlab.data.formats.checks import checked_timestamps
from stlab.errors import DataError
from stlab.sources.clock import step_seconds
from stlab.sources.foreign import Foreign, read_foreign
from stlab.sources.span import said_time
from stlab.sources.write import METADATA, checked_target, whole_file, write_grid


@dataclass(frozen=True)
class Conversion:
    """What was converted."""

    foreign: Foreign
    missing: int
    edges: Path | None


def convert(
    path: str, out: str, *, start: str | None, step: str | None, distances: str | None, force: bool, command: str
) -> Conversion:
    """Write a data set as ``.npz`` or ``.parquet``.

    Args:
        start, step: time of the first step and length of a step, for files without dates.
        distances: file for the edges, if the data set has any.

    Raises:
        DataError: what is wrong with the files or the options.
    """
    target = checked_target(out, (".npz", ".parquet"), force)
    edges = None if distances is None else checked_target(distances, (".csv",), force)
    found = _dated(read_foreign(Path(path).expanduser()), path, start, step)
    if edges is not None and not found.edges:
        raise DataError(f"--distances {distances}: {path} has no edges. Leave it out.")
    facts: dict[str, object] = {"command": command, "files": [path], "layout": found.layout, "notes": list(found.notes)}
    if found.zero_is_a_reading:
        facts["zero_is_a_reading"] = True
    if target.suffix == ".npz":
        write_grid(target, found.values, found.times, found.channels, json.dumps(facts))
    else:
        _write_table(target, found, path, json.dumps(facts))
    if edges is not None:
        with whole_file(edges) as beside, beside.open("w", newline="", encoding="utf-8") as sink:
            csv.writer(sink).writerows([("from", "to", "cost"), *found.edges])
    return Conversion(found, int((~np.isfinite(found.values)).sum()), edges)


def _dated(found: Foreign, path: str, start: str | None, step: str | None) -> Foreign:
    """With the times that are said, where the files have none."""
    if start is None:
        return found
    if found.times is not None:
        raise DataError(f"--start {start}: {path} has times of its own, from {found.times[0]}. Leave it out.")
    seconds = step_seconds(step) if step else round(60 * found.step_minutes) if found.step_minutes else None
    if seconds is None:
        raise DataError(f"--start {start}: {path} does not say how long a step is. Say it: --step 5min.")
    times = np.datetime64(said_time(start, "--start"), "s") + np.arange(len(found.values)) * np.timedelta64(
        seconds, "s"
    )
    return replace(found, times=checked_timestamps(times, len(times), path), notes=())


def _write_table(target: Path, found: Foreign, path: str, facts: str) -> None:
    if found.family == "grid":
        raise DataError(f"--out {target}: {path} is a grid, which is kept as .npz.")
    if found.times is None:
        raise DataError(
            f"--out {target}: {path} has no dates, and a Parquet of readings needs them. Say --start 2012-03-01, or write .npz."
        )
    steps, nodes, channels = found.values.shape
    names = found.nodes or tuple(str(node) for node in range(nodes))
    are_numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
    ids = np.array([int(name) for name in names]) if are_numbers else np.array(names)
    columns = {"timestamp": np.repeat(found.times, nodes), "node": np.tile(ids, steps)}
    for i, name in enumerate(_channel_columns(found, channels)):
        columns[name] = found.values[:, :, i].reshape(-1)
    table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
    table = table.replace_schema_metadata({METADATA: facts})
    with whole_file(target) as beside:
        pq.write_table(table, beside, compression="zstd")


def _channel_columns(found: Foreign, count: int) -> list[str]:
    """A column's name for each channel, none of them that of the time or the node, none twice."""
    names = found.channels or tuple(f"value {i + 1}" if count > 1 else "value" for i in range(count))
    result: list[str] = []
    for i, name in enumerate(names):
        taken = {"timestamp", "node", *(other.casefold() for other in result)}
        result.append(f"{name} ({i + 1})" if name.casefold() in taken else name)
    return result
