"""The ablation table: for a spreadsheet, for a paper, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stlab.report.page.text import caveats, count, decimals, duration, headline, number, protocol_words, seeds
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.summary import (
    Interval,
    Row,
    Summary,
    anchor,
    best_variant,
    has_slot_of_week,
    lowest_mae,
    summarise,
    symbols_words,
)
from stlab.report.tables import comparison_text
from stlab.storage import single_protocol

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_NAME_WIDTH = (18, 32)  # of the variants' column in a terminal: longer names are folded, between words where these are no longer
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
    """Text as LaTeX prints it: its special characters escaped, the field's Greek letters and signs in math mode."""
    return text.translate(_LATEX)


def ablation_table(
    rows: Iterable[Row], axes: Sequence[str] | None = None, comparisons: Sequence[Comparison] | None = None
) -> pd.DataFrame:
    """One line a variant × axis values, then the baselines; numbers in full precision.

    Columns ``*_ci95`` are half widths of 95 % Student-t intervals, ``*_sd`` sample standard deviations; ``diff_*`` the paired
    differences from ``reference`` with interval, p, p after Holm's correction, Cohen's d_z and Hedges' g.

    Args:
        comparisons: of the lines with their references. Unset: over seeds, with the default reference.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    import pandas as pd

    rows = list(rows)
    found = {one.label: one for one in (compare(rows, axes) if comparisons is None else comparisons)}
    records = [_record(line) | comparison_text.record(found.get(line.label)) for line in summarise(rows, axes)]
    return pd.DataFrame(records)


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
        name: getattr(line, name) for name in ("trainable_params", "total_params", "peak_memory_bytes", "weights")
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
    """A ``table`` environment (needs booktabs): mean $\\pm$ 95 % interval over seeds, the best variant in bold.

    An asterisk marks test errors that are distinguishable from the reference's; ``comparisons`` as for ``ablation_table``.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    rows = list(rows)
    lines = summarise(rows, axes)
    digits = table_decimals(lines)
    compared = compare(rows, axes) if comparisons is None else comparisons
    marks = {one.label: one.mark for one in compared}
    body = [_latex_line(line, digits, lines, marks.get(line.label, "")) for line in lines if not line.baseline]
    baselines = [_latex_line(line, digits, lines) for line in lines if line.baseline]
    if body and baselines:
        body.append(r"\midrule")
    mape = has_mape(lines)
    columns = rf"\begin{{tabular}}{{lr{'cccc' if mape else 'ccc'}cr}}"
    opening = [r"\begin{table}[t]", r"\centering", rf"\caption{{{caption(rows, lines, compared)}}}", columns]
    percent = r" & Test MAPE, \%" if mape else ""
    header = rf"Variant & Seeds & Test RMSE & Test MAE{percent} & Val.\ RMSE & Trainable & Time \\"
    closing = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*opening, r"\toprule", header, r"\midrule", *body, *baselines, *closing])


def _latex_line(line: Summary, digits: int, lines: Sequence[Summary], mark: str = "") -> str:
    bold = line.test_rmse is not None and line is best_variant(lines)
    label = escape_latex(line.label)
    cells = [rf"\textbf{{{label}}}" if bold else label, escape_latex(seeds(line))]
    measured = [(line.test_rmse, digits, bold), (line.test_mae, digits, line is lowest_mae(lines))]
    measured += [(line.test_mape, 2, False)] if has_mape(lines) else []
    for value, places, best in (*measured, (line.val_rmse, digits, False)):
        text = number(value, places, r" \pm ") + (f"^{{{mark}}}" if mark and value is line.test_rmse else "")
        cells.append("--" if value is None else rf"$\mathbf{{{text}}}$" if best else f"${text}$")
    cells += [count(line.trainable_params), duration(line.seconds)]
    return " & ".join("--" if cell == "–" else cell for cell in cells) + r" \\"


def caption(rows: Sequence[Row], lines: Sequence[Summary], comparisons: Sequence[Comparison] = ()) -> str:
    """The LaTeX caption: data set, protocol, seeds, what the asterisk means, and every caveat."""
    protocol = single_protocol(rows)
    names = list(dict.fromkeys(str(row["dataset"]) for row in rows if row.get("dataset")))
    used = sorted({row["seed"] for row in rows if not row.get("baseline") and row.get("seed") is not None})
    intervals = any(line.test_rmse and line.test_rmse.half_width is not None for line in lines)
    over = f"{len(used)} seed{'' if len(used) == 1 else 's'} ({', '.join(map(str, used))})"
    told = rf"Mean $\pm$ 95\,\% Student-$t$ interval over {over}" if intervals else f"Mean over {over}, no intervals"
    where = f"{', '.join(names) or 'an unnamed data set'} ({protocol_words(protocol)})"
    sentences = [headline(lines), *(caveat.sentence for caveat in caveats(rows, protocol))]
    if any(one.rmse for one in comparisons):
        family = max(one.family for one in comparisons)
        over = "seeds" if comparisons[0].over == "seeds" else "blocks of test windows, one seed"
        sentences[:0] = [
            f"Asterisk: test RMSE distinguishable from {reference_label(comparisons)}'s, paired t-test over {over}, p < 0.05 after "
            f"Holm's correction over {family}."
        ]
    return " ".join(
        [
            f"Forecast errors on {escape_latex(where)}, in data units.",
            f"{told}. Bold: the lowest mean of the variants.",
            *map(escape_latex, sentences),
        ]
    )


