"""Edges of a network from coordinates and from routes, against h3's great circle, a count by hand, and the graph that models see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h3
import numpy as np
import pandas as pd

from stlab.data import load_dataset
from stlab.study.spec import DataSpec


def stations(count: int = 30) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    lat, lon = draw.uniform(34.0, 34.2, count), draw.uniform(-118.5, -118.2, count)
    return pd.DataFrame({"station": 700_000 + np.arange(count), "lat": lat, "lon": lon})


def distances(table: pd.DataFrame) -> np.ndarray:
    """(N, N) metres, by h3."""
    places = list(zip(table.lat, table.lon, strict=True))
    return np.array([[h3.great_circle_distance(one, other, unit="m") for other in places] for one in places])


def test_the_nearest_neighbours_and_their_kernel(say: Callable[..., Any]) -> None:
    table = stations()
    table.to_csv("stations.csv", index=False)
    answer = say("data", "network", "stations.csv", "--node", "station", "--neighbours", "4", "--out", "edges.csv")
    assert answer.code == 0, answer
    edges = pd.read_csv("edges.csv")
    wanted = distances(table)
    np.fill_diagonal(wanted, np.inf)
    for at, node in enumerate(table.station):
        mine = edges[edges["from"] == node]
        np.testing.assert_array_equal(mine.to, table.station.to_numpy()[np.argsort(wanted[at])[:4]])
        np.testing.assert_allclose(mine.cost, np.sort(wanted[at])[:4], rtol=1e-5)
    np.testing.assert_allclose(edges.weight, np.exp(-np.square(edges.cost / edges.cost.std(ddof=0))), rtol=1e-3)
    assert "30, 0 without an edge" in answer.out
    assert f"σ = {edges.cost.std(ddof=0):.1f} m" in answer.out


def test_a_radius_and_what_models_see(say: Callable[..., Any]) -> None:
    table = stations()
    table.to_csv("stations.csv", index=False)
    assert say("data", "network", "stations.csv", "--node", "station", "--radius-metres", "6000", "--out", "edges.csv").code == 0
    wanted = distances(table)
    near = (wanted <= 6000) & ~np.eye(len(table), dtype=bool)
    assert len(pd.read_csv("edges.csv")) == near.sum()
    times = pd.date_range("2024-01-01", periods=400, freq="1h")
    readings = np.random.default_rng(1).uniform(1, 2, (400, 30))
    pd.DataFrame(readings, index=times, columns=table.station.astype(str)).rename_axis("time").to_csv("net.csv")
    info = load_dataset(DataSpec(path="net.csv", family="sensors", distances="edges.csv", graph="connection")).info
    assert info.adjacency is not None
    np.testing.assert_array_equal(np.asarray(info.adjacency) > 0, near)


def test_routes(say: Callable[..., Any]) -> None:
    Path("routes.csv").write_text("from,to,cost\na,b,300\na,c,100\na,a,0\nb,a,250\nc,a,900\na,d,200\n")
    answer = say("data", "network", "routes.csv", "--routed", "--neighbours", "2", "--radius-metres", "800", "--out", "edges.csv")
    assert answer.code == 0, answer
    found = pd.read_csv("edges.csv")
    assert found[["from", "to", "cost"]].to_numpy().tolist() == [["a", "c", 100], ["a", "d", 200], ["b", "a", 250]]


def test_what_makes_no_network(say: Callable[..., Any]) -> None:
    stations(3).to_csv("stations.csv", index=False)
    Path("twice.csv").write_text("node,lat,lon\na,34,-118\na,35,-118\n")
    Path("nowhere.csv").write_text("node,lat,lon\na,34,-118\nb,340,-118\n")
    Path("routes.csv").write_text("from,to,cost\na,b,far\n")
    some = ("--neighbours", "2")
    for words, said in (
        (("stations.csv", *some), "there is no column 'node' (--node). Its columns: station, lat, lon"),
        (("twice.csv", *some), "node a stands there twice"),
        (("nowhere.csv", *some), "line 3: node b has no place: 340, -118"),
        (("routes.csv", "--routed", *some), "line 2: cost is 'far', from a to b: no edge"),
        (("stations.csv", "--node", "station"), "give --neighbours 8, --radius-metres 2000, or both"),
        (("gone.csv", *some), "no such file"),
        (("stations.csv", "--node", "station", "--radius-metres", "1"), "no two nodes are that near"),
    ):  # fmt: skip
        answer = say("data", "network", *words, "--out", "edges.csv")
        assert answer.code == 2, answer
        assert said in " ".join(answer.err.split()), answer.err
    assert not Path("edges.csv").exists()
