"""Several studies on one page: shared trials once, one reference, the papers' tables, and one figure over several data sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stlab
from stlab.errors import ProtocolMismatch, UserError
from stlab.report import compare, summarise
from stlab.report.page.joint import JointSection, joint_figures, read_sections, write_joint_report
from stlab.report.statistics.axis_curves import axis_panel, numeric_axes
from stlab.report.tables.joint import sections
from stlab.storage import Store, StudyDirectory, TrialDirectory

LAMBDA = "model.flow_weight"
VALUES = (0.0, 0.5, 1.0, 2.0)
SEEDS = (0, 1, 2)
ALONG = f"along_{LAMBDA.replace('.', '_')}"
PAPER = {"file": "st_vfm", "table": "table3", "rows": {"simple": "#1 (simple)", "full": "Ours (full)"}}


def trial(store: Store, dataset: str, variant: str, value: float, seed: int, **more: Any) -> dict[str, Any]:
    """A finished, tested trial in ``<dataset>-<variant><value>-<seed>``: error 6 + value² / 4, plus 1 if the variant is not full."""
    trial_id = f"{dataset}-{variant}{value}-{seed}".replace("/", "").replace(" ", "_")
    rmse = 6 + value**2 / 4 + (variant != "full") + 0.3 * seed + 0.01 * np.random.default_rng([seed, int(8 * value)]).normal()
    told = {"family": "grid", "history": 6, "horizon": 3, "split": [0.7, 0.15, 0.15], "mask": None, "scale": 1.0}
    protocol = json.dumps({**told, "data_sha256": dataset, **more.pop("protocol", {})})
    directory = TrialDirectory(store, trial_id)
    directory.write_trial({"seed": seed, "baseline": False, "dataset": dataset, "data_sha256": dataset, "protocol": protocol,
                           "code_version": "1", "weights": "random", "model": {"name": variant}})  # fmt: skip
    directory.write_epochs([{"epoch": e, "step": e, "loss": 1.0, "val_rmse": rmse} for e in (1, 2)])
    result = {"val_rmse": rmse - 0.5, "val_mae": 3.0, "best_epoch": 2, "epochs": 2, "wall_seconds": 9.0 + value, "device": "cpu"}
    directory.write_result(result)
    store.write_json(f"trials/{trial_id}/test.json", {"rmse": rmse, "mae": rmse / 2})
    return {**directory.row(), "variant": variant, f"param.{LAMBDA}": value, "param.model.name": variant, **more}


def baseline(store: Store, dataset: str) -> dict[str, Any]:
    row = trial(store, dataset, "slot_of_week_mean", 0.0, 0)
    return {**row, "baseline": True, "test_rmse": 6.6, f"param.{LAMBDA}": None, "param.model.name": None}


def write(store: Store, name: str, rows: list[dict[str, Any]], **study: Any) -> None:
    directory = StudyDirectory(store, name)
    base = {"model": {"name": "st_vfm", "flow_weight": 0.5}, "data": {"path": f"{name}.npz"}}
    directory.write_study(json.dumps({"name": name, "description": f"About {name}.", "base": base, **study}))
    directory.write_trials([{**row, "study": name} for row in rows])


def along(store: Store, name: str, dataset: str, **study: Any) -> list[dict[str, Any]]:
    rows = [trial(store, dataset, "full", value, seed) for value in VALUES for seed in SEEDS]
    write(store, name, [baseline(store, dataset), *rows], axes={LAMBDA: list(VALUES)}, **study)
    return rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """λ and an ablation on ``bike``, with `full` at 0.5 in both; λ on ``taxi``."""
    store = Store(tmp_path_factory.mktemp("joint") / "runs")
    along(store, "weights", "bike", paper={"file": "st_vfm", "table": "supplement_figure1", "rows": {"full": "Ours (full)"}})
    along(store, "weights_taxi", "taxi")
    rows = [trial(store, "bike", variant, 0.5, seed) for variant in ("simple", "full") for seed in SEEDS]
    write(store, "parts", [baseline(store, "bike"), *rows], axes={}, paper=PAPER)
    return store


@pytest.fixture(scope="module")
def written(store: Store) -> tuple[Path, JointSection]:
    """The page of λ and ablation together: its path and its only section."""
    path, (part,) = write_joint_report(store, ["weights", "parts"])
    return Path(path), part


def text_of(page: str) -> str:
    return re.sub(r" ([.,:])", r"\1", " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"data:image/[^\"]*", "", page)).split()))


def test_shared_trials_stand_once(written: tuple[Path, JointSection]) -> None:
    path, part = written
    table = pd.read_csv(path.parent / "tables/ablation.csv")
    assert table["label"].tolist() == [
        *(f"full · λ={value:g}" for value in VALUES), "simple", "slot_of_week_mean"
    ]  # fmt: skip
    assert table["finished"].tolist() == [3] * 5 + [1]
    assert len({row["trial_id"] for row in part.rows}) == len(part.rows) == 3 * 5 + 1
    page = text_of(path.read_text())
    assert "weights and parts share 3 trials, which are listed once, under the names that weights gives." in page
    assert "About weights. About parts." in page
    assert "7.500" not in page, "no mean over shared rows twice"


def test_every_line_stands_against_the_one_point_of_the_reference(store: Store, written: tuple[Path, JointSection]) -> None:
    path, part = written
    found = {one.label: one for one in compare(part.rows, list(part.study["axes"]), part.study, store)}
    assert set(found) == {"full · λ=0", "full · λ=1", "full · λ=2", "simple"}
    assert {one.reference for one in found.values()} == {"full · λ=0.5"}
    assert {one.family for one in found.values()} == {4}
    errors = {(row["variant"], row[f"param.{LAMBDA}"], row["seed"]): row["test_rmse"] for row in part.rows}
    own = stats.ttest_rel([errors["full", 2.0, s] for s in SEEDS], [errors["full", 0.5, s] for s in SEEDS])
    beside = found["full · λ=2"].rmse
    assert beside
    assert beside.p == pytest.approx(own.pvalue)
    assert "vs full · λ=0.5" in text_of(path.read_text())


def test_each_published_table_stands_beside_the_studies_that_name_it(written: tuple[Path, JointSection]) -> None:
    path, part = written
    assert [one.table for one in part.papers] == ["supplement_figure1", "table3"]
    figure, table = part.papers
    assert [entry.label for entry in figure.entries] == [f"full · λ={value:g}" for value in VALUES]
    assert [(entry.label, entry.method, entry.seeds) for entry in table.entries] == [
        ("simple", "#1 (simple)", 3), ("full", "Ours (full)", 3)
    ]  # fmt: skip
    names = sorted(file.name for file in (path.parent / "tables").glob("paper_*.csv"))
    assert names == [f"paper_{one}{end}.csv" for one in ("supplement_figure1", "table3") for end in ("", "_coverage")]
    assert "Compared with the paper: ST-VFM, Table 3" in text_of(path.read_text())


def test_beside_a_paper_a_shared_trial_has_the_name_of_the_study_that_names_it(tmp_path: Path) -> None:
    """λ = 0 is "full" on the page, and "w/o loss" in the study with the paper, which is not one of the paper's rows."""
    store = Store(tmp_path / "runs")
    along(store, "weights", "bike")
    named = (("full", 0.5), ("w/o loss", 0.0))
    rows = [trial(store, "bike", "full", value, seed) | {"variant": name} for name, value in named for seed in SEEDS]
    write(store, "parts", [baseline(store, "bike"), *rows], axes={}, paper={**PAPER, "rows": {"full": "Ours (full)"}})
    (part,) = read_sections(store, ["weights", "parts"])
    (table,) = part.papers
    assert [(entry.label, entry.method, entry.seeds) for entry in table.entries] == [("full", "Ours (full)", 3)]


