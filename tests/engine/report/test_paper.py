"""A paper's values compared with ours: each verdict, each reason against one, and the page, files and terminal that show them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console
from scipy import stats

from stlab.papers import load_paper
from stlab.report import write_report
from stlab.report.figures.study_figures import FigureSet
from stlab.report.paper.data_facts import SeenData, seen_data
from stlab.report.paper.tables import coverage_frame, paper_latex, terminal_paper
from stlab.report.paper.verdicts import (
    PaperComparison,
    Reason,
    comparability,
    compare_with_paper,
    printed_range,
    verdict,
)
from stlab.report.statistics.summary import Interval
from stlab.storage import Store, StudyDirectory, TrialDirectory

VFM, VLM = load_paper("st_vfm"), load_paper("st_vlm")
BIKE = SeenData((16, 8), 1440, 0, 60.0, np.datetime64("2016-08-01T00:00").item(), np.datetime64("2016-09-29T23:00").item())
PEMS = SeenData((307,), 16992, 0, 5.0, np.datetime64("2018-01-01T00:00").item(), np.datetime64("2018-02-28T23:55").item())
GRID = {
    "protocol": "unist", "data_sha256": "ab", "family": "grid", "channels": 1, "channel": None, "history": 6, "horizon": 6,
    "split": "ready-made", "scaler": "min-max over all segments", "mask": None, "scale": 1.0, "missing": "none",
}  # fmt: skip
SENSORS = GRID | {
    "protocol": "forecast", "family": "sensors", "channel": 0, "history": 12, "horizon": 12, "split": [0.6, 0.2, 0.2], "mask": 0.0,
}  # fmt: skip


def grid_row(protocol: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A row that is comparable with the paper's: the same protocol and the same pretrained backbone."""
    row = {
        "dataset": "BikeNYC_short", "leaks": True, "synthetic": False, "weights": "pretrained",
        "protocol": json.dumps(GRID | (protocol or {})), "param.model.backbone": "dinov2_s", "param.model.cross_prompt_layers": 1,
    }  # fmt: skip
    return row | more


def reasons(row: dict[str, Any], seen: SeenData | None = BIKE, dataset: str | None = "BikeNYC-1", method: str = "#4") -> list[str]:
    return [f"{r.kind}: {r.text}" for r in comparability(VFM, dataset, row["dataset"], method, row, seen)[0]]


@pytest.mark.parametrize(
    ("printed", "values", "says"),
    [
        ("1.06", [1.0, 1.1, 1.2], "within"),
        ("1.06", [0.90, 0.91, 0.92], "better"),
        ("1.06", [1.20, 1.21, 1.22], "worse"),
        ("1.06", [0.9], "no interval"),
        ("1.06", [], "not measured"),
        ("N/A", [1.0, 1.1], "not printed"),
        (None, [1.0, 1.1], "not printed"),
    ],
)
def test_verdicts(printed: str | None, values: list[float], says: str) -> None:
    assert verdict(printed, Interval.of(values)) == says
    if len(values) > 1 and says in ("within", "better", "worse"):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert says == ("better" if high < 1.055 else "worse" if low > 1.065 else "within")
        assert verdict(printed, Interval.of(values), [Reason("data", "other")]) == "not comparable"


def test_a_printed_number_stands_for_all_that_round_to_it() -> None:
    assert printed_range("1.06") == pytest.approx((1.055, 1.065))
    assert printed_range("57") == pytest.approx((56.5, 57.5))
    assert printed_range("N/A") is None
    assert verdict("1.06", Interval(1.0644, 0.0001, 0.0)) == "within"
    assert verdict("1.06", Interval(1.0656, 0.0001, 0.0)) == "worse"


def test_the_papers_own_setting_compares() -> None:
    assert reasons(grid_row()) == []
    forecast = grid_row({"split": [0.7, 0.15, 0.15], "protocol": "forecast"})
    assert reasons(forecast) == []  # held to leak as the paper does


