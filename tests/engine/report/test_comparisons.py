"""Paired comparisons against SciPy and statsmodels; in simulated tables the marks find real differences and few false ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from stlab.errors import UserError
from stlab.report import ablation_table, compare, summarise, terminal_table, to_latex
from stlab.report.statistics.comparisons import Paired, corrected, holm, references
from stlab.report.statistics.days import _spread
from stlab.report.statistics.window_blocks import MAX_BLOCKS, WindowErrors, block_differences
from stlab.report.tables.comparison_text import cell, legend, sentences

PROTOCOL = json.dumps({"family": "grid", "history": 6, "horizon": 6, "scale": 1.0})


def row(variant: str, seed: int, rmse: float | None, mae: float | None = None, **more: Any) -> dict[str, Any]:
    found = {"variant": variant, "seed": seed, "trial_id": f"{variant}-{seed}-{len(more)}", "status": "finished", "baseline": False,
             "test_rmse": rmse, "test_mae": rmse if mae is None else mae, "val_rmse": rmse, "protocol": PROTOCOL}  # fmt: skip
    return found | more


def table(errors: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [row(variant, seed, value, value**0.5) for variant, values in errors.items() for seed, value in enumerate(values)]


ERRORS = {"full": [6.81, 6.92, 6.77, 7.0], "a": [7.31, 7.22, 7.45, 7.6], "b": [6.9, 6.8, 6.95, 6.99], "c": [6.5, 6.4, 6.6, 6.9]}


def test_each_comparison_is_scipys_paired_t_test() -> None:
    for one in compare(table(ERRORS)):
        for error, change in (("rmse", 1.0), ("mae", 0.5)):
            ours, full = (np.array(ERRORS[name]) ** change for name in (one.label, "full"))
            expected = stats.ttest_rel(ours, full)
            interval = expected.confidence_interval(0.95)
            found = getattr(one, error)
            assert (found.n, one.over, one.reference) == (4, "seeds", "full")
            assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
            assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
            d = (ours - full).mean() / (ours - full).std(ddof=1)
            assert found.d == pytest.approx(d, rel=1e-9)
            # Hedges' exact factor against the approximation that textbooks print.
            assert found.g == pytest.approx(d * (1 - 3 / (4 * 3 - 1)), rel=0.01)


def test_holm_is_that_of_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # by hand: 3·0.01; 2·0.03; at least the one before
    assert holm([]) == []
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for size in (1, 4, 9):
        p = np.random.default_rng(size).uniform(0, 0.2, size)
        assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_both_errors_are_corrected_apart() -> None:
    found = compare(table(ERRORS))
    for error in ("rmse", "mae"):
        tests = [getattr(one, error) for one in found]
        assert [one.p_holm for one in tests] == pytest.approx(holm([one.p for one in tests]))
    assert {one.family for one in found} == {3}


def test_a_failed_seed_takes_its_pair_away_and_is_named() -> None:
    rows = table(ERRORS)
    rows[5] |= {"status": "failed", "test_rmse": None}
    rows[11] |= {"test_rmse": math.nan}
    a, b, c = compare(rows)
    kept = stats.ttest_rel(np.delete(ERRORS["a"], 1), np.delete(ERRORS["full"], 1))
    assert a.rmse
    assert a.rmse.n == 3
    assert a.rmse.p == pytest.approx(kept.pvalue)
    assert (a.lost, b.lost, c.lost) == ((1,), (3,), ())
    assert "seed 1 has no result in both" in sentences([a], 3)[0].sentence


def test_fewer_than_two_pairs_are_no_comparison() -> None:
    (one,) = compare([row("full", 0, 6.0), row("full", 1, 6.1), row("a", 0, 7.0), row("a", 1, None, status="failed")])
    assert (one.rmse, one.mae, one.mark, cell(one, 3)) == (None, None, "", "–")
    assert legend([one], "vs full", "full") == ""
    assert "fewer than two pairs" in sentences([one], 3)[0].sentence


def test_what_no_seed_changes_is_no_evidence() -> None:
    same, shifted = Paired.of([0.0, 0.0, 0.0]), Paired.of([0.25, 0.25, 0.25])
    assert same
    assert shifted
    assert (same.mean, same.p, same.differs) == (0.0, 1.0, False)
    assert (shifted.mean, shifted.p, shifted.d) == (0.25, 1.0, None)


def test_the_reference_is_named_or_full_or_the_first() -> None:
    lines = summarise(table(ERRORS))
    assert {line.label for line in references(lines).values()} == {"full"}
    assert {line.label for line in references(lines, {"reference": "b"}).values()} == {"b"}
    others = summarise(table({name: values for name, values in ERRORS.items() if name != "full"}))
    assert {line.label for line in references(others).values()} == {"a"}
    with pytest.raises(UserError, match="no variant 'd' among"):
        references(lines, {"reference": "d"})


def axis_rows(variants: tuple[str, ...]) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    return [
        row(variant, seed, 7 + draw.normal(), trial_id=f"{variant}{ratio}{seed}", **{"param.data.train_ratio": ratio})
        for variant in variants for ratio in (0.1, 0.5, 1.0) for seed in (0, 1, 2)
    ]  # fmt: skip


def test_points_of_an_axis_stand_against_their_own() -> None:
    lines = summarise(axis_rows(("full", "a")), ["data.train_ratio"])
    held = references(lines)
    assert {label: line.label for label, line in held.items()} == {
        f"a · train_ratio={ratio}": f"full · train_ratio={ratio}" for ratio in ("0.1", "0.5", "1")
    }
    alone = summarise(axis_rows(("full",)), ["data.train_ratio"])
    held = references(alone, {"base": {"data": {"train_ratio": 1.0}}})
    assert {line.label for line in held.values()} == {"full · train_ratio=1"}
    assert len(held) == 2
    assert {line.label for line in references(alone).values()} == {"full · train_ratio=0.1"}


def test_the_tables_carry_mark_and_numbers() -> None:
    rows = table(ERRORS | {"a": [7.31, 7.42, 7.28, 7.52]})
    found = {one.label: one for one in compare(rows)}
    assert [found[name].mark for name in ("a", "b")] == ["*", ""]
    frame = ablation_table(rows).set_index("label")
    assert frame.loc["a", "distinguishable"]
    assert not frame.loc["b", "distinguishable"]
    assert frame.loc["a", "diff_rmse"] == pytest.approx(np.mean(np.subtract([7.31, 7.42, 7.28, 7.52], ERRORS["full"])))
    assert frame.loc["a", "diff_rmse_p_holm"] == found["a"].rmse.p_holm  # type: ignore[union-attr]
    latex = to_latex(rows).splitlines()
    assert [line.startswith("a &") for line in latex if "^{*}" in line] == [True]
    assert terminal_table(rows).columns[-1].header == "vs full"
    assert "+0.508*" in list(terminal_table(rows).columns[-1].cells)[1].plain  # type: ignore[union-attr]
    by_label = {one.label: one for one in sentences(list(found.values()), 3)}
    assert by_label["a"].verdict == "worse"
    assert "its RMSE is higher by 0.508" in by_label["a"].sentence
    assert by_label["b"].verdict == ""
    assert "is at most" in by_label["b"].sentence


def simulated(draw: np.random.Generator, effect: float) -> list[dict[str, Any]]:
    """Five variants × five seeds: a seed shifts all variants alike, each trial has noise, and the variant without the helper is worse."""
    common = draw.normal(0, 0.3, 5)
    means = {"full": 0.0, "no help": effect, "no a": 0.0, "no b": 0.0, "no c": 0.0}
    rmse = {name: 7 + common + mean + draw.normal(0, 0.1, 5) for name, mean in means.items()}
    return [
        row(name, seed, value, value / 2 + draw.normal(0, 0.02))
        for name, values in rmse.items() for seed, value in enumerate(values)
    ]  # fmt: skip


def test_what_helps_is_found_and_false_marks_are_rare() -> None:
    """In 200 tables, the component worth 0.4 is distinguished from worthless ones; nominally 5 % of tables have a false mark."""
    draw = np.random.default_rng(2024)
    found, false = 0, 0
    for _ in range(200):
        marks = {one.label: one.mark for one in compare(simulated(draw, effect=0.4))}
        found += marks.pop("no help") == "*"
        false += "*" in marks.values()
    assert found >= 160
    assert false <= 0.08 * 200


def test_false_marks_are_rare_where_nothing_helps() -> None:
    draw = np.random.default_rng(7)
    false = sum(any(one.mark for one in compare(simulated(draw, effect=0.0))) for _ in range(200))
    assert false <= 0.08 * 200


def window_errors(error: np.ndarray, windows: int, horizon: int) -> WindowErrors:
    """(T, N) errors by time as overlapping windows see them."""
    ahead = np.stack([error[start : start + horizon] for start in range(windows)]).reshape(windows, -1)
    count = np.full(windows, ahead.shape[1])
    return WindowErrors(np.arange(windows), np.abs(ahead).sum(1), (ahead**2).sum(1), count)


def ar1(draw: np.random.Generator, phi: float, shape: tuple[int, int]) -> np.ndarray:
    noise = draw.normal(size=(shape[0] + 300, shape[1])) * np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise, axis=0)[300:]


@pytest.mark.parametrize(("windows", "phi"), [(195, 0.8), (195, 0.9), (195, 0.98), (381, 0.9), (381, 0.95), (381, 0.98), (1000, 0.95)])
def test_blocks_keep_their_level_on_errors_that_last(windows: int, phi: float) -> None:
    """400 comparisons of two equally good forecasts, with overlapping windows and partly shared AR(1) errors."""
    draw = np.random.default_rng(11)
    false, naive = np.zeros(2), 0
    for _ in range(400):
        shared = ar1(draw, phi, (windows + 6, 4))
        ours, theirs = (window_errors(shared + ar1(draw, phi, (windows + 6, 4)), windows, 6) for _ in range(2))
        tests = [Paired.of(values) for values in block_differences(ours, theirs, 12).values()]
        false += np.array([test is not None and test.differs for test in tests])
        naive += stats.ttest_rel(ours.squared, theirs.squared).pvalue < 0.05
    assert false.max() <= 0.08 * 400
    assert naive > 0.3 * 400  # windows taken as independent pairs would raise false alarms all the time


def test_blocks_add_up_to_the_difference_of_the_errors() -> None:
    draw = np.random.default_rng(3)
    errors = [draw.normal(0, scale, (206, 4)) for scale in (1.0, 1.2)]
    ours, theirs = (window_errors(error, 200, 6) for error in errors)
    found = block_differences(ours, theirs, 12)
    assert len(found["rmse"]) == MAX_BLOCKS
    assert np.mean(found["rmse"]) == pytest.approx(ours.rmse - theirs.rmse, rel=1e-12)
    mae = [one.absolute.sum() / one.count.sum() for one in (ours, theirs)]
    assert np.mean(found["mae"]) == pytest.approx(mae[0] - mae[1], rel=1e-12)
    assert [len(block_differences(ours, theirs, least)["mae"]) for least in (30, 100, 101)] == [6, 2, 0]
    lasting = [window_errors(ar1(draw, phi, (206, 4)), 200, 6) for phi in (0.97, 0.97)]
    assert len(block_differences(*lasting, 12)["mae"]) < 5, "fewer blocks, where errors last"
    other = WindowErrors(theirs.window + 1, theirs.absolute, theirs.squared, theirs.count)
    assert block_differences(ours, other, 12) == {"rmse": [], "mae": []}


def test_the_spread_over_days_is_scipys_bootstrap() -> None:
    draw = np.random.default_rng(5)
    days = np.repeat(np.arange(12), [7, *[24] * 10, 5])
    level = draw.gamma(3, 1, 12)[days]  # some days are harder than others
    windows = len(days)
    count = draw.integers(3, 9, windows)
    squared = level * draw.chisquare(4, windows) * count
    one = WindowErrors(np.arange(windows), squared, squared, count, np.datetime64("2024-03-01", "D") + days)
    found = _spread([one], 2.0)
    by_day = [np.bincount(days, values) for values in (squared, count)]
    rng = np.random.default_rng(1)
    theirs = stats.bootstrap(
        by_day, lambda s, c, axis: 2 * np.sqrt(s.sum(axis) / c.sum(axis)), paired=True, method="percentile", n_resamples=4000, rng=rng
    ).confidence_interval
    assert found is not None
    assert found.days == 12
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.03)
    assert found.low < 2 * one.rmse < found.high
    assert _spread([replace(one, day=np.full(windows, np.datetime64("2024-03-01", "D")))], 1.0) is None


def test_missing_comparisons_stay_out_of_the_family() -> None:
    one, *rest = compare(table(ERRORS))
    lost = compare([row("full", 0, 6.0), row("full", 1, 6.1), row("z", 0, 7.0)])
    assert {found.family for found in corrected([one, *rest, *lost])} == {3, 1}


def test_a_comparison_says_where_one_row_reads_more_than_the_other() -> None:
    errors = {"full": [7.0, 7.1, 7.2], "with hours": [6.0, 6.2, 6.1]}
    rows = [row(variant, seed, value) for variant, values in errors.items() for seed, value in enumerate(values)]
    one = sentences(compare(rows), 3, {"full": "window", "with hours": "calendar"})[0]
    assert one.sentence.endswith("; it reads hour and weekday too, and full reads the window alone")
    same = sentences(compare(rows), 3, {"full": "window", "with hours": "window"})[0]
    assert "reads" not in same.sentence
