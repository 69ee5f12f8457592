"""Models over several data sets: ranks, ratios and marks against SciPy, scikit-posthocs and a simulation, and the page, CSV and LaTeX."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stlab.report import across_datasets, summarise, write_report
from stlab.report.page.across_text import limits, marks_sentence, rank_sentences, relative_sentence
from stlab.report.statistics.across import Across, errors_of, marked_cells, rows_by_dataset
from stlab.report.tables.across import across_latex, cells_frame
from stlab.storage import Store
from tests.support.tables import Row, row, table_of, write_table

TRUTH = {"a": 0.8, "b": 0.9, "c": 1.0, "d": 1.1}
TEN = [f"city-{number}" for number in range(10)]


def test_ranks_are_friedmans_and_nemenyis() -> None:
    import scikit_posthocs

    rows = table_of(TRUTH, TEN, noise=0.05, per_dataset=0.1, chance=1)
    ranks = across_datasets(rows, [], {}).ranks["rmse"]
    assert ranks is not None
    trained = pd.DataFrame([one for one in rows if not one["baseline"]])
    means = trained.groupby(["dataset", "variant"])["test_rmse"].mean().unstack()[list("abcd")]
    np.testing.assert_allclose(list(ranks.mean.values()), means.rank(axis=1).mean(), rtol=1e-12)
    assert (ranks.friedman, ranks.p) == pytest.approx(tuple(stats.friedmanchisquare(*means.to_numpy().T)))
    # Demšar (2006), section 3.2.2: q = 2.569 for four classifiers, 14 data sets, a critical difference of 1.25.
    assert ranks.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 10)), rel=1e-3)
    p = scikit_posthocs.posthoc_nemenyi_friedman(means)
    for one, other in ranks.wilcoxon:
        assert ranks.differ(one, other) == (p.loc[one, other] < 0.05)


def test_wilcoxon_compares_ratios_so_that_units_do_not_count() -> None:
    rows = table_of({"a": 0.9, "b": 1.0, "c": 1.2}, TEN, noise=0.02, per_dataset=0.05)
    found = across_datasets(rows, [], {})
    metres = [one | {"test_rmse": one["test_rmse"] * (1000 if one["dataset"] == TEN[3] else 1)} for one in rows]
    again = across_datasets(metres, [], {})
    assert found.ranks["rmse"].wilcoxon == pytest.approx(again.ranks["rmse"].wilcoxon)  # type: ignore[union-attr]
    assert found.relative["rmse"]["b"].ratio == pytest.approx(again.relative["rmse"]["b"].ratio)
    _, errors = errors_of(found, "rmse")
    raw = [stats.wilcoxon(np.log(errors[:, i] / errors[:, j])).pvalue for i, j in ((0, 1), (0, 2), (1, 2))]
    steps = np.sort(raw) * np.array([3, 2, 1])
    assert sorted(found.ranks["rmse"].wilcoxon.values()) == pytest.approx(np.minimum(1, np.maximum.accumulate(steps)))  # type: ignore[union-attr]


def test_relative_error_is_a_geometric_mean_whose_interval_covers_the_truth() -> None:
    covered = 0
    for chance in range(40):
        names = TEN[: 5 if chance % 2 else 10]
        found = across_datasets(table_of({"full": 1.0, "b": 0.9}, names, noise=0.03, per_dataset=0.08, chance=chance), [], {})
        one = found.relative["rmse"]["b"]
        labels, errors = errors_of(found, "rmse")
        ratio = errors[:, labels.index("b")] / errors[:, labels.index("full")]
        assert one.ratio == pytest.approx(stats.gmean(ratio))
        assert one.low is not None
        assert one.high is not None
        covered += one.low <= 0.9 <= one.high
    assert covered >= 36


def test_a_seed_that_one_model_lost_gives_no_mark_to_the_other() -> None:
    """The means turn over without the seed, and the pairs do not."""
    rows = []
    for name in TEN[:4]:
        for seed, (full, other) in enumerate([(10.0, 9.0), (10.1, 9.1001), (1.0, None)]):
            rows += [row(name, "full", seed, full, full), row(name, "b", seed, other or 0.0, other or 0.0)]
        rows[-1] |= {"status": "failed", "test_rmse": None, "test_mae": None, "val_rmse": None, "val_mae": None}
    found = across_datasets(rows, [], {})
    assert found.marks == {}
    one = found.relative["rmse"]["b"]
    assert one.ratio == pytest.approx((9.0 + 9.1001) / (10.0 + 10.1))
    assert one.low is not None
    assert one.low <= one.ratio <= one.high  # type: ignore[operator]


def test_with_axes_each_point_has_its_own_reference() -> None:
    rows = []
    for lam in (0, 1):
        for one in table_of({"full": 1.0 + lam, "b": 0.5 * (1 + lam)}, TEN[:4], noise=0.001):
            if not one["baseline"]:
                rows.append(one | {"trial_id": f"{one['trial_id']}-{lam}", "param.model.flow_weight": lam})
    found = across_datasets(rows, ["model.flow_weight"], {})
    assert {label: round(one.ratio, 2) for label, one in found.relative["rmse"].items()} == {"b · λ=0": 0.5, "b · λ=1": 0.5}


def test_odd_tables_are_still_tables() -> None:
    equal = [row(name, model, seed, 1.0, 1.0) for name in TEN[:3] for model in "abc" for seed in (0, 1)]
    assert across_datasets(equal, [], {}).ranks["rmse"].p == 1.0  # type: ignore[union-attr]
    perfect = [one | {"test_rmse": 0.0} if one["variant"] == "b" else one for one in equal]
    assert across_datasets(perfect, [], {}).relative["rmse"] == {}
    alone = across_datasets(table_of(TRUTH, TEN[:1]), [], {})
    assert rank_sentences(alone, "rmse") == ["RMSE: there is one data set, so there are no ranks."]
    once = across_datasets(table_of(TRUTH, TEN[:6], seeds=1), [], {})
    assert "blocks of test windows" in marks_sentence(once)
    assert "interval" not in relative_sentence(once)


def test_a_reference_without_an_error_is_no_divisor(tmp_path: Path) -> None:
    """Readings that repeat each week leave the mean by slot of the week an error of 0."""
    rows = table_of({"full": 1.0, "small": 1.2}, ["bikes", "taxis"], seeds=2)
    perfect = [one | {"test_rmse": 0.0, "test_mae": 0.0} if one["baseline"] and one["dataset"] == "bikes" else one for one in rows]
    store = Store(tmp_path)
    write_table(store, perfect)
    page = Path(write_report(store, "whole")).read_text()
    assert "vs week" in page


def test_a_reason_is_that_of_its_own_point() -> None:
    lost = {"status": "failed", "test_rmse": None, "test_mae": None, "val_rmse": None, "val_mae": None}
    rows = [row("x", "full", 0, 1.0, 1.0) | {"trial_id": f"x{lam}", "param.model.flow_weight": lam} for lam in (0, 1)]
    rows += [{**one, "dataset": "y", "trial_id": f"y{one['trial_id']}"} | lost for one in rows]
    rows[2] |= {"error": "out of memory"}
    rows[3] |= {"status": "missing"}
    cells = cells_frame(across_datasets(rows, ["model.flow_weight"], {})).set_index(["dataset", "model"])
    assert cells.loc[("y", "full · λ=0"), "reason"] == "failed: out of memory"
    assert cells.loc[("y", "full · λ=1"), "reason"] == "not run, or not to its end"


def test_wins_and_losses_are_those_that_can_be_told_apart() -> None:
    rows = table_of({"full": 1.0, "better": 0.5, "same": 1.0, "worse": 2.0}, TEN[:6], noise=0.002)
    found = across_datasets(rows, [], {}).relative["rmse"]
    assert [(found[name].wins, found[name].losses) for name in ("better", "worse")] == [(6, 0), (0, 6)]
    assert found["same"].ties >= 5


def marks_of(rows: list[Row]) -> list[str]:
    """The marks by RMSE, without the other statistics, which take their time."""
    own = rows_by_dataset(rows, {})
    plain = Across(tuple(own), own, {name: summarise(part, []) for name, part in own.items()}, {})
    return list(marked_cells(plain, "rmse").values())


def test_two_equal_models_are_marked_in_at_most_eight_of_a_hundred_tables() -> None:
    """Five models of which two are equal, ten data sets: the best two in half of the tables, and the second and third in the others."""
    wrong = told = 0
    for chance in range(100):
        best = marks_of(table_of({"equal": 0.9, "as good": 0.9, "c": 1.0, "d": 1.1, "e": 1.3}, TEN, noise=0.01, chance=chance))
        then = marks_of(table_of({"best": 0.5, "equal": 0.9, "as good": 0.9, "d": 1.1, "e": 1.3}, TEN, noise=0.01, chance=chance))
        wrong += bool(best) + ("second" in then)
        told += "best" in then
    assert wrong <= 0.08 * 200
    assert told > 50  # the marks do act


def test_a_missing_cell_is_a_dash_with_its_reason_and_never_a_mean_over_fewer() -> None:
    rows = table_of(TRUTH, TEN[:5], noise=0.01)
    for one in rows:
        if one["dataset"] == TEN[2] and one["variant"] == "b":
            one |= {"status": "failed", "error": "out of memory", "test_rmse": None, "test_mae": None, "val_rmse": None, "val_mae": None}
    found = across_datasets(rows, [], {})
    assert found.ranks["rmse"].labels == ("a", "c", "d")  # type: ignore[union-attr]
    assert "b" not in found.relative["rmse"]
    cells = cells_frame(found).set_index(["dataset", "model"])
    assert cells.loc[(TEN[2], "b"), "reason"] == "failed: out of memory"
    assert pd.isna(cells.loc[(TEN[0], "b"), "rank_rmse"])
    assert any("b (city-2)" in sentence for sentence in limits(found))
    assert " -- " in next(line for line in across_latex(found, "rmse", "").splitlines() if line.startswith("b &"))


@pytest.mark.parametrize(("count", "models", "words"), [(2, 3, "too few"), (4, 3, "0.125"), (5, 3, "0.062"), (10, 20, "can tell no pair")])
def test_the_page_says_what_cannot_be_concluded(count: int, models: int, words: str) -> None:
    rows = table_of({f"m{number}": 1 + 0.1 * number for number in range(models)}, TEN[:count])
    found = across_datasets(rows, [], {})
    assert words in " ".join([*limits(found), *rank_sentences(found, "rmse")])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    store = Store(tmp_path_factory.mktemp("across"))
    rows = table_of({"A & B_1": 0.8, "full": 1.0, "c": 1.3}, ["bikes", "taxis", "trains"], noise=0.002)
    write_table(store, rows)
    return Path(write_report(store, "whole")).parent, rows


def test_page_and_tables_say_the_same(written: tuple[Path, list[Row]]) -> None:
    folder, rows = written
    page = (folder / "index.html").read_text()
    own = [one["test_rmse"] for one in rows if (one["dataset"], one["variant"]) == ("taxis", "c")]
    mean = float(np.mean(own))
    shown = pd.read_csv(folder / "tables/datasets.csv").set_index("model")
    assert shown.loc["c", "taxis_rmse"] == pytest.approx(mean)
    cells = pd.read_parquet(folder / "tables/cells.parquet").set_index(["dataset", "model"])
    assert cells.loc[("taxis", "c"), "test_rmse_mean"] == pytest.approx(mean)
    assert f"{mean:.3f}" in page
    pairs = pd.read_csv(folder / "tables/pairs.csv").set_index(["error", "model", "other"])
    assert len(pairs) == 2 * 3
    assert pairs.loc[("rmse", "A & B_1", "full"), "wilcoxon_p_holm"] >= 0.25
    assert page.count('<details class="part"') == 3
    assert "too few for conclusions" in page
    assert {path.name for path in (folder / "datasets").iterdir()} == {"bikes", "taxis", "trains"}
    assert (folder / "datasets/bikes/tables/ablation.csv").exists()
    assert re.findall(r"<h1>.*?</h1>", page) == ["<h1>whole</h1>"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs (Debian: texlive-latex-recommended)")
def test_latex_compiles(written: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = written
    tables = "".join((folder / f"tables/datasets_{error}.tex").read_text() for error in ("rmse", "mae"))
    head = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
    (tmp_path / "table.tex").write_text(f"{head}{tables}\\end{{document}}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()[-2000:]