@pytest.mark.parametrize(
    ("row", "seen", "says"),
    [
        (grid_row(synthetic=True), BIKE, "data: our data were generated"),
        (grid_row(), None, "data: the content of our data is unknown"),
        (grid_row(), SeenData((10, 20), 1440, 0, 60.0, BIKE.first, BIKE.last), "grid 10×20, the paper's 16×8"),
        (grid_row(), SeenData((16, 8), 1440, 0, 30.0, BIKE.first, BIKE.last), "step 30 min, the paper's 60 min"),
        (
            grid_row(),
            SeenData((16, 8), 1369, 0, 60.0, np.datetime64("2014-08-04T23:00").item(), BIKE.last),
            "from 2014-08-04, the paper's 2016-08-01",
        ),
        (grid_row(dataset="grid"), SeenData((16, 8)), "data: the content of our data is unknown in step, first day, last day"),
        (grid_row({"history": 12}), BIKE, "protocol: history is 12, the paper's 6"),
        (grid_row({"horizon": 3}), BIKE, "protocol: horizon is 3, the paper's 6"),
        (grid_row({"split": [0.6, 0.2, 0.2]}), BIKE, "protocol: split is 60/20/20, the paper's 70/15/15"),
        (grid_row({"mask": 0.0}), BIKE, "protocol: missing readings are those equal to 0, the paper's none"),
        (grid_row({"split": [0.7, 0.15, 0.15]}, leaks=False), BIKE, "protocol: the paper's scaler leaks"),
        (grid_row({"scale": 1000.0}), BIKE, "protocol: errors are times 1000, the paper's times 1"),
        (grid_row(protocol=None) | {"protocol": None}, BIKE, "protocol: our protocol is unknown"),
        (grid_row(weights="random"), BIKE, "weights: frozen weights random, the paper's pretrained"),
        (grid_row(**{"param.model.backbone": "clip_b"}), BIKE, "weights: backbone clip_b, the paper's dinov2_s"),
    ],
)
def test_each_reason_by_itself(row: dict[str, Any], seen: SeenData | None, says: str) -> None:
    found = reasons(row, seen)
    assert len(found) == 1, found
    assert says in found[0]


def test_other_data_and_ready_made_windows() -> None:
    assert "not one of the paper's data sets" in reasons(grid_row(dataset="grid"), BIKE, None)[0]
    bare = comparability(VFM, "BikeNYC-1", "BikeNYC_short", "#4", grid_row(), SeenData((16, 8)))
    assert bare[0] == []
    assert "by its name and size" in bare[1][0]
    crowd = grid_row({"scale": 1.0}, dataset="Crowd_short")
    assert reasons(crowd, SeenData((16, 20)), "Crowd") == ["protocol: errors are times 1, the paper's times 1000 (data.scale)"]


def test_settings_the_paper_prints_are_noted() -> None:
    notes = comparability(VFM, "BikeNYC-1", "b", "Ours (full)", grid_row(**{"param.model.cross_prompt_layers": 2}), BIKE)[1]
    assert "The paper sets model.cross_prompt_layers to 1 on BikeNYC-1; this row has 2." in notes
    off = comparability(VFM, "BikeNYC-1", "b", "#4", grid_row(**{"param.model.cross_prompt_layers": 0}), BIKE)[1]
    assert not any("cross_prompt" in note for note in off)


def test_what_st_vlm_claims_on_pems_is_never_compared() -> None:
    row = grid_row(SENSORS, dataset="PEMS04", leaks=False, **{"param.model.backbone": "vilt_b32"})
    for method in ("ST-VLM(Ours)", "ST-VLM"):
        assert [r.kind for r in comparability(VLM, "PEMS04", "PEMS04", method, row, PEMS)[0]] == ["protocol"]
    lstm = row | {"param.model.backbone": None, "weights": None}
    assert comparability(VLM, "PEMS04", "PEMS04", "LSTM", lstm, PEMS)[0] == []
    kept = SeenData((307,), 16990, 3, 5.0, PEMS.first, PEMS.last)  # every fourth window was kept
    assert comparability(VLM, "PEMS04", "PEMS04", "LSTM", lstm, kept)[0] == []