def test_several_data_sets_are_panels_of_one_figure(store: Store) -> None:
    names = ["weights", "parts", "weights_taxi"]
    path, parts = write_joint_report(store, names)
    assert [part.folder for part in parts] == ["bike", "taxi"]
    folder = Path(path).parent
    assert {file.name for file in (folder / "figures").iterdir()} == {f"{ALONG}.png", f"{ALONG}.pdf"}
    assert (folder.parent / "taxi/report/index.html").exists()
    figure = joint_figures(store, names)[ALONG]
    assert [axes.get_title() for axes in figure.axes] == ["bike", "taxi"]
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    for axes in figure.axes:
        (curve,) = [line for line in axes.lines if line.get_label() == "full"]
        assert list(curve.get_xdata()) == list(VALUES)
        assert [line.get_marker() for line in axes.lines].count("*") == 1, "the chosen value"
        assert axes.collections, "the interval's band"
    page = Path(path).read_text()
    text = text_of(page)
    assert "This page covers 2 data sets, each in a section of its own: bike, taxi." in text
    assert "bike: full: best at λ = 0" in text
    assert page.count("<main>") == page.count('<section id="taxi">') == page.count('<section id="bike">') == 1
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_of_one_data_set_the_figures_are_the_pages(store: Store, written: tuple[Path, JointSection]) -> None:
    drawn = {file.stem for file in (written[0].parent / "figures").iterdir()}
    assert set(stlab.results(store.location, "weights").figures(beside=["parts"])) == drawn
    assert drawn == {ALONG, "learning_curves", "tradeoff"}


