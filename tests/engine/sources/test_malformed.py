"""Files and options that cannot be used: each is refused in one message that says what, where and what to do; nothing is left."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.engine.sources.layouts import BOX, citibike, trips

GRID = ("data", "grid", "raw.csv", "--cells", "4x4", "--box", *map(str, BOX), "--out", "grid.npz")
SENSORS = ("data", "sensors", "raw.csv", "--time", "t", "--node", "n", "--value", "v", "--out", "net.parquet")


def text(rows: int = 50) -> str:
    return citibike(trips(rows)).to_csv(index=False)


def log(times: list[str], node: str = "a", value: str = "1") -> str:
    return "t,n,v\n" + "".join(f"{time},{node},{value}\n" for time in times)


@pytest.mark.parametrize(
    ("content", "command", "words"),
    [
        (b"", GRID, "raw.csv: an empty file"),
        (b"   \n\n", GRID, "raw.csv: an empty file"),
        (text().splitlines()[0].encode() + b"\n", GRID, "a header and no row"),
        (b"PAR1\0\0\0", GRID, "no text, but binary data"),
        (b"PK\x03\x04rest", GRID, "archives in .zip"),
        (b"a,b,c\n1,2,3\n", GRID, "which column is it? Say it with --time. Its columns: a, b, c"),
        (b"start_lat,start_lng,started_at\n40.75,-73.98,2024-03-01\n", GRID, "Say it with --time"),
        (
            (text(20) + text(30).partition("\n")[2].replace("2024-03", "2024-13")).encode(), GRID,
            "30 of 50 rows are malformed, more than --max-bad 1%",
        ),
        (text().replace(",4", ",x4").encode(), GRID, "raw.csv, line 2: start_lat is 'x40."),
        ((text(20) + "1,2\n" * 5).encode(), GRID, "raw.csv, line 22: expected number of columns: 13 found: 2"),
        ((text(20) + '"unfinished,2\n').encode(), GRID, "unterminated quote"),
        (text().replace(",40.", ",50.").encode(), GRID, "nothing is left: of 50 rows (outflow), 50 outside the box"),
        (log(["soon", "later"]).encode(), SENSORS, "column 't' holds no times in a known form: 'soon', 'later'"),
        (log(["05/06/2024 10:00", "07/08/2024 11:00"]).encode(), SENSORS, "begin with the day or the month?"),
        (log(["1714989600"]).encode(), SENSORS, "--time-format epoch"),
        (log(["2024-05-06T10:00:00+02:00"]).encode(), SENSORS, "--tz America/New_York, or --tz UTC"),
        (log(["2024-05-06 10:00"], value="").encode(), SENSORS, "nothing is left: of 1 rows (readings), 1 no reading"),
        (log(["2024-05-06 10:00"], node="").encode(), SENSORS, "1 no zone or node"),
        (log(["2024-05-06 10:00"]).replace("v", "w").encode(), SENSORS, "there is no column 'v' (--value)"),
        (b"Time,n,values\n2024-05-06 10:00,a,1\n", SENSORS, "there is no column 't' (--time)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(content: bytes, command: tuple[str, ...], words: str, say: Callable[..., Any]) -> None:
    Path("raw.csv").write_bytes(content)
    answer = say(*command)
    assert answer.code == 2, answer
    assert words in " ".join(answer.err.split()), answer.err
    assert sorted(path.name for path in Path().iterdir()) == ["raw.csv"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--step", "7min"), "--step 7min: does not divide a day"),
        (("--step", "soon"), "--step soon: no duration"),
        (("--cells", "16"), "--cells 16: give rows and columns"),
        (("--cells", "1000x1000"), "more than 65536"),
        (("--cell-metres", "500"), "give one of --cells 16x8, --cell-metres 500 and --h3 8"),
        (("--box", "40", "-73", "39", "-74"), "SOUTH WEST NORTH EAST"),
        (("--tz", "America/New_Yrok"), "--tz America/New_Yrok: no time zone. Did you mean America/New_York"),
        (("--to-tz", "UTC"), "say the zone that the times are in"),
        (("--from", "March"), "--from March: no ISO time"),
        (("--from", "2024-03-02", "--to", "2024-03-01"), "the end has to be later"),
        (("--from", "2031-01-01"), "no step lies between them. The records are of 2024-03-01 to 2024-03-20"),
        (("--max-bad", "many"), "--max-bad many: give a share"),
        (("--duplicates", "some"), "give drop or keep"),
        (("--lat", "start_latt"), "there is no column 'start_latt' (--lat). Did you mean 'start_lat'?"),
        (("--out", "grid.csv"), "the name has to end in .npz"),
        (("--out", "there/grid.npz"), "there is no folder there"),
        (("--out", "s3://bucket/grid.npz"), "give a file on this machine"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used(more: tuple[str, ...], words: str, say: Callable[..., Any]) -> None:
    Path("raw.csv").write_text(text())
    answer = say(*GRID, *more)
    assert answer.code == 2, answer
    assert words in " ".join(answer.err.split()), answer.err
    assert [path.name for path in Path().iterdir()] == ["raw.csv"]


def test_files_that_are_not_there_or_no_records(say: Callable[..., Any]) -> None:
    Path("raw.csv").write_text(text())
    Path("folder").mkdir()
    Path("notes.docx").write_text("x")
    Path("cut.csv.gz").write_bytes(gzip.compress(text(3000).encode())[:-500])
    Path("bad.zip").write_bytes(b"PK\x03\x04 nothing")
    Path("bad.parquet").write_bytes(b"PAR1")
    for name, words in (
        ("rwa.csv", "rwa.csv: no such file. Did you mean raw.csv?"), ("2024-*.csv", "2024-*.csv: no file matches"), ("folder", "a folder"),
        ("notes.docx", "files of this kind are not records"), ("bad.zip", "no zip archive, or damaged"),
        ("cut.csv.gz", "cut.csv.gz: cannot be read"), ("bad.parquet", "no Parquet file, or damaged"),
    ):  # fmt: skip
        answer = say(*GRID[:2], name, *GRID[3:])
        assert answer.code == 2, answer
        assert words in " ".join(answer.err.split()), answer.err
    assert not Path("grid.npz").exists()


def test_what_is_there_is_not_overwritten_unasked(say: Callable[..., Any]) -> None:
    Path("raw.csv").write_text(text())
    Path("grid.npz").write_text("mine")
    answer = say(*GRID)
    assert (answer.code, "is there already" in answer.err) == (2, True)
    assert Path("grid.npz").read_text() == "mine"
    assert say(*GRID, "--force").code == 0
    assert Path("grid.npz").read_bytes()[:2] == b"PK"


def test_few_malformed_rows_are_named_and_left_out(say: Callable[..., Any]) -> None:
    Path("raw.csv").write_text(text(1000) + "1,2\n" * 4)
    answer = say(*GRID)
    assert answer.code == 0, answer
    assert "4 malformed" in answer.out
    assert re.findall(r"raw.csv, line (\d+):", answer.out) == ["1002", "1003", "1004"]


def test_a_writer_that_is_interrupted_leaves_no_half_file(say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def interrupted(sink: Any, **_: Any) -> None:
        sink.write(b"half")
        raise KeyboardInterrupt

    Path("raw.csv").write_text(text())
    monkeypatch.setattr(np, "savez_compressed", interrupted)
    assert say(*GRID).code == 130
    assert [path.name for path in Path().iterdir()] == ["raw.csv"]


def test_a_column_of_numbers_that_are_text_in_parquet(say: Callable[..., Any]) -> None:
    table = citibike(trips(100))
    table["start_lat"] = table["start_lat"].astype(str).where(table.index != 3, "?")
    table.to_parquet("raw.parquet", index=False)
    answer = say(*GRID[:2], "raw.parquet", *GRID[3:], "--max-bad", "2%")
    assert answer.code == 0, answer
    assert "1 malformed" in answer.out
    pd.testing.assert_frame_equal(pd.read_parquet("raw.parquet"), table)
