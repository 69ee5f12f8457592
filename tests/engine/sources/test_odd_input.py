"""Input that once gave a wrong result in silence, or a traceback: names, paths, ids and numbers that are written oddly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.engine.sources.layouts import BOX, citibike, tlc_zones, trips

HOURS = pd.date_range("2024-05-06", periods=48, freq="1h")


def log(node: str = "1") -> pd.DataFrame:
    return pd.DataFrame({"time": HOURS.astype(str), "node": node, "v": np.arange(48.0)})


def sensors(*files: str, time: str = "time", node: str = "node", value: str = "v") -> tuple[str, ...]:
    return ("data", "sensors", *files, "--time", time, "--node", node, "--value", value, "--step", "1h", "--out", "net.parquet")


def made() -> pd.DataFrame:
    return pd.read_parquet("net.parquet")


def test_names_in_any_script_are_told_apart(say: Callable[..., Any]) -> None:
    log().set_axis(["时间", "站点", "流量"], axis=1).to_csv("log.csv", index=False)
    answer = say(*sensors("log.csv", time="时间", node="车站", value="流量"))
    assert (answer.code, "there is no column '车站' (--node)" in answer.err) == (2, True)
    assert say(*sensors("log.csv", time="时间", node="站点", value="流量")).code == 0
    assert list(made().columns) == ["timestamp", "node", "流量"]


def test_names_that_differ_in_case_alone(say: Callable[..., Any]) -> None:
    table = log()
    table.insert(1, "Time", pd.Series(HOURS + pd.Timedelta("31D")).astype(str))
    table.to_csv("log.csv", index=False)
    assert say(*sensors("log.csv", time="Time")).code == 0
    assert made().timestamp.min() == HOURS[0] + pd.Timedelta("31D")
    answer = say(*sensors("log.csv", time="TIME"), "--force")
    assert (answer.code, "may be any of the columns 'time', 'Time'" in answer.err) == (2, True)
    answer = say(*sensors("log.csv"), "--value", "V", "--force")
    assert (answer.code, "given twice" in answer.err) == (2, True)
    answer = say(*sensors("log.csv", value="node"), "--force")
    assert (answer.code, "the result has a column of that name" in answer.err) == (2, True)


def test_folders_and_brackets_in_paths_are_only_names(say: Callable[..., Any]) -> None:
    Path("node=5").mkdir()
    log("1").to_csv("node=5/hr.csv", index=False)
    log("2").to_csv("s[1].csv", index=False)
    log("77").to_csv("s1.csv", index=False)
    assert say(*sensors("node=5/hr.csv", "s[1].csv")).code == 0
    assert set(made().node) == {1, 2}
    absolute = str(Path("s1.csv").resolve())
    assert say(*sensors("s1.csv", absolute), "--duplicates", "keep", "--how", "sum", "--force").code == 0
    np.testing.assert_array_equal(made().v, np.arange(48.0))


def test_whole_numbers_that_pandas_made_floats_are_one_zone(say: Callable[..., Any]) -> None:
    rows = trips(400)
    table = tlc_zones(rows)
    table[:200].to_parquet("a.parquet", index=False)
    table[200:].astype({"PULocationID": "float64", "DOLocationID": "float64"}).to_parquet("b.parquet", index=False)
    answer = say("data", "zones", "a.parquet", "b.parquet", "--without", "11", "--out", "taxi.parquet")
    assert answer.code == 0, answer
    assert set(pd.read_parquet("taxi.parquet").node) == set(range(1, 11))
    unknown = say("data", "zones", "a.parquet", "--without", "999", "--out", "other.parquet")
    assert (unknown.code, "--without 999: no record names that" in unknown.err) == (2, True)
    again = say("data", "convert", "taxi.parquet", "--out", "again.parquet")
    assert again.code == 0, again
    assert json.loads(pq.read_schema("again.parquet").metadata[b"stlab"])["zero_is_a_reading"] is True


@pytest.mark.parametrize("cells", [(10, 9), (16, 8), (7, 13)])
def test_places_on_inner_edges(cells: tuple[int, int], say: Callable[..., Any]) -> None:
    south, west, north, east = BOX
    lats, lons = np.linspace(north, south, cells[0] + 1)[1:-1], np.linspace(west, east, cells[1] + 1)[1:-1]
    rows = trips(len(lats) * len(lons))
    rows["lat"], rows["lon"] = (part.ravel() for part in np.meshgrid(lats, lons))
    citibike(rows).to_csv("raw.csv", index=False)
    words = ("--cells", f"{cells[0]}x{cells[1]}", "--box", *map(str, BOX), "--starts-only", "--out", "grid.npz")
    answer = say("data", "grid", "raw.csv", *words)
    assert answer.code == 0, answer
    with np.load("grid.npz") as archive:
        values = archive["data"][:, 0].sum(axis=0)
    # An edge belongs to the cell south or east of it.
    assert values.sum() == len(rows)
    np.testing.assert_array_equal(values[1:, 1:], 1)


def test_numbers_whose_comma_may_stand_for_thousands(say: Callable[..., Any]) -> None:
    table = log()
    table["v"] = [f"1,{200 + hour}" for hour in range(48)]
    table.to_csv("log.csv", index=False, sep=";")
    answer = say(*sensors("log.csv"))
    assert (answer.code, "or in thousands? Say it: --decimal , or --decimal ." in answer.err) == (2, True)
    assert say(*sensors("log.csv"), "--decimal", ",").code == 0
    np.testing.assert_allclose(made().v, 1 + np.arange(200, 248) / 1000)


def test_the_same_text_in_files_that_are_read_otherwise_is_no_duplicate(say: Callable[..., Any]) -> None:
    pd.DataFrame({"time": ["03/04/2024 01:00", "03/25/2024 01:00"], "node": 1, "v": 2}).to_csv("us.csv", index=False)
    pd.DataFrame({"time": ["03/04/2024 01:00", "25/03/2024 01:00"], "node": 1, "v": 2}).to_csv("eu.csv", index=False)
    answer = say(*sensors("us.csv", "eu.csv"), "--from", "2024-03-01", "--to", "2024-04-04")
    assert answer.code == 0, answer
    kept = made().dropna()
    assert {pd.Timestamp("2024-03-04 01:00"), pd.Timestamp("2024-04-03 01:00")} <= set(kept.timestamp)


def test_stretches_that_are_left_out_are_named(say: Callable[..., Any]) -> None:
    table = log()
    later = table.assign(time=(HOURS + pd.Timedelta("60D")).astype(str)).iloc[:24]
    pd.concat([table, later]).to_csv("log.csv", index=False)
    answer = say(*sensors("log.csv"))
    assert answer.code == 0, answer
    assert "2024-07-05 to 2024-07-05 (24 records): a week without a record lies between" in answer.out
    assert len(made()) == 48


def test_both_zones_of_a_conversion_are_looked_at(say: Callable[..., Any]) -> None:
    times = pd.date_range("2024-10-27 00:00", periods=12, freq="30min")
    pd.DataFrame({"time": times.astype(str), "node": 1, "v": 1.0}).to_csv("log.csv", index=False)
    answer = say(*sensors("log.csv"), "--tz", "Europe/Berlin", "--to-tz", "UTC")
    assert answer.code == 0, answer
    assert "2024-10-27 02:00 to 03:00 in Europe/Berlin exists twice: records of both are taken for the later" in answer.out
    assert pd.Timestamp("2024-10-27 01:00") in set(made().timestamp)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--delimiter", ";;"), "--delimiter ;;: give one character"),
        (("--encoding", "foo"), "--encoding foo: give utf-8, latin-1, utf-16"),
        (("--decimal", "x"), "--decimal x: give , or ."),
        (("--step", "5min"), "the readings are 60 min apart"),
        (("--out", "log.parquet"), "is one of the files that are read"),
    ],
)
def test_options_that_once_were_tracebacks_or_ignored(more: tuple[str, ...], words: str, say: Callable[..., Any]) -> None:
    log().to_csv("log.csv", index=False)
    log().to_parquet("log.parquet", index=False)
    answer = say(*sensors("log.csv", "log.parquet"), "--force", *more)
    assert answer.code == 2, answer
    assert words in answer.err


def test_other_ways_to_write_a_file(say: Callable[..., Any]) -> None:
    """Tabs that are said, UTF-16, a blank first line, blank cells in Parquet, and seconds as floats."""
    log().to_csv("tab.csv", index=False, sep="\t")
    assert say(*sensors("tab.csv"), "--delimiter", "\\t").code == 0
    log().to_csv("wide.csv", index=False, encoding="utf-16")
    assert say(*sensors("wide.csv"), "--encoding", "utf-16", "--force").code == 0
    assert len(made()) == 48
    Path("blank.csv").write_text("\n" + log().to_csv(index=False))
    assert say(*sensors("blank.csv"), "--force").code == 0
    assert len(made()) == 48
    table = log()
    table.loc[3, "time"] = ""
    table.loc[4, "node"] = " "
    table.to_parquet("gaps.parquet", index=False)
    answer = say(*sensors("gaps.parquet"), "--force")
    assert "dropped: 1 no time, 1 no zone or node" in answer.out, answer
    table = log().assign(time=(HOURS.astype("datetime64[s]").astype("int64")).astype(float))
    table.loc[0, "time"] = 1e300
    table.to_parquet("epoch.parquet", index=False)
    answer = say(*sensors("epoch.parquet"), "--time-format", "epoch", "--tz", "UTC", "--max-bad", "5%", "--force")
    assert answer.code == 0, answer
    assert "1 malformed" in answer.out


def test_metres_are_no_degrees(say: Callable[..., Any]) -> None:
    rows = citibike(trips(50)).assign(start_lat=4_500_000.0, start_lng=580_000.0)
    rows.to_csv("raw.csv", index=False)
    answer = say("data", "grid", "raw.csv", "--cells", "4x4", "--starts-only", "--out", "grid.npz")
    assert (answer.code, "these are no degrees" in answer.err) == (2, True)
