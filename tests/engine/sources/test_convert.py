"""Data sets in other projects' layouts, made here as those projects write them, and read again by ``data.path``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from stlab.data import load_dataset
from stlab.study.spec import DataSpec


def series(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(20, shape).astype(np.float32)


def npz(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("per_day", [24, 48])
def test_deepst(per_day: int, say: Callable[..., Any]) -> None:
    """BikeNYC's hours and TaxiBJ's half hours; TaxiBJ lacks steps."""
    steps = 20 * per_day
    data = series((steps, 2, 4, 3))
    days = pd.date_range("2014-04-01", periods=20)
    dates = [f"{day:%Y%m%d}{slot:02d}".encode() for day in days for slot in range(1, per_day + 1)]
    kept = np.delete(np.arange(steps), [100, 101])
    with h5py.File("NYC.h5", "w") as file:
        file["data"], file["date"] = data[kept], np.array(dates)[kept]
    answer = say("data", "convert", "NYC.h5", "--out", "nyc.npz")
    assert answer.code == 0, answer
    made = npz("nyc.npz")
    times = np.datetime64("2014-04-01", "s") + np.arange(steps) * np.timedelta64(86_400 // per_day, "s")
    np.testing.assert_array_equal(made["timestamps"], times)
    np.testing.assert_array_equal(made["data"][kept], data[kept])
    assert np.isnan(made["data"][[100, 101]]).all()
    assert list(made["channels"]) == ["inflow", "outflow"]
    assert "2 steps are left out, and count as missing" in answer.out
    assert load_dataset(DataSpec(path="nyc.npz", missing="interpolate")).info.slots_per_day == per_day


def test_libcity_sensors(say: Callable[..., Any]) -> None:
    Path("METR").mkdir()
    values = series((300, 3))
    times = pd.date_range("2012-03-01", periods=300, freq="5min")
    rows = [
        (time.strftime("%Y-%m-%dT%H:%M:%SZ"), node, values[t, n])
        for n, node in enumerate((773869, 767541, 717447))
        for t, time in enumerate(times)
    ]
    table = pd.DataFrame(rows, columns=["time", "entity_id", "traffic_speed"])
    table.insert(0, "type", "state")
    table.rename_axis("dyna_id").drop(index=7).to_csv("METR/METR.dyna")
    pd.DataFrame({"type": "geo", "origin_id": [773869, 767541], "destination_id": [767541, 717447], "cost": [120.5, 80.0]}).rename_axis(
        "rel_id"
    ).to_csv("METR/METR.rel")
    answer = say("data", "convert", "METR", "--out", "metr.parquet", "--distances", "roads.csv")
    assert answer.code == 0, answer
    assert "without their Z" in answer.out
    found = pd.read_parquet("metr.parquet").set_index(["timestamp", "node"])["traffic_speed"]
    for n, node in enumerate((773869, 767541, 717447)):
        wanted = values[:, n].copy()
        wanted[7] = np.nan if n == 0 else wanted[7]
        np.testing.assert_array_equal(found.xs(node, level="node"), wanted)
    assert Path("roads.csv").read_text().split() == ["from,to,cost", "773869,767541,120.5", "767541,717447,80.0"]
    spec = DataSpec(path="metr.parquet", family="sensors", distances="roads.csv", missing="zero", graph="connection")
    matrix = load_dataset(spec).info.adjacency
    assert matrix is not None
    assert np.asarray(matrix).sum() == 4


def test_libcity_grid(say: Callable[..., Any]) -> None:
    Path("NYC").mkdir()
    values = series((200, 2, 3, 4))
    rows = [
        (f"{time:%Y-%m-%dT%H:%M:%SZ}", row, column, *values[t, :, row, column])
        for row in range(3) for column in range(4) for t, time in enumerate(pd.date_range("2014-04-01", periods=200, freq="1h"))
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["time", "row_id", "column_id", "inflow", "outflow"])
    table.insert(0, "type", "state")
    table.rename_axis("dyna_id").to_csv("NYC/NYC.grid")
    assert say("data", "convert", "NYC", "--out", "nyc.npz").code == 0
    made = npz("nyc.npz")
    np.testing.assert_array_equal(made["data"], values)
    assert list(made["channels"]) == ["inflow", "outflow"]


def test_basicts_old(say: Callable[..., Any]) -> None:
    """The channels that repeat the calendar are left out."""
    Path("PEMS").mkdir()
    values = series((400, 5, 3))
    values.tofile("PEMS/data.dat")
    description = {
        "name": "PEMS", "domain": "traffic flow", "shape": [400, 5, 3], "num_time_steps": 400, "num_nodes": 5,
        "feature_description": ["traffic flow", "time of day", "day of week"], "has_graph": True, "frequency (minutes)": 5,
    }  # fmt: skip
    Path("PEMS/desc.json").write_text(json.dumps(description))
    answer = say("data", "convert", "PEMS", "--out", "pems.npz")
    assert answer.code == 0, answer
    assert "the files have no dates" in answer.out
    np.testing.assert_array_equal(npz("pems.npz")["data"], values[:, :, :1])
    dated = say("data", "convert", "PEMS", "--start", "2018-01-01", "--out", "pems.parquet")
    assert dated.code == 0, dated
    table = pd.read_parquet("pems.parquet")
    assert list(table.columns) == ["timestamp", "node", "traffic flow"]
    assert table.timestamp.iloc[[0, -1]].tolist() == [pd.Timestamp("2018-01-01"), pd.Timestamp("2018-01-01") + 399 * pd.Timedelta("5min")]
    np.testing.assert_array_equal(table["traffic flow"].to_numpy().reshape(400, 5), values[:, :, 0])


def test_basicts_new(say: Callable[..., Any]) -> None:
    Path("new").mkdir()
    values = series((100, 4))
    for segment, part in zip(("train", "val", "test"), (values[:60], values[60:80], values[80:]), strict=True):
        np.save(f"new/{segment}_data.npy", part)
    Path("new/meta.json").write_text(json.dumps({"name": "new", "frequency (minutes)": 60}))
    assert say("data", "convert", "new", "--out", "new.npz", "--start", "2024-01-01").code == 0
    made = npz("new.npz")
    np.testing.assert_array_equal(made["data"][..., 0], values)
    assert made["timestamps"][-1] == np.datetime64("2024-01-05T03:00:00")


def test_arrays_of_pytorch_geometric_temporal(say: Callable[..., Any]) -> None:
    """A weight is DCRNN's exp(−d²/σ²): the edge's cost is the distance, in units of σ."""
    Path("pgt").mkdir()
    values, distance = series((50, 3, 2)), np.array([[0.0, 0.5, np.inf], [0.5, 0.0, 1.2], [np.inf, 1.2, 0.0]])
    np.save("pgt/node_values.npy", values)
    np.save("pgt/adj_mat.npy", np.exp(-np.square(distance)))
    answer = say("data", "convert", "pgt", "--out", "pgt.npz", "--distances", "edges.csv", "--start", "2012-03-01", "--step", "5min")
    assert answer.code == 0, answer
    np.testing.assert_array_equal(npz("pgt.npz")["data"], values)
    edges = pd.read_csv("edges.csv")
    np.testing.assert_allclose(edges.cost, distance[edges["from"], edges["to"]], atol=1e-6)
    assert len(edges) == 7


def test_metr_la_and_back(say: Callable[..., Any]) -> None:
    times = pd.date_range("2012-03-01", periods=500, freq="5min")
    frame = pd.DataFrame(series((500, 3)), index=times, columns=["773869", "767541", "767542"])
    frame.to_hdf("METR-LA.h5", key="df", format="fixed")
    assert say("data", "convert", "METR-LA.h5", "--out", "metrla.parquet").code == 0
    found = pd.read_parquet("metrla.parquet").pivot(index="timestamp", columns="node", values="value")
    np.testing.assert_array_equal(found[[773869, 767541, 767542]], frame)


def test_what_cannot_be_converted(say: Callable[..., Any]) -> None:
    Path("empty").mkdir()
    Path("cut").mkdir()
    Path("cut/data.dat").write_bytes(b"\0" * 10)
    Path("cut/desc.json").write_text('{"shape": [4, 2, 1]}')
    Path("two").mkdir()
    Path("two/a.dyna").write_text("x")
    Path("two/b.grid").write_text("x")
    np.savez("grid.npz", data=series((50, 1, 2, 2)))
    with h5py.File("bad.h5", "w") as file:
        file["data"], file["date"] = series((2, 2, 2, 2)), np.array([b"2014040101", b"yesterday!"])
    Path("x.xlsx").write_text("x")
    for words, said in (
        (("gone.h5",), "no such file or folder"), (("empty",), "a folder in no known layout; in it: nothing"),
        (("cut",), "10 bytes, where [4, 2, 1] of float32 is 32"), (("two",), "a.dyna, b.grid: give a folder with one of them"),
        (("bad.h5",), "`date` 1 is 'yesterday!'"), (("x.xlsx",), "in no known layout"),
        (("grid.npz", "--distances", "e.csv"), "has no edges"),
    ):  # fmt: skip
        answer = say("data", "convert", *words, "--out", "out.npz")
        assert answer.code == 2, answer
        assert said in " ".join(answer.err.split()), answer.err
    assert "is a grid, which is kept as .npz" in say("data", "convert", "grid.npz", "--out", "out.parquet").err
    assert not list(Path().glob("*out*"))


def test_formats_are_listed_with_what_they_need(say: Callable[..., Any]) -> None:
    said = say("data", "formats").out
    for words in ("Citi Bike", "started_at", "PULocationID", "Caltrans PeMS", "TaxiBJ", "LibCity", "desc.json", "adj_mat.npy"):
        assert words in said
