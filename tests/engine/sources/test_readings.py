"""Logs of sensors and counters against pandas: long tables on even steps, and the layouts that they come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.engine.sources.layouts import pems_station


def read(path: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    table = pq.read_table(path)
    return table.to_pandas().set_index(["timestamp", "node"]), json.loads(table.schema.metadata[b"stlab"])


def log(nodes: int = 4, minutes: int = 2 * 1440, seed: int = 0) -> pd.DataFrame:
    """A reading a minute, some of them gone."""
    draw = np.random.default_rng(seed)
    times = pd.date_range("2024-05-06", periods=minutes, freq="1min")
    rows = pd.DataFrame([(time, node) for time in times for node in range(nodes)], columns=["time", "node"])
    rows["flow"] = draw.integers(0, 90, len(rows)) / 2
    rows["speed"] = draw.integers(30, 120, len(rows)).astype(float)
    return rows.drop(index=draw.choice(len(rows), len(rows) // 10, replace=False))


@pytest.mark.parametrize(("how", "by"), [("mean", "mean"), ("sum", "sum"), ("max", "max"), ("last", "last")])
def test_several_readings_become_one_a_step(how: str, by: str, say: Callable[..., Any]) -> None:
    rows = log()
    rows.sample(frac=1, random_state=0).to_csv("detectors.csv", index=False)
    words = ("--time", "time", "--node", "node", "--value", "flow", "--value", "speed", "--how", how)
    answer = say("data", "sensors", "detectors.csv", *words, "--step", "15min", "--out", "net.parquet")
    assert answer.code == 0, answer
    found, facts = read("net.parquet")
    wanted = rows.sort_values("time").groupby([rows.time.dt.floor("15min"), "node"])[["flow", "speed"]].agg(by)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert list(found.columns) == ["flow", "speed"]
    assert facts["readings_a_step"] in (13, 14)
    assert facts["tallies"][0]["kept"] == len(rows)
    assert f"a step is the {how} of" in answer.out
    assert "(data.channel=0)" in say("data", "inspect", "net.parquet").out


def test_caltrans_station_files_need_no_column(say: Callable[..., Any]) -> None:
    parts = [pems_station(Path(f"d07_text_station_5min_2024_01_0{day}.txt"), day=f"2024-01-0{day}") for day in (3, 4)]
    rows = pd.concat(parts)
    answer = say("data", "sensors", "d07_text_station_5min_*.txt", "--value", "Total Flow", "--out", "d07.parquet")
    assert answer.code == 0, answer
    found, facts = read("d07.parquet")
    np.testing.assert_array_equal(found["Total Flow"], rows.dropna().set_index(["time", "station"]).sort_index()["flow"])
    assert facts["tallies"][0]["dropped"] == {"no reading": 2}
    assert facts["missing"] == 2
    assert "Caltrans PeMS" in answer.out
    whole = say("data", "sensors", "d07_text_station_5min_*.txt", "--out", "all.parquet")
    assert whole.code == 0, whole
    assert list(read("all.parquet")[0].columns) == ["Total Flow", "Avg Occupancy", "Avg Speed"]


def test_a_counter_of_a_german_city(say: Callable[..., Any]) -> None:
    """Semicolons, decimal commas, Latin-1, and days first."""
    rows = log(3, 1440)
    rows["Zählstelle"] = "Straße " + rows.node.astype(str)
    table = pd.DataFrame({"Zeit": rows.time.dt.strftime("%d.%m.%Y %H:%M"), "Zählstelle": rows["Zählstelle"], "Kfz je h": rows.flow})
    table.to_csv("zaehler.csv", index=False, sep=";", decimal=",", encoding="latin-1")
    words = ("--time", "Zeit", "--node", "Zählstelle", "--value", "Kfz je h", "--tz", "Europe/Berlin")
    answer = say("data", "sensors", "zaehler.csv", *words, "--step", "1min", "--out", "net.parquet")
    assert answer.code == 0, answer
    found, _ = read("net.parquet")
    wanted = rows.set_index(["time", "Zählstelle"]).sort_index()["flow"]
    np.testing.assert_array_equal(found["Kfz je h"], wanted)
    assert set(found.index.get_level_values("node")) == {"Straße 0", "Straße 1", "Straße 2"}
    assert "';' between columns, Latin-1; decimal comma" in answer.out


@pytest.mark.parametrize(("form", "times"), [("epoch", 1), ("epoch_ms", 1000)])
def test_seconds_since_1970_are_said(form: str, times: int, say: Callable[..., Any]) -> None:
    rows = log(2, 300)
    rows.assign(time=(rows.time.astype("datetime64[s]").astype("int64") * times)).to_csv("log.csv", index=False)
    words = ("data", "sensors", "log.csv", "--time", "time", "--node", "node", "--value", "flow", "--step", "1min", "--out", "net.parquet")
    unsaid = say(*words)
    assert unsaid.code == 2
    assert "--time-format" in unsaid.err
    answer = say(*words, "--time-format", form, "--tz", "UTC")
    assert answer.code == 0, answer
    np.testing.assert_array_equal(read("net.parquet")[0]["flow"], rows.set_index(["time", "node"]).sort_index()["flow"])


def test_one_time_and_two_readings_are_said(say: Callable[..., Any]) -> None:
    rows = log(2, 300)
    again = rows.iloc[:4].assign(flow=lambda table: table.flow + 1)
    pd.concat([rows, again, rows.iloc[:3]]).to_csv("log.csv", index=False)
    words = ("data", "sensors", "log.csv", "--time", "time", "--node", "node", "--value", "flow", "--step", "1min", "--out", "net.parquet")
    answer = say(*words)
    assert answer.code == 0, answer
    assert "4 times one node has several readings of one time" in answer.out
    assert "3 the same row twice" in answer.out
    found = read("net.parquet")[0]["flow"]
    np.testing.assert_array_equal(found.loc[again.set_index(["time", "node"]).index], again.flow - 0.5)
