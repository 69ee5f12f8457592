"""The ablation table as a data frame and as LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stlab.report.page.text import caveats, headline, protocol_text
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.days import OverDays
from stlab.report.statistics.summary import Interval, Row, Summary, summarise
from stlab.report.tables import comparison_text
from stlab.report.tables.lines import TableLine, has_groups, has_mape, table_lines
from stlab.storage import single_protocol

if TYPE_CHECKING:
    import pandas as pd

_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "''",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "−": "$-$", "·": r"$\cdot$",
        "λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "σ": r"$\sigma$", "μ": r"$\mu$",
        "τ": r"$\tau$", "×": r"$\times$", "±": r"$\pm$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$",
        "²": "$^2$", "³": "$^3$",
    }
)  # fmt: skip


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it: special characters are escaped, Greek letters and signs are in math mode."""
    return text.translate(_LATEX)


def ablation_table(
    rows: Iterable[Row],
    axes: Sequence[str] | None = None,
    comparisons: Sequence[Comparison] | None = None,
    over_days: Mapping[str, OverDays] | None = None,
) -> pd.DataFrame:
    """One row for each variant at each setting of the axes, then the baselines; numbers in full precision.

    Columns ``*_ci95`` are half widths of 95 % Student-t intervals and ``*_sd`` sample standard deviations. Columns ``diff_*`` are
    the paired differences from ``reference``, with interval, p, p after Holm's correction, Cohen's d_z and Hedges' g. Columns
    ``test_rmse_days_*`` are a 95 % interval of the RMSE over resampled days of the test segment, and their number.

    Args:
        comparisons: the comparisons of the lines with their references. Unset: over seeds, with the default reference.
        over_days: label → spread over days.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    import pandas as pd

    rows = list(rows)
    found = {one.label: one for one in (compare(rows, axes) if comparisons is None else comparisons)}
    days = over_days or {}
    return pd.DataFrame(
        [
            _record(line) | _days_record(days.get(line.label)) | comparison_text.record(found.get(line.label))
            for line in summarise(rows, axes)
        ]
    )


def _days_record(spread: OverDays | None) -> dict[str, object]:
    names = ("low", "high", "days")
    return {f"test_rmse_days_{'n' if name == 'days' else name}": spread and getattr(spread, name) for name in names}


def _record(line: Summary) -> dict[str, object]:
    record: dict[str, object] = {"label": line.label, "variant": line.variant, "baseline": line.baseline}
    record |= line.axis_values
    record |= {"finished": line.n, "failed": line.failed, "missing": line.missing, "pruned": line.pruned}
    for name in ("test_rmse", "test_mae", "test_mape", "test_rmse_unmasked", "test_mae_unmasked", "val_rmse"):
        interval: Interval | None = getattr(line, name)
        record |= {f"{name}_{key}": None for key in ("mean", "ci95", "sd")}
        if interval is not None:
            record |= {f"{name}_mean": interval.mean, f"{name}_ci95": interval.half_width, f"{name}_sd": interval.sd}
    record |= {
        name: getattr(line, name) for name in ("trainable_params", "total_params", "peak_memory_bytes", "weights", "information")
    }
    record |= {
        "wall_seconds": line.seconds,
        "leaks": line.leaks,
        "synthetic": line.synthetic,
        "beats": "; ".join(line.beats),
    }
    return record


def to_latex(
    rows: Iterable[Row], axes: Sequence[str] | None = None, comparisons: Sequence[Comparison] | None = None
) -> str:
    """A ``table`` environment (needs booktabs): mean $\\pm$ 95 % interval over seeds, with the best variant in bold.

    An asterisk marks test errors that are distinguishable from the reference's; ``comparisons`` as for ``ablation_table``.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    rows = list(rows)
    lines = summarise(rows, axes)
    mape = has_mape(lines)
    compared = compare(rows, axes) if comparisons is None else comparisons
    marks = {one.label: one.mark for one in compared}
    shown = table_lines(lines, plus_minus=r" \pm ")
    groups = has_groups(lines)
    body = [_latex_line(line, mape, groups, marks.get(line.label, "")) for line in shown if not line.baseline]
    baselines = [_latex_line(line, mape, groups) for line in shown if line.baseline]
    if body and baselines:
        body.append(r"\midrule")
    columns = rf"\begin{{tabular}}{{l{'l' * groups}r{'cccc' if mape else 'ccc'}cr}}"
    opening = [r"\begin{table}[t]", r"\centering", rf"\caption{{{caption(rows, lines, compared)}}}", columns]
    percent = r" & Test MAPE, \%" if mape else ""
    reads = "Reads & " if groups else ""
    header = rf"Variant & {reads}Seeds & Test RMSE & Test MAE{percent} & Val.\ RMSE & Trainable & Time \\"
    closing = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*opening, r"\toprule", header, r"\midrule", *body, *baselines, *closing])


def _latex_line(line: TableLine, mape: bool, groups: bool, mark: str = "") -> str:
    label = escape_latex(line.label)
    cells = [rf"\textbf{{{label}}}" if line.is_best_tested else label, *([line.reads] if groups else []), escape_latex(line.seeds)]
    rmse = f"{line.rmse}^{{{mark}}}" if mark else line.rmse
    errors = [(rmse, line.is_best_tested), (line.mae, line.has_lowest_mae)]
    errors += [(line.mape, False)] if mape else []
    for text, bold in (*errors, (line.val_rmse, False)):
        cells.append(text if text == "–" else rf"$\mathbf{{{text}}}$" if bold else f"${text}$")
    cells += [line.trainable, line.time]
    return " & ".join("--" if cell == "–" else cell for cell in cells) + r" \\"


def caption(rows: Sequence[Row], lines: Sequence[Summary], comparisons: Sequence[Comparison] = ()) -> str:
    """The LaTeX caption: data set, protocol, seeds, the meaning of the asterisk, and every caveat."""
    protocol = single_protocol(rows)
    names = list(dict.fromkeys(str(row["dataset"]) for row in rows if row.get("dataset")))
    used = sorted({row["seed"] for row in rows if not row.get("baseline") and row.get("seed") is not None})
    intervals = any(line.test_rmse and line.test_rmse.half_width is not None for line in lines)
    over = f"{len(used)} seed{'' if len(used) == 1 else 's'} ({', '.join(map(str, used))})"
    means = rf"Mean $\pm$ 95\,\% Student-$t$ interval over {over}" if intervals else f"Mean over {over}, no intervals"
    where = f"{', '.join(names) or 'an unnamed data set'} ({protocol_text(protocol)})"
    sentences = [headline(lines), *(caveat.sentence for caveat in caveats(rows, protocol))]
    if any(one.rmse for one in comparisons):
        sentences.insert(0, _asterisk(comparisons))
    return " ".join(
        [
            f"Forecast errors on {escape_latex(where)}, in data units.",
            f"{means}. Bold: the lowest mean of the variants.",
            *map(escape_latex, sentences),
        ]
    )


def _asterisk(comparisons: Sequence[Comparison]) -> str:
    """The sentence that says what the asterisk means."""
    family = max(one.family for one in comparisons)
    over = "seeds" if comparisons[0].over == "seeds" else "blocks of test windows, one seed"
    return (
        f"Asterisk: test RMSE distinguishable from {comparison_text.reference_label(comparisons)}'s, paired t-test over {over}, "
        f"p < 0.05 after Holm's correction over {family}."
    )