def has_mape(lines: Sequence[Summary]) -> bool:
    """Whether any line has a percentage error; of grids there is none (protocol: "Metrics")."""
    return any(line.test_mape for line in lines)


def has_missing(lines: Sequence[Summary]) -> bool:
    """Whether readings are masked as missing, so that the figures without a mask differ (protocol: "Metrics")."""
    return any(
        line.test_mae and line.test_mae_unmasked and line.test_mae.mean != line.test_mae_unmasked.mean for line in lines
    )


def table_decimals(lines: Sequence[Summary]) -> int:
    """One number of decimals for the whole table."""
    return decimals(value.mean for line in lines for value in (line.test_rmse, line.val_rmse) if value)


def terminal_table(
    rows: Iterable[Row],
    axes: Sequence[str] | None = None,
    width: int = 100,
    comparisons: Sequence[Comparison] | None = None,
) -> Table:
    """The table for a terminal of ``width`` columns; what does not fit is left out: first the differences' intervals, then
    parameters, MAPE, validation error and time.

    Caveats, the verdict and what the asterisk means stand in its caption; ``comparisons`` as for ``ablation_table``.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    lines = summarise(rows, axes)
    best, digits = best_variant(lines), table_decimals(lines)
    compared = {one.label: one for one in (compare(rows, axes) if comparisons is None else comparisons)}
    name = reference_label(list(compared.values()))
    versus = f"vs {name}" if len(name) <= 10 else "vs ref."
    legend = comparison_text.legend(list(compared.values()), versus, name)
    notes = [headline(lines), legend, symbols_words(lines), *(caveat.sentence for caveat in caveats(rows, single_protocol(rows)))]
    told = Text("\n".join(note for note in notes if note))
    wide = _name_width(lines)
    table = Table(box=box.SIMPLE_HEAD, caption=told, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    columns = _columns(lines, digits)
    if legend:
        columns[versus] = [comparison_text.cell(compared.get(line.label), digits) for line in lines]
        if not _fits(columns, width - wide):
            columns[versus] = [comparison_text.cell(compared.get(line.label), digits, short=True) for line in lines]
    for title in ("params", "MAPE, %", "val RMSE", "time"):
        if not _fits(columns, width - wide):
            columns.pop(title, None)
    table.add_column("variant", min_width=wide, overflow="fold")
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for index, line in enumerate(lines):
        cells = [line.label, *(column[index] for column in columns.values())]
        ends = index + 1 < len(lines) and lines[index + 1].baseline and not line.baseline
        style = "bold" if line is best else "dim" if line.baseline else None
        table.add_row(*(Text(cell) for cell in cells), style=style, end_section=ends)
    return table


def _columns(lines: Sequence[Summary], digits: int) -> dict[str, list[str]]:
    """Title → cells of the terminal's table, the variants' names and the differences apart."""
    planned = [line.n + line.failed + line.missing + line.pruned for line in lines]
    columns = {"seeds": [str(line.n) if line.n == many else f"{line.n}/{many}" for line, many in zip(lines, planned, strict=True)]}
    for title, name in (("test RMSE", "test_rmse"), ("test MAE", "test_mae"), ("val RMSE", "val_rmse")):
        columns[title] = [number(getattr(line, name), digits) for line in lines]
    if has_mape(lines):
        columns["MAPE, %"] = [number(line.test_mape, 2) for line in lines]
    columns["params"] = [count(line.trainable_params) for line in lines]
    columns["time"] = [duration(line.seconds) for line in lines]
    columns[against_title(lines)] = [against_anchor(line, lines) for line in lines]
    return columns


def _name_width(lines: Sequence[Summary]) -> int:
    longest = max((len(word) for line in lines for word in line.label.split()), default=0)
    return max(_NAME_WIDTH[0], min(_NAME_WIDTH[1], longest))


def _fits(columns: Mapping[str, Sequence[str]], width: int) -> bool:
    """Whether the columns stand beside the names, which leave ``width``: a margin at both ends, two spaces between columns."""
    return 2 + sum(2 + max(map(len, (title, *cells))) for title, cells in columns.items()) <= width


def reference_label(comparisons: Sequence[Comparison]) -> str:
    """What the column of differences is held against, in a word."""
    names = list(dict.fromkeys(one.reference for one in comparisons))
    if not names:
        return "–"
    variant, _, point = names[0].partition(" · ")
    # Variants are held against one variant, at each point of the axes its own; a variant alone against one point of its axes.
    if len(names) > 1:
        return variant
    is_alone = all(one.label.partition(" · ")[0] == variant for one in comparisons)
    return point if point and is_alone else names[0]


def against_title(lines: Sequence[Summary]) -> str:
    """The title of the column that ``against_anchor`` fills."""
    return "vs week" if has_slot_of_week(lines) else "vs best"


def against_anchor(line: Summary, lines: Sequence[Summary]) -> str:
    """Test RMSE relative to the anchor (``statistics.anchor``), in percent; below zero is better."""
    held = anchor(lines, line)
    if line.test_rmse is None or held is None or held.test_rmse is None or line.label == held.label:
        return "–"
    return f"{100 * (line.test_rmse.mean / held.test_rmse.mean - 1):+.1f} %".replace("-", "−")
