"""Sensor files in each real layout: what is read, and in which words the rest is refused."""

from __future__ import annotations

import builtins
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stlab.data import load_dataset
from stlab.errors import DataError
from stlab.inspection.data_summary import summarise
from stlab.study.spec import DataSpec

STEPS, NODES = 300, 5
TIMES = np.datetime64("2012-03-01", "s") + np.arange(STEPS) * np.timedelta64(300, "s")
IDS = ("773869", "767541", "767542", "717447", "717446")  # the first of METR-LA


def speeds(seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(20, 70, (STEPS, NODES, channels)).astype(np.float32)


def spec(path: Path | str, **changes: Any) -> DataSpec:
    return DataSpec(path=str(path), family="sensors", **changes)


def series_of(path: Path | str, **changes: Any) -> np.ndarray:
    """The whole series in the data's unit, (T, N)."""
    dataset = load_dataset(spec(path, **changes))
    return dataset.scaler.inverse(dataset.windows("train").series.double())[:, :, 0].numpy()


def refuses(path: Path | str, *words: str, **changes: Any) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(spec(path, **changes))
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def frame(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values[:, :, 0].astype(np.float64), index=pd.DatetimeIndex(TIMES), columns=list(IDS))


def long(values: np.ndarray, **columns: Any) -> pa.Table:
    """Rows in no order, as a database may give them."""
    step, node = (index.ravel() for index in np.indices((STEPS, NODES)))
    order = np.random.default_rng(1).permutation(len(step))
    content = {"timestamp": TIMES[step], "node": np.array(IDS)[node], "value": values[step, node, 0], **columns}
    return pa.table({name: np.asarray(column)[order] for name, column in content.items()})


def test_one_network_is_the_same_in_every_format(tmp_path: Path) -> None:
    pytest.importorskip("tables", reason="pandas writes HDF5 with it")
    data = speeds()
    np.savez(tmp_path / "wide.npz", data=data[:, :, 0], timestamps=TIMES)
    np.savez(tmp_path / "deep.npz", data=data.astype(np.float64), timestamps=TIMES.astype("datetime64[ns]"))
    frame(data).to_hdf(tmp_path / "metr-la.h5", key="df")
    frame(data).to_csv(tmp_path / "table.csv")
    frame(data).to_csv(tmp_path / "stamped.csv", index_label="timestamp")
    pq.write_table(long(data), tmp_path / "long.parquet")
    order = np.argsort(IDS)
    for name in ("wide.npz", "deep.npz", "metr-la.h5", "table.csv", "stamped.csv", "long.parquet"):
        dataset = load_dataset(spec(tmp_path / name))
        of = order if name == "long.parquet" else np.arange(NODES)
        windows = dataset.windows("test")
        np.testing.assert_allclose(series_of(tmp_path / name), data[:, of, 0], atol=1e-4)
        np.testing.assert_array_equal(windows.times(torch.tensor([0]))[0], TIMES[240 + 12 : 240 + 24])
        assert dataset.info.shape == (NODES, 1)
        assert (dataset.info.history, dataset.info.horizon, dataset.info.slots_per_day) == (12, 12, 288)
        assert dataset.node_names == (None if name.endswith(".npz") else tuple(IDS[i] for i in of))
        assert dataset.protocol["mask"] == 0.0
    hashes = {load_dataset(spec(tmp_path / name)).sha256 for name in ("wide.npz", "deep.npz", "metr-la.h5", "table.csv")}
    assert len(hashes) == 1


def test_numbers_of_any_kind_are_taken(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(1, 500, (STEPS, NODES, 1))
    hashes = set()
    for kind in (np.float16, np.float32, np.float64, np.int16, np.int64, np.uint16):
        np.savez(tmp_path / "counts.npz", data=counts.astype(kind))
        hashes.add(load_dataset(spec(tmp_path / "counts.npz")).sha256)
    assert len(hashes) == 1
    with np.errstate(over="ignore"):
        np.savez(tmp_path / "half.npz", data=(counts * 1000).astype(np.float16))
    refuses(tmp_path / "half.npz", "half.npz", "not finite", "inf", "data.missing")


def test_one_of_several_channels_is_forecast(tmp_path: Path) -> None:
    data = speeds(channels=3)
    data[0, 0, 1] = np.nan  # in a channel that is not used
    path = tmp_path / "three.npz"
    np.savez(path, data=data)
    assert load_dataset(spec(path)).channel_names == ("channel 1",)
    flow, speed = load_dataset(spec(path)), load_dataset(spec(path, channel=2))
    np.testing.assert_allclose(series_of(path, channel=2), data[:, :, 2], atol=1e-4)
    assert (flow.protocol["channel"], speed.protocol["channel"], speed.protocol["channels"]) == (0, 2, 1)
    assert speed.channel_names == ("channel 3",)
    assert flow.sha256 != speed.sha256
    np.savez(tmp_path / "alone.npz", data=data[:, :, 2])
    assert load_dataset(spec(tmp_path / "alone.npz")).sha256 == speed.sha256  # the hash is of what is used
    refuses(path, "three.npz", "T=0, N=0, C=1", "1 of 1500", channel=1)
    refuses(path, "`data` has 3 channels", "data.channel=3", "0 (channel 1)", channel=3)
    with pytest.raises(ValueError, match=r"data\.family: sensors"):
        DataSpec(path="x", channel=1)


@pytest.mark.parametrize("name", ["PEMS08", "pems08"])
def test_known_pems_files_get_their_times_and_channels(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.npz"
    data = np.random.default_rng(0).integers(1, 400, (17856, 170, 3)).astype(np.float16)
    np.savez(path, data=data)
    dataset = load_dataset(spec(path))
    assert dataset.channel_names == ("flow",)
    assert str(dataset.train.timestamps[0]) == "2016-07-01T00:00:00"
    assert dataset.train.slots[0] == 4 * 288  # a Friday
    assert str(dataset.windows("test").times(torch.tensor([0]))[0, 0]) == str(
        pd.Timestamp("2016-07-01") + pd.Timedelta(minutes=5 * (int(0.8 * 17856) + 12))
    ).replace(" ", "T")
    assert dataset.info.season_count == 5  # 37.2 days
    moved = load_dataset(spec(path, start="2020-01-01", step_minutes=5))
    assert str(moved.train.timestamps[0]) == "2020-01-01T00:00:00"
    assert moved.sha256 != dataset.sha256  # times belong to the content, and so to a trial's identity
    np.savez(path, data=data[:-1])
    assert load_dataset(spec(path)).train.timestamps is None


def test_times_can_be_given(tmp_path: Path) -> None:
    data = speeds()
    bare, stamped = tmp_path / "bare.npz", tmp_path / "stamped.npz"
    np.savez(bare, data=data)
    np.savez(stamped, data=data, timestamps=TIMES)
    given = load_dataset(spec(bare, start="2012-03-01T00:00", step_minutes=5))
    assert given.sha256 == load_dataset(spec(stamped)).sha256
    assert given.sha256 != load_dataset(spec(bare)).sha256
    refuses(stamped, "stamped.npz", "timestamps of its own", "data.start", start="2012-03-01", step_minutes=5)
    refuses(bare, "does not divide a day", start="2012-03-01", step_minutes=7)
    refuses(bare, "whole number of seconds", start="2012-03-01", step_minutes=0.0001)
    with pytest.raises(ValueError, match="go together"):
        spec(bare, start="2012-03-01")
    for start, words in (("1 March", "not an ISO time"), ("2012-03-01T00:00Z", "without a time zone")):
        with pytest.raises(ValueError, match=words):
            spec(bare, start=start, step_minutes=5)


def test_a_grid_is_a_network_of_its_cells(tmp_path: Path) -> None:
    data = np.random.default_rng(0).poisson(3, (400, 2, 4, 6)).astype(np.float32)
    path = tmp_path / "grid.npz"
    np.savez(path, data=data)
    dataset = load_dataset(spec(path, channel=1))
    np.testing.assert_allclose(series_of(path, channel=1), data[:, 1].reshape(400, 24), atol=1e-4)
    assert dataset.protocol["mask"] is None  # in a grid 0 is a reading
    assert load_dataset(spec(path, null=0)).protocol["mask"] == 0.0
    assert dataset.node_names[:8] == ("0,0", "0,1", "0,2", "0,3", "0,4", "0,5", "1,0", "1,1")
    city = load_dataset(spec("synthetic:city", channel=1))
    assert (city.channel_names, city.synthetic, city.info.shape) == (("outflow",), True, (64, 1))


def test_parquet_pairs_without_a_row_are_missing(tmp_path: Path) -> None:
    table = long(speeds(), occupancy=np.arange(STEPS * NODES) % 7)
    path = tmp_path / "long.parquet"
    times, nodes = table["timestamp"].to_numpy(), table["node"].to_numpy(zero_copy_only=False)
    pq.write_table(table.filter(pa.array(~((times == TIMES[17]) & (nodes == IDS[1])))), path)
    refuses(path, "long.parquet", "1 of 1500", "T=17, N=2, C=0", "2012-03-01T01:25:00", f"node {IDS[1]}", "masked out")
    assert series_of(path, missing="zero")[17, 2] == pytest.approx(0, abs=1e-5)
    pq.write_table(table, path)
    assert load_dataset(spec(path, channel=1)).channel_names == ("occupancy",)
    pq.write_table(pa.concat_tables([table, table.slice(5, 1)]), path)
    refuses(path, "1 readings appear twice", "rows 5 and 1500", "Keep one")
    pq.write_table(table.drop_columns("node"), path)
    refuses(path, "columns timestamp, value, occupancy", "node")
    pq.write_table(table.set_column(2, "value", pa.array(["a"] * len(table))), path)
    refuses(path, "`value` holds string")
    pq.write_table(table.set_column(0, "timestamp", pa.array(range(len(table)))), path)
    refuses(path, "`timestamp` holds int64")
    path.write_bytes(path.read_bytes()[:500])
    refuses(path, "no Parquet file")


def test_parquet_numbers_as_ids_are_sorted_by_size(tmp_path: Path) -> None:
    data = speeds()
    table = long(data)
    number = {name: i for i, name in enumerate(IDS)}
    ids = pa.array([(9, 10, 11, 100, 1000)[number[name]] for name in table["node"].to_pylist()])
    pq.write_table(table.set_column(1, "node", ids), tmp_path / "long.parquet")
    dataset = load_dataset(spec(tmp_path / "long.parquet"))
    assert dataset.node_names == ("9", "10", "11", "100", "1000")
    np.testing.assert_allclose(series_of(tmp_path / "long.parquet"), data[:, :, 0], atol=1e-4)


def test_csv_without_times_and_what_is_refused(tmp_path: Path) -> None:
    data, path = speeds(), tmp_path / "table.csv"
    frame(data).to_csv(path, index=False)
    dataset = load_dataset(spec(path))
    assert (dataset.node_names, dataset.train.timestamps) == (IDS, None)
    np.testing.assert_allclose(series_of(path), data[:, :, 0], atol=1e-4)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    refuses(path, "the first line", "is readings", "ids on top")
    path.write_text("\n".join([lines[0], *lines[1:9], lines[9].replace(lines[9].split(",")[2], "broken"), *lines[10:]]))
    refuses(path, "line 10", f"sensor {IDS[2]}", "'broken' is no number")
    path.write_text("\n".join([lines[0].replace(IDS[4], IDS[1]), *lines[1:]]))
    refuses(path, f"the sensor {IDS[1]} appears twice", "line 1")
    path.write_text("\n".join([lines[0], *(line + ",1" for line in lines[1:])]))
    refuses(path, "more cells than the header, 5")
    path.write_text("\n".join([*lines[:7], lines[7] + ",1,2", *lines[8:]]))
    refuses(path, "no CSV table of 5 columns", "line 8")
    pd.DataFrame(data[:, :, 0], columns=IDS).to_csv(path)
    refuses(path, "first column, ''", "not times", "data.start")
    text = frame(data).to_csv()
    path.write_text(text.replace("2012-03-01 00:25:00", "noon"))
    refuses(path, "line 7", "'noon' is no ISO time")
    path.write_text(text.replace(":00,", ":00Z,"))
    refuses(path, "line 2", "time zone")
    path.write_text("")
    refuses(path, "an empty file")
    path.write_bytes(b"\xff\xfe\x00\x01")
    refuses(path, "no CSV text")


def test_csv_empty_cells_are_missing(tmp_path: Path) -> None:
    table = frame(speeds())
    table.iloc[3, 2] = np.nan
    table.to_csv(tmp_path / "table.csv")
    refuses(tmp_path / "table.csv", "1 of 1500", "T=3, N=2, C=0", "2012-03-01T00:15:00", f"node {IDS[2]}")


class Mark:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_hdf_runs_nothing_and_refuses_pickles(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="it reads HDF5")
    tables = pytest.importorskip("tables", reason="pandas writes HDF5 with it")
    path, mark = tmp_path / "metr-la.h5", tmp_path / "it_ran"
    data = speeds()
    frame(data).to_hdf(path, key="df")
    with tables.open_file(path, "a") as file:
        file.get_node("/df")._v_attrs.info = Mark(mark)  # PyTables runs this when the file is opened
        file.get_node("/df/axis1")._v_attrs.freq = Mark(mark)
    np.testing.assert_allclose(series_of(path), data[:, :, 0], atol=1e-4)
    assert not mark.exists()
    with tables.open_file(path, "r") as file:
        file.get_node("/df")._v_attrs  # noqa: B018 - reading is the point
    assert mark.is_dir()  # the trap works
    with pytest.warns(pd.errors.PerformanceWarning):
        frame(data).assign(note=pd.Series([{}] * STEPS, index=TIMES, dtype=object)).to_hdf(path, key="df")
    refuses(path, "metr-la.h5", "df/block1_values", "pickled", "refused")
    frame(data).to_hdf(path, key="df", format="table", mode="w")
    refuses(path, "`table` layout", "format='fixed'")


def test_hdf_layouts(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="it reads HDF5")
    pytest.importorskip("tables", reason="pandas writes HDF5 with it")
    data, path = speeds(), tmp_path / "pems-bay.h5"
    bay = frame(data).set_axis([400001, 400017, 400030, 400040, 400045], axis=1)
    bay[400030] = bay[400030].round().astype(np.int64)  # a block of its own
    bay.to_hdf(path, key="speed", mode="w")
    assert load_dataset(spec(path)).node_names == ("400001", "400017", "400030", "400040", "400045")
    expected = data[:, :, 0].copy()
    expected[:, 2] = expected[:, 2].round()
    np.testing.assert_allclose(series_of(path), expected, atol=1e-4)
    old = frame(data)
    old.index = old.index.as_unit("ns")
    old.to_hdf(tmp_path / "metr-la.h5", key="df")
    with h5py.File(tmp_path / "metr-la.h5", "a") as file:  # pandas before 2.0 had nanoseconds alone, and named no unit
        file["df/axis1"].attrs["kind"] = np.bytes_("datetime64")
    np.testing.assert_array_equal(load_dataset(spec(tmp_path / "metr-la.h5")).train.timestamps, TIMES[:180])
    frame(data).to_hdf(path, key="two", mode="a")
    refuses(path, "2 tables", "speed, two")
    frame(data).reset_index(drop=True).to_hdf(path, key="df", mode="w")
    refuses(path, "df/axis1", "integer", "not times")
    holed = frame(data)
    holed.iloc[8, 1] = np.nan
    holed.to_hdf(path, key="df", mode="w")
    refuses(path, "array `df`", "1 of 1500", "T=8, N=1", f"node {IDS[1]}")
    path.write_bytes(path.read_bytes()[:3000])
    refuses(path, "damaged")
    path.write_bytes(b"no HDF5")
    refuses(path, "no HDF5 file")


def test_hdf_without_its_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metr-la.h5").touch()
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    refuses(tmp_path / "metr-la.h5", "h5py", "pip install 'stlab[h5]'")


def test_families_and_formats_that_do_not_go_together(tmp_path: Path) -> None:
    for name, family, words in (
        ("table.csv", "grid", "data.family: sensors"),
        ("metr-la.h5", "grid", "data.family: sensors"),
        ("bike.json", "sensors", "data.family: grid"),
        ("speeds.pkl", "sensors", "pickled, which is refused"),
        ("speeds.xlsx", "sensors", ".parquet"),
    ):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        with pytest.raises(DataError, match=words):
            load_dataset(DataSpec(path=str(tmp_path / name), family=family))
    np.savez(tmp_path / "pems.npz", data=speeds())
    with pytest.raises(DataError, match=r"3 axes, shape \(300, 5, 1\).*data\.family: sensors"):
        load_dataset(DataSpec(path=str(tmp_path / "pems.npz")))
    np.savez(tmp_path / "one.npz", data=speeds()[:, 0, 0])
    refuses(tmp_path / "one.npz", "1 axes", "(T, 1)")


def test_ids_and_distances(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "pems.npz", data=speeds())
    ids, distances = tmp_path / "pems.txt", tmp_path / "pems.csv"
    ids.write_text("\n".join(IDS) + "\n")
    distances.write_text(f"from,to,distance\n{IDS[0]},{IDS[3]},1.5\n{IDS[4]},{IDS[0]},20\n")
    dataset = load_dataset(spec(tmp_path / "pems.npz", node_ids=str(ids), distances=str(distances)))
    assert dataset.node_names == IDS
    np.testing.assert_array_equal(dataset.edges, [[0, 3, 1.5], [4, 0, 20]])
    plain = load_dataset(spec(tmp_path / "pems.npz"))
    assert (plain.edges, plain.node_names, plain.protocol) == (None, None, dataset.protocol)
    distances.write_text("from,to,cost\n0,3,1.5\n4,0,20\n")
    np.testing.assert_array_equal(
        load_dataset(spec(tmp_path / "pems.npz", distances=str(distances))).edges, dataset.edges
    )
    distances.write_text("from,to,cost\n0,3,1.5\n5,0,20\n")
    refuses(tmp_path / "pems.npz", "pems.csv", "line 3", "node 5", "indices 0 to 4", distances=str(distances))
    # METR-LA's public distances hold sensors that its readings do not.
    distances.write_text(f"from,to,cost\n1201054,{IDS[0]},7\n{IDS[0]},{IDS[1]},2\n")
    both = {"node_ids": str(ids), "distances": str(distances)}
    np.testing.assert_array_equal(load_dataset(spec(tmp_path / "pems.npz", **both)).edges, [[0, 1, 2]])
    assert "1 of 2 edges left out" in caplog.text
    distances.write_text("from,to,cost\n1201054,1201066,7\n")
    refuses(tmp_path / "pems.npz", "line 2", "node 1201054", f"ids such as {IDS[0]}", **both)
    distances.write_text(f"from,to,cost\n{IDS[0]},{IDS[1]},far\n")
    refuses(tmp_path / "pems.npz", "line 2 is no edge", "far", "finite number", **both)
    distances.write_text("a,b\n1,2\n")
    refuses(tmp_path / "pems.npz", "columns a, b", "from, to and cost", **both)
    refuses(tmp_path / "pems.npz", "no such file", "data.distances", distances=str(tmp_path / "none.csv"))
    refuses(tmp_path / "pems.npz", "pickled", "refused", distances=str(tmp_path / "adj_mx.pkl"))
    ids.write_text("\n".join(IDS[:4]))
    refuses(tmp_path / "pems.npz", "pems.txt", "4 ids for the 5 nodes", node_ids=str(ids))
    ids.write_text("\n".join([*IDS[:4], IDS[0]]))
    refuses(tmp_path / "pems.npz", f"{IDS[0]} appears twice", "number 1 and 5", node_ids=str(ids))
    frame(speeds()).to_csv(tmp_path / "named.csv")
    ids.write_text("\n".join(reversed(IDS)))
    refuses(tmp_path / "named.csv", "itself calls that node 773869", "Leave data.node_ids out", node_ids=str(ids))


def test_a_summary_names_nodes_gaps_and_dead_sensors(tmp_path: Path) -> None:
    data = speeds()
    data[:, 3] = 0
    data[:200, 1] = 0  # gives readings after the train segment, 180, has ended
    data[50, 0] = np.nan
    frame(data).to_csv(tmp_path / "table.csv")
    distances = tmp_path / "edges.csv"
    distances.write_text(f"from,to,cost\n{IDS[0]},{IDS[1]},2\n")
    summary = summarise(spec(tmp_path / "table.csv", distances=str(distances)))
    assert summary.sensors is not None
    assert (summary.sensors.nodes, summary.sensors.edges, summary.sensors.null) == (5, 1, 0.0)
    assert summary.sensors.dead == [IDS[1], IDS[3]]
    assert summary.sensors.without_reading_percent == pytest.approx(100 * (300 + 200 + 1) / 1500)
    assert len(summary.problems) == 1
    text = dict(summary.lines())
    assert text["dead sensors"] == f"2 without a reading in the train segment: {IDS[1]}, {IDS[3]}"
    assert text["no reading"] == "33.4 % (0 means none)"
    assert summarise(spec(tmp_path / "table.csv", null="none")).sensors.dead == []
    filled = spec(tmp_path / "table.csv", missing="zero")
    assert summarise(filled).sha256 == load_dataset(filled).sha256


@pytest.mark.parametrize("name", ["Unnamed: 0", "step", "epoch", "whatever"])
def test_a_column_that_runs_with_the_steps_is_no_sensor(name: str, tmp_path: Path) -> None:
    table = pd.DataFrame(speeds()[:, :, 0], columns=IDS)
    table.insert(0, name, 1_330_560_000 + 300 * np.arange(len(table)))
    table.to_csv(tmp_path / "table.csv", index=False)
    refuses(tmp_path / "table.csv", f"'{name}'", "run with the steps", "data.start")


def test_a_header_of_readings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    frame(speeds()).to_csv(path, header=False)
    refuses(path, "is readings", "ids on top")
    frame(np.round(speeds())).to_csv(path, header=False, index=False)
    refuses(path, "is readings", "ids on top")


@pytest.mark.parametrize("zone", ["+01", "+01:00", "-0800", "Z", " UTC"])
def test_times_with_a_zone_are_refused(zone: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(frame(speeds()).to_csv().replace(":00,", f":00{zone},"))
    refuses(tmp_path / "table.csv", "line 2", "time zone")


def test_a_long_csv_is_sent_to_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"timestamp": TIMES[:50], "node": 7, "value": 1.0}).to_csv(tmp_path / "long.csv", index=False)
    refuses(tmp_path / "long.csv", "long table", "Parquet")


@pytest.mark.parametrize("kind", ["csv", "h5", "parquet"])
def test_steps_that_a_table_leaves_out_are_missing_readings(kind: str, tmp_path: Path) -> None:
    """PEMS-BAY lacks the hour that the clocks skip."""
    data = speeds()
    table = frame(data).drop(index=frame(data).index[40:52])
    path = tmp_path / f"bay.{kind}"
    if kind == "csv":
        table.to_csv(path)
    elif kind == "h5":
        pytest.importorskip("tables", reason="pandas writes HDF5 with it")
        table.to_hdf(path, key="speed", mode="w")
    else:
        long = table.rename_axis("timestamp").reset_index().melt("timestamp", var_name="node")
        long.sample(frac=1, random_state=0).to_parquet(path)  # shuffled: pandas keeps the index as a column
    refuses(path, "irregular", "index 39", "index 40", "3900 s", "12 steps are left out", "data.missing")
    dataset = load_dataset(spec(path, missing="zero"))
    expected = data[:, :, 0].copy()
    expected[40:52] = 0
    order = np.argsort(IDS) if kind == "parquet" else np.arange(len(IDS))
    np.testing.assert_allclose(dataset.train.values[:, :, 0], expected[:180][:, order], atol=1e-4)
    np.testing.assert_array_equal(dataset.train.timestamps, TIMES[:180])
    mask = dataset.windows("train").gather(torch.tensor([30])).target_mask
    assert not mask[:, :10].any()  # steps 42 to 51 of the 42 to 53 that are forecast
    assert mask[:, 10:].all()


@pytest.mark.parametrize("start", ["20180102", "20180102T0000", "2018-W01-2", "2018-01-02"])
def test_any_iso_start_is_that_day(start: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "pems.npz", data=speeds())
    dataset = load_dataset(spec(tmp_path / "pems.npz", start=start, step_minutes=5))
    assert dataset.train.timestamps[0] == np.datetime64("2018-01-02T00:00:00")


@pytest.mark.parametrize(("name", "part"), [("validation", slice(180, 240)), ("test", slice(240, 300))])
def test_a_segment_without_a_reading_is_named(name: str, part: slice, tmp_path: Path) -> None:
    data = speeds()
    data[part] = 0
    np.savez(tmp_path / "pems.npz", data=data)
    refuses(tmp_path / "pems.npz", f"no reading in the {name} segment", "data.null: none", "data.split")


def test_ids_on_one_line(tmp_path: Path) -> None:
    """As METR-LA's graph_sensor_ids.txt has them."""
    np.savez(tmp_path / "pems.npz", data=speeds())
    (tmp_path / "ids.txt").write_text(",".join(IDS))
    assert load_dataset(spec(tmp_path / "pems.npz", node_ids=str(tmp_path / "ids.txt"))).node_names == IDS