def write_trial(store: Store, variant: str, seed: int, rmse: float, **more: Any) -> dict[str, Any]:
    """A finished, tested trial on 1,440 hours of 16×8 cells from 2016-08-01; two windows are kept, the last among them."""
    directory = TrialDirectory(store, f"{variant.strip('#')}{seed}")
    trial = {
        "seed": seed, "baseline": False, "dataset": "BikeNYC", "synthetic": False, "leaks": True, "weights": "pretrained",
        "protocol": json.dumps(GRID | {"split": [0.7, 0.15, 0.15]}), "data_sha256": "ab", "code_version": "0",
        "model": {"name": "st_vfm", "backbone": "dinov2_s", "cross_prompt_layers": 2},
    }  # fmt: skip
    directory.write_trial(trial | more)
    directory.write_result({"val_rmse": rmse, "val_mae": rmse / 3, "best_epoch": 1, "epochs": 1, "wall_seconds": 90.0})
    window = np.repeat([1427, 1428], 6)
    step = np.tile(np.arange(6), 2)
    times = np.datetime64("2016-08-01T00:00", "s") + (window + 6 + step) * np.timedelta64(3600, "s")
    values = list(np.ones((12, 128), np.float32))
    columns = {"window": window, "horizon": pa.array(step + 1, pa.int32()), "time": pa.array(times), "truth": values, "forecast": values}
    table = pa.table(columns).replace_schema_metadata({"shape": "[1, 16, 8]", "every_nth_window": "1"})
    steps = [{"segment": "test", "horizon": 1, "mae": rmse / 3, "rmse": rmse, "count": 1}]
    directory.write_test({"mae": rmse / 3, "rmse": rmse}, steps, table)
    return {**directory.row(), "study": "s", "variant": variant}


STUDY: dict[str, Any] = {
    "name": "s", "seeds": [0, 1], "axes": {},
    "paper": {"file": "st_vfm", "table": ["table3", "supplement_table1"], "rows": {"full": "Ours (full)"}},
}  # fmt: skip


def a_study(store: Store) -> list[dict[str, Any]]:
    """#4 near the paper's 3.36, full far above its 3.38, #2 with random weights; and a variant that is not a row of the paper."""
    errors = {"#4": (3.30, 3.40), "full": (5.0, 5.01), "mine": (1.0, 1.1)}
    rows = [write_trial(store, v, seed, rmse) for v, pair in errors.items() for seed, rmse in enumerate(pair)]
    rows += [write_trial(store, "#2", seed, 3.5, weights="random") for seed in (0, 1)]
    StudyDirectory(store, "s").write_trials(rows)
    return rows


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Figures are tested elsewhere; drawing them takes most of a report's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stlab.report.page.study.draw_figures", lambda *_: FigureSet([], []))
        yield


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PaperComparison]]:
    store = Store(tmp_path_factory.mktemp("runs"))
    rows = a_study(store)
    return Path(write_report(store, "s", STUDY)).parent, compare_with_paper(store, rows, STUDY)


