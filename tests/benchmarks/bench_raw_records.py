"""Ten million trips in Citi Bike's columns, gzipped, into a grid: seconds, rows a second, and the peak memory of the command.

    python -m pytest tests/benchmarks/bench_raw_records.py -s -o python_files='bench_*.py'
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import duckdb
import numpy as np

ROWS, FILES = 10_000_000, 10


STATIONS, YEAR = 2000, 365 * 86_400


def _write(folder: Path) -> None:
    """Ten files of trips between the stations, over a year."""
    connection = duckdb.connect()
    connection.execute("SELECT setseed(0.5)")
    count, seconds = ROWS // FILES, YEAR // FILES
    for number in range(FILES):
        trips = (
            f"SELECT range, TIMESTAMP '2023-01-01' + to_seconds(CAST(floor({seconds} * (random() + {number})) AS BIGINT)) AS t, "
            f"CAST(floor({STATIONS} * random()) AS INTEGER) AS a, CAST(floor({STATIONS} * random()) AS INTEGER) AS b FROM range({count})"
        )
        columns = (
            f"printf('%016X', {number * count} + range) AS ride_id, 'classic_bike' AS rideable_type, t AS started_at, "
            "t + to_seconds(CAST(floor(60 + 1800 * random()) AS BIGINT)) AS ended_at, 'W 21 St & 6 Ave' AS start_station_name, "
            "a AS start_station_id, 'Lafayette St' AS end_station_name, b AS end_station_id, 40.65 + (a % 45) / 250 AS start_lat, "
            "-74.02 + (a % 43) / 400 AS start_lng, 40.65 + (b % 45) / 250 AS end_lat, -74.02 + (b % 43) / 400 AS end_lng, "
            "'member' AS member_casual"
        )
        target = folder / f"2023{number:02d}-citibike-tripdata.csv.gz"
        connection.execute(f"COPY (SELECT {columns} FROM ({trips})) TO '{target}' (HEADER, COMPRESSION gzip)")


def test_ten_million_trips(tmp_path: Path) -> None:
    _write(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    words = ["data", "grid", str(tmp_path / "*.csv.gz"), "--cells", "16x8", "--step", "1h", "--out", str(tmp_path / "bikes.npz")]
    started = time.monotonic()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "stlab", *words], os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - started
    assert status == 0
    with np.load(tmp_path / "bikes.npz") as made:
        tallies = json.loads(str(made["stlab"]))["tallies"]
        assert [tally["kept"] for tally in tallies] == made["data"].sum(axis=(0, 2, 3), dtype=np.float64).tolist()
    print(
        f"\n{ROWS:,} trips in {FILES} files, {size / 1e6:.0f} MB gzipped: {seconds:.0f} s, {ROWS / seconds:,.0f} rows a second, "
        f"{usage.ru_utime + usage.ru_stime:.0f} s of CPU, peak {usage.ru_maxrss / 1e6:.2f} GB"
    )
