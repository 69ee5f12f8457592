"""Means and intervals against scipy and numpy, and the caveats that each table must contain."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from stlab.errors import ProtocolMismatch
from stlab.report import ablation_table, summarise, terminal_table, to_latex

PROTOCOL = {
    "protocol": "forecast", "data_sha256": "ab" * 32, "family": "grid", "channels": 2, "history": 6, "horizon": 6,
    "split": [0.7, 0.15, 0.15], "scaler": "min-max", "mask": None, "scale": 1.0, "missing": "error",
}  # fmt: skip
RMSE = {"full": [6.81, 6.92, 6.77], "no flow": [7.31, 7.22, 7.45]}


def row(variant: str, seed: int = 0, rmse: float | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "study": "s", "variant": variant, "trial_id": f"{variant}-{seed}", "seed": seed, "status": "finished",
        "baseline": False, "test_rmse": rmse, "test_mae": None if rmse is None else rmse / 2,
        "val_rmse": None if rmse is None else rmse - 0.5, "wall_seconds": 60.0 + seed, "trainable_params": 1_930_000,
        "total_params": 23_000_000, "peak_memory_bytes": (800 + seed) * 2**20, "weights": "pretrained",
        "synthetic": False, "leaks": False, "dataset": "bike", "protocol": json.dumps(PROTOCOL),
    }  # fmt: skip
    return found | more


def study() -> list[dict[str, Any]]:
    rows = [row(variant, seed, value) for variant, values in RMSE.items() for seed, value in enumerate(values)]
    rows += [row("last_value", 0, 17.8, baseline=True), row("slot_of_week_mean", 0, 7.186, baseline=True)]
    return rows


def rendered(rows: list[dict[str, Any]]) -> str:
    sink = io.StringIO()
    Console(file=sink, width=100).print(terminal_table(rows))
    return sink.getvalue()


def test_the_interval_is_students() -> None:
    for line in summarise(study())[:2]:
        values = RMSE[line.variant]
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert line.test_rmse is not None
        assert line.test_rmse.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert line.test_rmse.sd == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert line.test_rmse.mean - line.test_rmse.half_width == pytest.approx(interval.low, rel=1e-9)
        assert line.test_rmse.mean + line.test_rmse.half_width == pytest.approx(interval.high, rel=1e-9)


def test_one_seed_has_no_interval() -> None:
    (line,) = summarise([row("full", 0, 6.8)])
    assert line.test_rmse is not None
    assert (line.test_rmse.half_width, line.test_rmse.sd) == (None, None)


def test_variants_keep_their_order_and_baselines_follow_by_error() -> None:
    rows = study()
    lines = summarise([rows[-2], *rows[3:6], *rows[:3], rows[-1]])
    assert [line.label for line in lines] == ["no flow", "full", "slot_of_week_mean", "last_value"]
    assert [line.beats for line in lines] == [
        ("last_value",), ("slot_of_week_mean", "last_value"), ("last_value",), ()
    ]  # fmt: skip


def test_lost_seeds_are_counted_and_not_averaged() -> None:
    rows = [row("full", 0, 6.0), row("full", 1, 8.0), row("full", 2, status="failed"), row("full", 3, status="missing")]
    rows.append(row("full", 4, math.nan))
    (line,) = summarise(rows)
    assert (line.n, line.failed, line.missing) == (2, 2, 1)
    assert line.test_rmse is not None
    assert line.test_rmse.mean == 7.0
    assert "2 of 5 (2 failed, 1 missing)" in to_latex(rows)
    assert "2/5" in rendered(rows)


def test_axes_are_told_from_the_configuration() -> None:
    rows = [
        row("full", seed, 6.0 + rank / 8 + seed, **{"param.model.rank": rank, "param.train.lr": 3e-4})
        for rank in (4, 8)
        for seed in (0, 1)
    ]
    lines = summarise(rows)
    assert [line.label for line in lines] == ["full · rank=4", "full · rank=8"]
    assert [line.axis_values for line in lines] == [{"model.rank": 4}, {"model.rank": 8}]
    assert [line.n for line in lines] == [2, 2]
    assert summarise(rows, axes=[])[0].n == 4


def test_a_few_shot_ratio_has_its_own_baseline() -> None:
    axis = "param.data.train_ratio"
    rows = [row("full", 0, value, **{axis: ratio}) for ratio, value in ((0.1, 8.0), (1.0, 7.0))]
    rows += [
        row("slot_of_week_mean", 0, value, baseline=True, trial_id=f"b{ratio}", **{axis: ratio})
        for ratio, value in ((0.1, 9.0), (1.0, 6.0))
    ]
    lines = summarise(rows)
    assert [line.beats for line in lines[:2]] == [("slot_of_week_mean · train_ratio=0.1",), ()]


def test_mixed_protocols_are_refused_by_the_field() -> None:
    other = row("other", 0, 5.0, protocol=json.dumps(PROTOCOL | {"scaler": "z-score"}))
    for table in (summarise, ablation_table, to_latex, terminal_table):
        with pytest.raises(ProtocolMismatch, match="scaler is 'min-max' for full"):
            table([*study(), other])


def test_the_data_frame_holds_full_precision() -> None:
    table = ablation_table(study()).set_index("label")
    again = pd.read_csv(io.StringIO(ablation_table(study()).to_csv(index=False))).set_index("label")
    for variant, values in RMSE.items():
        half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
        for frame in (table, again):
            assert frame.loc[variant, "test_rmse_mean"] == pytest.approx(np.mean(values), rel=1e-12)
            assert frame.loc[variant, "test_rmse_ci95"] == pytest.approx(half, rel=1e-9)
            assert frame.loc[variant, "test_mae_sd"] == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-9)
            assert frame.loc[variant, "wall_seconds"] == 61.0
            assert frame.loc[variant, "peak_memory_bytes"] == 802 * 2**20


def test_latex_escapes_and_sets_the_best_in_bold() -> None:
    rows = [row("#3 r_1 & 50% {λ}~^\\$", 0, 7.5), row("full", 0, 6.8, weights="random")]
    text = to_latex(rows)
    assert r"\#3 r\_1 \& 50\% \{$\lambda$\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$ & 1" in text
    assert r"\textbf{full} & 1 & $\mathbf{6.800}$" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", "bike", "70/15/15", "seed"):
        assert rule in text
    assert "weights of full are random" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("synthetic", True, "generated, not measured"),
        ("leaks", True, "scaler has seen the test segment"),
        ("weights", "random", "weights are random"),
        ("scale", 1000.0, "multiplied by 1000"),
    ],
)
def test_limits_are_told_wherever_the_table_goes(field: str, value: Any, says: str) -> None:
    protocol = json.dumps(PROTOCOL | {"protocol": "unist" if field == "leaks" else "forecast"})
    if field == "scale":
        protocol = json.dumps(PROTOCOL | {"scale": value})
    more = {} if field == "scale" else {field: value}
    rows = [row("full", seed, 6.8 + seed / 10, **({"protocol": protocol} | more)) for seed in (0, 1)]
    assert says in to_latex(rows)
    assert says in " ".join(rendered(rows).split())


def test_the_caption_names_what_the_asterisk_is_against() -> None:
    rows = [
        row(variant, seed, 6.0 + shift + 0.1 * seed + 0.01 * (seed == 1) * shift, **{"param.data.train_ratio": ratio})
        for ratio in (0.1, 1.0) for variant, shift in (("full", 0.0), ("plain", 1.0)) for seed in range(3)
    ]  # fmt: skip
    told = to_latex(rows, ["data.train_ratio"])
    assert "distinguishable from full's, paired" in told, "at each point its own, not the first point's alone"


def test_who_loses_to_the_slot_of_week_is_told() -> None:
    text = " ".join(rendered(study()).split())
    assert "1 of 2 variants beat the mean by slot of week (RMSE 7.186); not: no flow." in text
    alone = [row("full", 0, 7.0), row("slot_of_week_mean", 0, 7.186, baseline=True, test_mae=3.038)]
    assert "full beats the mean by slot of week (RMSE 7.186). By MAE that baseline is not beaten by full." in " ".join(
        rendered(alone).split()
    )
    ridge = row("ridge", 0, 6.5, baseline=True)
    text = " ".join(rendered([*study(), ridge]).split())
    assert "The best baseline is ridge (RMSE 6.500), which no variant beats." in text


def test_the_terminal_table_fits_a_hundred_columns() -> None:
    names = ["full without one of its many components and a long name", "#4"]
    rows = [row(name, seed, 116.81 + seed) for name in names for seed in range(3)] + study()[-2:]
    lines = rendered(rows).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    half = stats.sem([116.81, 117.81, 118.81]) * stats.t.ppf(0.975, 2)
    assert f"117.81 ± {half:.2f}" in "\n".join(lines)


def test_rows_that_may_know_different_things_are_told_apart() -> None:
    rows = [row(name, 0, 7.0, information=group) for name, group in (("full", "window"), ("with hours", "calendar"))]
    rows.append(row("slot_of_week_mean", 0, 7.186, baseline=True, information="period"))
    assert [line.information for line in summarise(rows)] == ["window", "calendar", "period"]
    latex = to_latex(rows)
    assert r"\begin{tabular}{llr" in latex
    assert "Variant & Reads & Seeds" in latex
    assert "with hours & calendar & " in latex.replace(r"\textbf{with hours}", "with hours")
    assert list(ablation_table(rows)["information"]) == ["window", "calendar", "period"]


def test_rows_that_may_know_the_same_have_no_column_for_it() -> None:
    rows = [row(name, 0, 7.0, information="window") for name in ("full", "no flow")]
    rows.append(row("slot_of_week_mean", 0, 7.186, baseline=True, information="period"))
    assert "Reads" not in to_latex(rows)
    assert "Reads" not in to_latex(study()), "trials of before it was recorded"