def test_an_axis_that_another_studys_model_lacks_keeps_its_curve(store: Store) -> None:
    rows = [trial(store, "bike", "other", 0.5, seed) | {f"param.{LAMBDA}": None} for seed in SEEDS]
    write(store, "others", rows, axes={})
    (part,) = read_sections(store, ["weights", "others"])
    lines = summarise(part.rows, list(part.study["axes"]))
    assert numeric_axes(lines) == [LAMBDA]
    panel = axis_panel(store, part.rows, lines, LAMBDA)
    assert panel
    assert [(curve.label, len(curve.points)) for curve in panel.curves] == [("full", len(VALUES))]
    found = compare(part.rows, list(part.study["axes"]), part.study, store)
    assert {one.label: one.reference for one in found}["other"] == "full · λ=0.5"


def test_variants_of_one_name_that_are_not_the_same_are_told_apart(store: Store) -> None:
    rows = [trial(store, "bike", "full", 0.25, seed, **{"param.train.lr": 1.0}) for seed in SEEDS]
    write(store, "faster", rows, axes={})
    (part,) = read_sections(store, ["parts", "faster"])
    assert list(dict.fromkeys(row["variant"] for row in part.rows)) == ["slot_of_week_mean", "simple", "full", "full (faster)"]


def test_what_does_not_compare_is_refused_and_nothing_is_written(store: Store) -> None:
    rows = [trial(store, "bike", "full", 0.125, seed, protocol={"horizon": 12}) for seed in SEEDS]
    write(store, "longer", rows)
    with pytest.raises(ProtocolMismatch, match="horizon is 3 for"):
        write_joint_report(store, ["weights", "longer"])
    with pytest.raises(UserError, match="weights is named twice"):
        write_joint_report(store, ["weights", "weights"])
    with pytest.raises(UserError, match="Run it first"):
        write_joint_report(store, ["weights", "absent"])
    assert not store.exists("reports/weights+longer")


def test_trials_that_never_began_stand_with_their_studys_data(store: Store) -> None:
    rows = [trial(store, "bike", "simple", 0.5, seed) for seed in SEEDS]
    lost = {"variant": "new", "trial_id": "none", "seed": 0, "status": "missing", "baseline": False}
    write(store, "partial", [*rows, lost])
    (part,) = read_sections(store, ["weights", "partial"])
    assert "none" in {row["trial_id"] for row in part.rows}


def test_data_of_one_content_are_one_section_whatever_two_studies_call_them() -> None:
    told = json.dumps({"history": 6})
    one = {"data_sha256": "x", "variant": "full", "seed": 0, "trial_id": "t", "protocol": told}
    own = [{**one, "dataset": name} for name in ("bikes", "NYC")]
    (section,) = sections({"many": own[:1], "alone": own[1:]})
    assert section.folder == "bikes"
    assert section.notes == ["many and alone share 1 trial, which is listed once, under the name that many gives."]
