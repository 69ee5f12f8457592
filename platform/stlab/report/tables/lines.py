"""The lines of a results table as text, for the page, for LaTeX and for the terminal alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stlab.report.page.text import count, decimals, duration, number, seeds
from stlab.report.statistics.summary import Summary, anchor, best_variant, has_slot_of_week, lowest_mae


@dataclass(frozen=True)
class TableLine:
    """One variant or baseline; a dash stands for a number that is not there."""

    label: str
    baseline: bool
    is_best: bool
    """The best variant by test RMSE, or by validation RMSE where no variant was tested."""
    is_best_tested: bool
    has_lowest_mae: bool
    is_incomplete: bool
    """At least one planned seed failed or has no result."""
    reads: str
    """``window``, ``calendar`` or ``period``."""
    seeds: str
    rmse: str
    mae: str
    mape: str
    unmasked: str
    """RMSE and MAE with missing readings counted as stored."""
    val_rmse: str
    trainable: str
    time: str
    against_anchor: str
    """See the function ``against_anchor``."""


def table_lines(lines: Sequence[Summary], plus_minus: str = " ± ") -> list[TableLine]:
    """All lines of a table, with the same number of decimals in each.

    Args:
        plus_minus: what stands between a mean and its interval.
    """
    digits, best, best_mae = table_decimals(lines), best_variant(lines), lowest_mae(lines)
    return [
        TableLine(
            label=line.label,
            baseline=line.baseline,
            is_best=line is best,
            is_best_tested=line is best and line.test_rmse is not None,
            has_lowest_mae=line is best_mae,
            is_incomplete=bool(line.failed or line.missing),
            reads=line.information or "–",
            seeds=seeds(line),
            rmse=number(line.test_rmse, digits, plus_minus),
            mae=number(line.test_mae, digits, plus_minus),
            mape=number(line.test_mape, 2, plus_minus),
            unmasked=f"{number(line.test_rmse_unmasked, digits)} / {number(line.test_mae_unmasked, digits)}",
            val_rmse=number(line.val_rmse, digits, plus_minus),
            trainable=count(line.trainable_params),
            time=duration(line.seconds),
            against_anchor=against_anchor(line, lines),
        )
        for line in lines
    ]


def table_decimals(lines: Sequence[Summary]) -> int:
    """How many decimals every error of a table is printed with."""
    return decimals(value.mean for line in lines for value in (line.test_rmse, line.val_rmse) if value)


def has_mape(lines: Sequence[Summary]) -> bool:
    """Whether any line has a percentage error; grids have none (protocol: "Metrics")."""
    return any(line.test_mape for line in lines)


def has_groups(lines: Sequence[Summary]) -> bool:
    """Whether some variants may know more than others, so that the table says of each line what it reads."""
    return len({line.information for line in lines if not line.baseline and line.information}) > 1


def has_missing(lines: Sequence[Summary]) -> bool:
    """Whether readings are masked as missing, so that the errors without a mask differ (protocol: "Metrics")."""
    return any(
        line.test_mae and line.test_mae_unmasked and line.test_mae.mean != line.test_mae_unmasked.mean for line in lines
    )


def against_title(lines: Sequence[Summary]) -> str:
    """The title of the column ``TableLine.against_anchor``."""
    return "vs week" if has_slot_of_week(lines) else "vs best"


def against_anchor(line: Summary, lines: Sequence[Summary]) -> str:
    """Test RMSE relative to the anchor (``statistics.summary.anchor``), in percent; below zero is better. Nothing is relative to 0."""
    held = anchor(lines, line)
    if line.test_rmse is None or held is None or held.test_rmse is None or line.label == held.label or not held.test_rmse.mean:
        return "–"
    return f"{100 * (line.test_rmse.mean / held.test_rmse.mean - 1):+.1f} %".replace("-", "−")