def test_the_kept_forecasts_show_the_facts_about_the_data(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = write_trial(store, "full", 0, 1.0)
    assert seen_data(store, row) == BIKE
    assert seen_data(store, {**row, "trial_id": "none"}) is None


def test_rows_find_their_cells(reported: tuple[Path, list[PaperComparison]]) -> None:
    table3, efficiency = reported[1]
    assert table3.dataset == "BikeNYC-1"
    verdicts = {entry.method: [(f.paper, f.verdict) for f in entry.compared] for entry in table3.entries}
    assert verdicts == {
        "#4": [("3.36", "within"), ("1.22", "within")],
        "Ours (full)": [("3.38", "worse"), ("1.20", "worse")],
        "#2": [("3.53", "not comparable"), ("1.29", "not comparable")],
    }
    assert table3.shared == ()
    assert efficiency.dataset is None  # Crowd alone
    assert all(f.verdict == "not printed" for entry in efficiency.entries for f in entry.compared)


def test_the_page_shows_both_and_why(reported: tuple[Path, list[PaperComparison]]) -> None:
    page = (reported[0] / "index.html").read_text()
    for says in (
        "Compared with the paper: ST-VFM, Table 3", "arXiv 2507.11558", "within our interval", "ours is worse", "not comparable: weights",
        "weights: frozen weights random, the paper&#39;s pretrained", "is not among its columns (Crowd)", "The paper does not print",
        "3 of its 30 cells are filled by this study", '<td class="grey">3.53</td>', "BikeNYC (3.38 against 3.36)",
    ):  # fmt: skip
        assert says in page, says


def test_csv_and_latex_say_the_same(reported: tuple[Path, list[PaperComparison]]) -> None:
    folder, (table3, _) = reported
    table = pd.read_csv(folder / "tables/paper_table3.csv").set_index(["method", "metric"])
    assert table.loc[("#4", "rmse"), "ours_mean"] == pytest.approx(3.35)
    assert table.loc[("#4", "rmse"), "verdict"] == "within"
    assert "weights" in table.loc[("#2", "mae"), "reasons"]
    covered = pd.read_csv(folder / "tables/paper_table3_coverage.csv")
    assert len(covered) == len(coverage_frame(table3)) == 30
    assert (covered.state == "here").sum() == 3
    latex = (folder / "tables/paper_table3.tex").read_text()
    assert latex == paper_latex(table3)
    assert r"\textcolor{gray}{3.53}" in latex
    assert r"$^{-}$" in latex
    assert latex.count("{") == latex.count("}")


def test_the_caveat_stands_wherever_pems_figures_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = write_trial(store, "full", 0, 1.0, protocol=json.dumps(SENSORS), leaks=False, dataset="PEMS04")
    study = {"name": "s", "paper": {"file": "st_vlm", "table": "table1", "rows": {"full": "ST-VLM(Ours)"}}}
    StudyDirectory(store, "s").write_trials([row])
    page = Path(write_report(store, "s", study))
    assert VLM.facts.caveat in html.unescape(page.read_text())
    assert VLM.facts.caveat in (page.parent / "tables/paper_table1.tex").read_text().replace(r"\&", "&").replace(r"\%", "%")
    assert pd.read_csv(page.parent / "tables/paper_table1.csv").notes.str.contains("not a target").all()
    console = Console(width=100, record=True, file=open(tmp_path / "out", "w"))  # noqa: SIM115
    for part in terminal_paper(compare_with_paper(store, [row], study)):
        console.print(part)
    text = " ".join(console.export_text().split())
    assert VLM.facts.caveat_short in text
    assert "15.61 | 0.333" in text


def test_a_study_without_a_paper_has_no_block(tmp_path: Path) -> None:
    store = Store(tmp_path)
    StudyDirectory(store, "s").write_trials([write_trial(store, "full", 0, 1.0)])
    assert compare_with_paper(store, [], {"name": "s", "paper": None}) == []
    assert "Compared with the paper" not in Path(write_report(store, "s", {"name": "s"})).read_text()


@pytest.mark.parametrize("family", ["grid", "sensors"])
def test_data_are_the_same_before_and_after_a_trial(family: str, make_trial: Any, tmp_path: Path) -> None:
    """The facts from the data set of a plan equal those from the test forecasts."""
    from stlab.data import load_dataset
    from stlab.report.paper.data_facts import planned_data, seen_data
    from stlab.training import run_trial

    trial = make_trial(model={"name": "last_value"}, data={"family": family})
    store, dataset = Store(tmp_path), load_dataset(trial.data)
    run_trial(trial, {"protocol": json.dumps(dataset.protocol)}, TrialDirectory(store, "a"), test=True)
    seen = seen_data(store, TrialDirectory(store, "a").row())
    assert seen is not None
    assert planned_data(dataset) == seen
