"""The shipped published tables: values as printed, including errors, their descriptions, and data sets found by name."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stlab.errors import StudyError
from stlab.papers import Cell, coverage, load_paper, shipped_papers
from stlab.study.paper import paper_problems, paper_rows
from stlab.study.plan import DataFacts, make_plan
from stlab.study.spec import PaperSpec, StudySpec
from stmodels.types import SeriesInfo

PUBLISHED = Path(__file__).resolve().parents[3].parent / "shared" / "papers"
RENAMED = {
    "supp_table3_backbones": "supplement_table3", "supp_table2_video": "supplement_table2", "table2_few_shot": "table2",
}  # fmt: skip
VFM, VLM = load_paper("st_vfm"), load_paper("st_vlm")


@pytest.mark.parametrize("paper", [VFM, VLM], ids=lambda paper: paper.name)
def test_every_cell_is_what_the_extracted_tables_say(paper: Any) -> None:
    path = PUBLISHED / f"{paper.name}_results.csv"
    if not path.exists():
        pytest.skip("the extracted tables are not here")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert rows
    for row in rows:
        key = (RENAMED.get(row["table"], row["table"]), row["method"], row["dataset"], float(row.get("train_ratio") or 1))
        printed = {name: row[name] for name in ("rmse", "mae", "mape_percent") if row.get(name)}
        assert paper.cells[key].items() >= printed.items(), key
    # Beyond them: Table 4 (5 data sets × 3 methods) and the supplement's Table 1 (3 methods), from the text itself.
    assert len(paper.cells) - len(rows) == {"st_vfm": 18, "st_vlm": 0}[paper.name]


def test_tables_have_their_printed_size() -> None:
    sizes = {(p.name, t): (len(p.methods(t)), len(p.datasets(t))) for p in (VFM, VLM) for t in p.facts.tables}
    assert sizes == {
        ("st_vfm", "table2"): (18, 10), ("st_vfm", "table3"): (6, 5), ("st_vfm", "table4"): (3, 5), ("st_vfm", "figure2"): (4, 4),
        ("st_vfm", "supplement_figure1"): (1, 2), ("st_vfm", "supplement_table1"): (3, 1), ("st_vfm", "supplement_table2"): (3, 10),
        ("st_vfm", "supplement_table3"): (4, 10), ("st_vlm", "table1"): (16, 4), ("st_vlm", "table2"): (2, 2),
        ("st_vlm", "figure3"): (3, 2),
    }  # fmt: skip
    assert shipped_papers() == ["st_vfm", "st_vlm"]


def test_tables_that_repeat_each_other_agree() -> None:
    for dataset in VFM.datasets("table4"):
        for method in VFM.methods("table4"):
            assert VFM.cell("table4", method, dataset) == VFM.cell("supplement_table2", method, dataset)
        assert VFM.cell("table4", "VFM", dataset) == VFM.cell("table2", "ST-VFM", dataset)
    for dataset in VFM.datasets("figure2"):
        assert VFM.cell("figure2", "CLIP", dataset) == VFM.cell("supplement_table3", "CLIP", dataset) != {}
    assert VFM.cell("figure2", "CLIP", "TrafficZZ") == {}


def test_what_is_odd_stays_as_printed_and_is_noted() -> None:
    assert VFM.cell("table2", "MAU", "BikeNYC-1") == {"rmse": "1.28", "mae": "22.1"}
    assert any("scrambled" in note for note in VFM.notes("table2", "MAU", "BikeNYC-1"))
    assert not any("scrambled" in note for note in VFM.notes("table2", "MAU", "Crowd"))
    assert VFM.cell("table2", "UniST", "Cellular")["mae"] != VFM.cell("table3", "UniST", "Cellular")["mae"]
    assert any("differs between" in note for note in VFM.notes("table3", "UniST", "Cellular"))
    assert any("Beijing" in note for note in VFM.notes("table2", "ST-VFM", "TDrive"))
    assert VFM.cell("supplement_table3", "CLIP", "TDrive") == {"rmse": "N/A", "mae": "N/A"}
    assert "not a target" in VLM.facts.caveat
    assert "Why is unknown" in VLM.facts.caveat


@pytest.mark.parametrize(
    ("file", "known"),
    [("BikeNYC_short", "BikeNYC-1"), ("nycbike1", "BikeNYC-1"), ("TaxiNYC2_short", "TaxiNYC-2"), ("crowd", "Crowd"), ("grid", None)],
)
def test_a_data_set_is_known_by_its_files_name(file: str, known: str | None) -> None:
    assert VFM.find_dataset(file) == known


def states(cells: list[Cell]) -> Counter[str]:
    return Counter(cell.state for cell in cells)


def test_coverage_counts_every_cell_once() -> None:
    rows = {"#2": "#2", "full": "Ours (full)"}
    cells = coverage(VFM, "table3", rows, "Crowd")
    assert states(cells) == {"here": 2, "other data": 2 * 4, "other study": 4 * 5}
    assert all(cell.why for cell in cells if cell.state != "here")
    missing = next(cell for cell in cells if (cell.method, cell.dataset) == ("#2", "TaxiNYC-1"))
    assert "TaxiNYC_short.json" in missing.why
    assert states(coverage(VFM, "table3", rows, "Crowd", is_paper_data=False))["stand-in"] == 2
    assert states(coverage(VFM, "table3", rows, None))["here"] == 0
    backbones = coverage(VFM, "supplement_table3", {"CLIP": "CLIP", "DEIT": "DEIT", "DINO": "DINO"}, "TDrive")
    assert states(backbones) == {"here": 1, "other data": 27, "other study": 10, "not printed": 2}


def test_a_method_that_is_said_to_be_missing_has_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = VFM.facts.methods["UniST"].model_copy(update={"missing": "its weights are secret"})
    monkeypatch.setitem(VFM.facts.methods, "UniST", facts)
    cells = [cell for cell in coverage(VFM, "table3", {"full": "Ours (full)"}, "Crowd") if cell.method == "UniST"]
    assert states(cells) == {"no model": 5}
    assert {cell.why for cell in cells} == {"its weights are secret"}


def test_coverage_of_few_shot_goes_by_ratio() -> None:
    cells = coverage(VLM, "table2", {"ST-VLM": "ST-VLM"}, "PEMS04", [0.05, 1.0])
    assert [cell.train_ratio for cell in cells if cell.state == "here"] == [0.05]
    assert states(cells) == {"here": 1, "other study": 8, "other data": 3}


def test_a_figure_without_numbers_is_covered_by_its_methods() -> None:
    assert not VLM.has_numbers("figure3")
    cells = coverage(VLM, "figure3", {"full": "ST-VLM(Ours)", "w/o SAF": "w/o SAF", "w/o FT": "w/o FT"}, "PEMS03")
    assert states(cells) == {"here": 3, "other data": 3}


def study(**paper: Any) -> StudySpec:
    base = {"data": {"path": "grid.npz"}, "model": {"name": "st_vfm", "backbone": "vit_test", "weights": "random"}}
    return StudySpec.model_validate({"name": "s", "base": base, "variants": {"#2": {"model.peft": "none"}, "full": {}}, "paper": paper})


@pytest.mark.parametrize(
    ("paper", "says"),
    [
        ({"file": "st_vf", "table": "table3"}, "Did you mean 'st_vfm'"),
        ({"file": "st_vfm", "table": "tabel3"}, "Did you mean 'table3'"),
        ({"file": "st_vfm", "table": "table3", "dataset": "BikeNYC-2"}, "Did you mean 'BikeNYC-1'"),
        ({"file": "st_vfm", "table": "table3", "rows": {"ful": "#2"}}, "no variant 'ful'"),
        ({"file": "st_vfm", "table": "table3", "rows": {"full": "full"}}, "no row 'full'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(paper: dict[str, Any], says: str) -> None:
    found = paper_problems(study(**paper))
    assert len(found) == 1
    assert says in str(found[0])


def test_the_plan_refuses_it_before_anything_trains() -> None:
    info = SeriesInfo("grid", (2, 4, 4), 6, 6, slots_per_day=24, flow_std=1.0)
    facts = DataFacts("grid", "00", False, False, {}, info)
    with pytest.raises(StudyError, match=r"paper\.table"):
        make_plan(study(file="st_vfm", table="table33"), lambda data: facts)


def test_variants_of_equal_name_need_no_entry() -> None:
    spec = PaperSpec(file="st_vfm", table=["table3", "supplement_table1"], rows={"full": "Ours (full)"})
    assert paper_rows(spec, VFM, "table3", ["#2", "#4", "full", "mine"]) == {"#2": "#2", "#4": "#4", "full": "Ours (full)"}
    assert paper_rows(spec, VFM, "supplement_table1", ["#2", "#4", "full"]) == {"#4": "#4", "full": "Ours (full)"}


def test_a_paper_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("table,method,dataset,rmse\nt,A,D,1.5\n")
    text = (
        "title: T\nshort: S\nsource: here\ncells: mine.csv\nprotocol: {family: grid}\ndatasets: {D: {family: grid}}\n"
        "methods: {A: {}}\ntables: {t: {title: Table, what: All.}}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert load_paper(str(path)).cell("t", "A", "D") == {"rmse": "1.5"}
    path.write_text(text.replace("methods: {A: {}}", "methods: {B: {}}"))
    with pytest.raises(StudyError, match="'A' is not described"):
        load_paper(str(path))
    path.write_text("title: T\n")
    with pytest.raises(StudyError, match="not a valid description of a paper"):
        load_paper(str(path))
