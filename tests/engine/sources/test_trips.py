"""Trips in the publishers' layouts against a count by pandas: cells, zones, steps, time zones, and what is dropped."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h3
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.engine.sources.layouts import BOX, citibike, citibike_old, counted, tlc_coordinates, tlc_zones, trips

SAID_BOX = ("--box", *map(str, BOX))


def made(path: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A grid that was written: values, times, and what it was made of."""
    with np.load(path) as archive:
        return archive["data"], archive["timestamps"], json.loads(str(archive["stlab"]))


def network(path: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    table = pq.read_table(path)
    return table.to_pandas().set_index(["timestamp", "node"]), json.loads(table.schema.metadata[b"stlab"])


def check_grid(path: str, rows: pd.DataFrame, cells: tuple[int, int], step: str) -> dict[str, Any]:
    values, times, facts = made(path)
    wanted = counted(rows, cells, step)
    np.testing.assert_array_equal(values[:, 0], wanted["outflow"])
    np.testing.assert_array_equal(values[:, 1], wanted["inflow"])
    assert times[0] == rows.begin.min().floor("D").to_datetime64()
    assert (np.diff(times) == pd.Timedelta(step).to_timedelta64()).all()
    for channel, tally in enumerate(facts["tallies"]):
        assert tally["kept"] == values[:, channel].sum()
        assert tally["kept"] + sum(tally["dropped"].values()) == tally["rows"]
    return facts


@pytest.mark.parametrize("layout", [citibike, citibike_old, tlc_coordinates])
def test_a_known_layout_needs_no_column(layout: Callable[..., pd.DataFrame], say: Callable[..., Any]) -> None:
    rows = trips()
    layout(rows).to_csv("raw.csv.gz", index=False)
    answer = say("data", "grid", "raw.csv.gz", "--cells", "16x8", *SAID_BOX, "--out", "grid.npz")
    assert answer.code == 0, answer
    facts = check_grid("grid.npz", rows, (16, 8), "1h")
    assert facts["tallies"][0]["rows"] == len(rows)
    assert "3,000 rows" in answer.out
    assert f"{int(made('grid.npz')[0][:, 0].sum()):,} kept" in answer.out


def test_years_of_different_columns_and_times_are_one_data_set(say: Callable[..., Any]) -> None:
    """Old and new columns, dates with slashes, gzip, and a zip with what a Mac leaves in it and an archive inside."""
    parts = [trips(500, first, 5, seed) for seed, first in enumerate(("2024-03-01", "2024-03-06", "2024-03-11", "2024-03-16"))]
    citibike_old(parts[0]).to_csv("201.csv", index=False)
    citibike_old(parts[1], slashes=True).to_csv("202.csv.gz", index=False)
    with zipfile.ZipFile("inner.zip", "w") as inner:
        inner.writestr("month/203.csv", citibike(parts[2]).to_csv(index=False))
    with zipfile.ZipFile("year.zip", "w") as year:
        year.write("inner.zip", "year/inner.zip")
        year.writestr("year/204.csv", citibike(parts[3]).to_csv(index=False))
        year.writestr("__MACOSX/year/._204.csv", b"\0\1")
    answer = say("data", "grid", "2*.csv*", "year.zip", "--cells", "8x8", "--step", "30min", *SAID_BOX, "--out", "all.npz")
    assert answer.code == 0, answer
    facts = check_grid("all.npz", pd.concat(parts, ignore_index=True), (8, 8), "30min")
    assert facts["files"][-1].endswith("year.zip!year/inner.zip!month/203.csv") or "203.csv" in str(facts["files"])
    assert len(facts["files"]) == 4
    assert len(facts["layouts"]) == 2


def test_columns_that_are_said(say: Callable[..., Any]) -> None:
    """Any file of trips; without an end there is one channel."""
    rows = trips()
    rows.rename(columns={"begin": "when", "lat": "Y", "lon": "X"}).to_csv("own.csv", index=False)
    answer = say("data", "grid", "own.csv", "--time", "when", "--lat", "Y", "--lon", "X", "--cells", "4x6", *SAID_BOX, "--out", "own.npz")
    assert answer.code == 0, answer
    values, _, _ = made("own.npz")
    np.testing.assert_array_equal(values[:, 0], counted(rows, (4, 6), "1h")["outflow"])
    assert values.shape[1] == 1
    more = ("--also-end", "end_lat", "end_lon", "end", "--out", "both.npz")
    assert say("data", "grid", "own.csv", "--time", "when", "--lat", "Y", "--lon", "X", "--cells", "4x6", *SAID_BOX, *more).code == 0
    check_grid("both.npz", rows, (4, 6), "1h")


def test_what_is_dropped_is_counted_under_its_first_reason(say: Callable[..., Any]) -> None:
    rows = trips(400)
    table = citibike(rows)
    for column in ("start_lat", "start_lng"):
        table[column] = table[column].astype(object)
    table.loc[0, ["start_lat", "start_lng"]] = ""
    table.loc[1, ["start_lat", "start_lng"]] = 0
    table.loc[2, ["start_lat", "start_lng"]] = 89.0
    table.loc[3, "started_at"] = ""
    table.loc[4, "started_at"] = "yesterday"
    table.loc[5, "start_lat"] = "north"
    table.loc[6, ["started_at", "start_lat", "start_lng"]] = ["2003-03-01 00:00:00", 40.75, -73.98]  # a clock that stood
    inside = rows.lat.between(BOX[0], BOX[2]) & rows.lon.between(BOX[1], BOX[3])
    text = pd.concat([table, table.iloc[[10, 10, 11]]]).to_csv(index=False)
    Path("raw.csv").write_text(text + "a,b,c\n")
    answer = say("data", "grid", "raw.csv", "--cells", "4x4", *SAID_BOX, "--max-bad", "5%", "--out", "grid.npz")
    assert answer.code == 0, answer
    facts = made("grid.npz")[2]
    outside = int((~inside.iloc[7:]).sum()) + 1
    assert facts["tallies"][0]["dropped"] == {
        "malformed": 3, "no time": 1, "no coordinate": 2, "duplicate": 3, "outside the box": outside, "outside the times": 1,
    }  # fmt: skip
    assert facts["malformed"] == 3
    assert facts["malformed_examples"] == [
        "raw.csv, line 6: started_at is 'yesterday', no time",
        "raw.csv, line 7: start_lat is 'north', no number",
        "raw.csv, line 405: expected number of columns: 13 found: 3",
    ]
    kept = say("data", "grid", "raw.csv", "--cells", "4x4", *SAID_BOX, "--max-bad", "5%", "--duplicates", "keep", "--out", "kept.npz")
    assert kept.code == 0
    assert made("kept.npz")[2]["tallies"][0]["kept"] == facts["tallies"][0]["kept"] + int(inside[10]) * 2 + int(inside[11])


@pytest.mark.parametrize("offset", [True, False], ids=["offsets", "local"])
def test_weekends_on_which_the_clocks_change(offset: bool, say: Callable[..., Any]) -> None:
    """New York 2024: 10 March has no 2 o'clock, 3 November two of 1 o'clock. The sum is that of all trips, and both hours are marked."""
    draw = np.random.default_rng(5)
    spring = ("spring", "2024-03-09", "2024-03-10T02:00:00", "skipped")
    autumn = ("autumn", "2024-11-02", "2024-11-03T01:00:00", "repeated")
    for name, first, count_at, kind in (spring, autumn):
        moments = pd.Timestamp(first, tz="America/New_York") + pd.to_timedelta(draw.integers(0, 3 * 86_400 - 7200, 2000), unit="s")
        local = moments.tz_convert("America/New_York")
        texts = [moment.isoformat() for moment in local] if offset else local.tz_localize(None).astype(str)
        pd.DataFrame({"t": texts, "y": 40.75, "x": -73.98, "id": range(2000)}).to_csv(f"{name}.csv", index=False)
        words = ("--time", "t", "--lat", "y", "--lon", "x", "--cells", "1x1", *SAID_BOX, "--tz", "America/New_York", "--out", f"{name}.npz")
        answer = say("data", "grid", f"{name}.csv", *words)
        assert answer.code == 0, answer
        values, times, facts = made(f"{name}.npz")
        assert values.sum() == 2000
        hours = pd.Series(local.tz_localize(None)).dt.floor("h").value_counts()
        for time, count in zip(pd.DatetimeIndex(times), values[:, 0, 0, 0], strict=True):
            assert hours.get(time, 0) == count
        assert facts["clock_steps"] == {kind: [count_at]}
        (said,) = facts["clock_changes"]
        assert said in " ".join(answer.out.split())
        if kind == "repeated":
            assert said == f"2024-11-03 01:00 to 02:00 exists twice: {hours[pd.Timestamp(count_at)]} records of both stand in one place"
        else:
            assert said == "2024-03-10 02:00 to 03:00 does not exist: no record"


def test_times_of_another_zone_and_hours_that_do_not_exist(say: Callable[..., Any]) -> None:
    """UTC into local time; and UTC that is taken for local time gives itself away in March."""
    utc = pd.Timestamp("2024-03-09") + pd.to_timedelta(np.arange(0, 3 * 86_400, 60), unit="s")
    pd.DataFrame({"t": utc.astype(str), "y": 40.75, "x": -73.98, "id": range(len(utc))}).to_csv("utc.csv", index=False)
    words = ("data", "grid", "utc.csv", "--time", "t", "--lat", "y", "--lon", "x", "--cells", "1x1", *SAID_BOX)
    wrong = say(*words, "--tz", "America/New_York", "--out", "wrong.npz")
    assert "02:00 to 03:00 does not exist: 60 records, kept as they stand. Are the times UTC" in " ".join(wrong.out.split())
    right = say(*words, "--tz", "UTC", "--to-tz", "America/New_York", "--out", "right.npz")
    assert right.code == 0, right
    values, times, _ = made("right.npz")
    local = utc.tz_localize("UTC").tz_convert("America/New_York").tz_localize(None)
    hours = pd.Series(local).dt.floor("h").value_counts()
    for time, count in zip(pd.DatetimeIndex(times), values[:, 0, 0, 0], strict=True):
        assert hours.get(time, 0) == count
    aware = pd.DataFrame({"t": utc.tz_localize("UTC").map(lambda t: t.isoformat()), "y": 40.75, "x": -73.98, "id": range(len(utc))})
    aware.to_csv("aware.csv", index=False)
    answer = say("data", "grid", "aware.csv", *words[3:], "--out", "aware.npz")
    assert answer.code == 2
    assert "distance from UTC" in answer.err


def test_zones_are_a_network_whose_zeros_are_counts(say: Callable[..., Any]) -> None:
    rows = trips(2000)
    table = tlc_zones(rows)
    table.to_parquet("yellow_tripdata_2024-03.parquet", index=False)
    answer = say("data", "zones", "yellow_tripdata_2024-*.parquet", "--step", "1h", "--without", "11", "--out", "taxi.parquet")
    assert answer.code == 0, answer
    found, facts = network("taxi.parquet")
    first, last = rows.begin.min().floor("D"), rows.begin.max().floor("D") + pd.Timedelta("1D")
    for channel, time, zone in (("outflow", "tpep_pickup_datetime", "PULocationID"), ("inflow", "tpep_dropoff_datetime", "DOLocationID")):
        kept = table[(table[zone] != 11) & (table[time] >= first) & (table[time] < last)]
        wanted = kept.groupby([kept[time].dt.floor("h"), zone]).size()
        np.testing.assert_array_equal(found[channel][found[channel] > 0], wanted.sort_index())
        assert found[channel].sum() == len(kept)
    assert len(found) == 20 * 24 * 10
    assert facts["tallies"][0]["dropped"] == {"left out": int((table.PULocationID == 11).sum())}
    looked = say("data", "inspect", "taxi.parquet")
    assert looked.code == 0, looked
    assert "none is marked as missing" in looked.out
    columns = ("--zone", "PULocationID", "--time", "tpep_pickup_datetime", "--also-end", "DOLocationID")
    assert "Say it with --end-time" not in say("data", "zones", "yellow*.parquet", *columns, "--out", "said.parquet").err


def test_hexagons_are_those_of_h3(say: Callable[..., Any]) -> None:
    rows = trips(500)
    citibike(rows).to_csv("raw.csv", index=False)
    answer = say("data", "grid", "raw.csv", "--h3", "8", "--starts-only", "--out", "hex.parquet")
    assert answer.code == 0, answer
    found, _ = network("hex.parquet")
    places = zip(rows.lat.round(5), rows.lon.round(5), strict=True)
    wanted = pd.Series([h3.latlng_to_cell(lat, lon, 8) for lat, lon in places]).value_counts()
    pd.testing.assert_series_equal(found["outflow"].groupby("node").sum(), wanted.sort_index().astype(float), check_names=False)


def test_square_cells_and_a_box_that_nobody_says(say: Callable[..., Any]) -> None:
    rows = trips(4000)
    citibike(rows).to_csv("raw.csv", index=False)
    answer = say("data", "grid", "raw.csv", "--cell-metres", "1000", "--out", "grid.npz")
    assert answer.code == 0, answer
    values, _, facts = made("grid.npz")
    height, width = facts["cell_metres"]
    assert (height, width) == (pytest.approx(1000, abs=0.1), pytest.approx(1000, abs=0.1))
    south, west, north, east = facts["box"]
    metre = np.pi / 180 * 6_371_008.8
    assert (north - south) * metre == pytest.approx(values.shape[2] * 1000, rel=1e-6)
    assert (east - west) * metre * np.cos(np.radians((south + north) / 2)) == pytest.approx(values.shape[3] * 1000, rel=1e-6)
    both = pd.concat([rows.lat, rows.end_lat])
    assert south < both.quantile(0.006)
    assert north > both.quantile(0.994)
    inside = rows.lat.between(south, north) & rows.lon.between(west, east)
    assert values[:, 0].sum() == inside.sum()


def test_records_in_an_object_store_and_zstandard(s3: Any, say: Callable[..., Any]) -> None:
    """A pattern over a bucket, beside a file here; the same rows in both are one."""
    import pyarrow as pa
    import pyarrow.fs as pafs

    bucket, rows = s3.make_bucket("records"), trips(600)
    system, _ = pafs.FileSystem.from_uri(f"s3://{bucket}/x")
    for number, part in enumerate((rows[:200], rows[200:400])):
        with system.open_output_stream(f"{bucket}/raw/2024/{number}.csv") as sink:
            sink.write(citibike(part).to_csv(index=False).encode())
    with pa.CompressedOutputStream("rest.csv.zst", "zstd") as sink:
        sink.write(citibike(rows[300:]).to_csv(index=False).encode())
    words = ("data", "grid", f"s3://{bucket}/raw/*/*.csv", "rest.csv.zst", "--cells", "4x4", *SAID_BOX, "--out", "grid.npz")
    answer = say(*words)
    assert answer.code == 0, answer
    facts = made("grid.npz")[2]
    assert facts["tallies"][0]["dropped"]["duplicate"] == 100
    np.testing.assert_array_equal(made("grid.npz")[0][:, 0], counted(rows, (4, 4), "1h")["outflow"])
    assert facts["files"][0] == f"s3://{bucket}/raw/2024/0.csv"
    assert "no file matches" in say(*words[:2], f"s3://{bucket}/raw/*.parquet", *words[4:-1], "other.npz").err
