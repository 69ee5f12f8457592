"""The ablation table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stlab.report.page.text import caveats, headline
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.summary import Row, Summary, summarise, symbols_text
from stlab.report.tables import comparison_text
from stlab.report.tables.lines import against_title, has_mape, table_decimals, table_lines
from stlab.storage import single_protocol

if TYPE_CHECKING:
    from rich.table import Table

_MIN_NAME_WIDTH, _MAX_NAME_WIDTH = 18, 32
"""Columns of the variants' names. A longer name is folded, between words where the words are short enough."""


def terminal_table(
    rows: Iterable[Row],
    axes: Sequence[str] | None = None,
    width: int = 100,
    comparisons: Sequence[Comparison] | None = None,
) -> Table:
    """The table for a terminal of ``width`` columns.

    Columns that do not fit are left out: first the differences' intervals, then parameters, MAPE, validation error and time. The
    caption holds the caveats, the verdict and the meaning of the asterisk.

    Args:
        comparisons: as for ``ablation_table``.

    Raises:
        ProtocolMismatch: the rows were made by different protocols.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    lines = summarise(rows, axes)
    compared = list(compare(rows, axes) if comparisons is None else comparisons)
    name_width = _name_width(lines)
    columns, legend = _columns(lines, compared, width - name_width)
    notes = [headline(lines), legend, symbols_text(lines), *(caveat.sentence for caveat in caveats(rows, single_protocol(rows)))]
    caption = Text("\n".join(note for note in notes if note))
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("variant", min_width=name_width, overflow="fold")
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for index, line in enumerate(shown := table_lines(lines)):
        cells = [line.label, *(column[index] for column in columns.values())]
        ends = index + 1 < len(shown) and shown[index + 1].baseline and not line.baseline
        style = "bold" if line.is_best else "dim" if line.baseline else None
        table.add_row(*(Text(cell) for cell in cells), style=style, end_section=ends)
    return table


def _columns(lines: Sequence[Summary], compared: Sequence[Comparison], width: int) -> tuple[dict[str, list[str]], str]:
    """Title → cells of the columns that fit beside the names, and the legend of the differences."""
    columns = _result_columns(lines)
    name = comparison_text.reference_label(compared)
    versus = f"vs {name}" if len(name) <= 10 else "vs ref."
    legend = comparison_text.legend(compared, versus, name)
    if any(one.rmse is not None for one in compared):
        by_label, digits = {one.label: one for one in compared}, table_decimals(lines)
        columns[versus] = [comparison_text.cell(by_label.get(line.label), digits) for line in lines]
        if not _fits(columns, width):
            columns[versus] = [comparison_text.cell(by_label.get(line.label), digits, short=True) for line in lines]
    for title in ("params", "MAPE, %", "val RMSE", "time"):
        if not _fits(columns, width):
            columns.pop(title, None)
    return columns, legend


def _result_columns(lines: Sequence[Summary]) -> dict[str, list[str]]:
    """Title → cells of every column but the names and the differences."""
    shown = table_lines(lines)
    columns = {"seeds": [str(line.n) if line.n == line.planned else f"{line.n}/{line.planned}" for line in lines]}
    columns["test RMSE"] = [line.rmse for line in shown]
    columns["test MAE"] = [line.mae for line in shown]
    columns["val RMSE"] = [line.val_rmse for line in shown]
    if has_mape(lines):
        columns["MAPE, %"] = [line.mape for line in shown]
    columns["params"] = [line.trainable for line in shown]
    columns["time"] = [line.time for line in shown]
    columns[against_title(lines)] = [line.against_anchor for line in shown]
    return columns


def _name_width(lines: Sequence[Summary]) -> int:
    longest = max((len(word) for line in lines for word in line.label.split()), default=0)
    return max(_MIN_NAME_WIDTH, min(_MAX_NAME_WIDTH, longest))


def _fits(columns: Mapping[str, Sequence[str]], width: int) -> bool:
    """Whether the columns fit into ``width``, with a margin at both ends and two spaces between columns."""
    return 2 + sum(2 + max(map(len, (title, *cells))) for title, cells in columns.items()) <= width
