"""``stlab report A B …``: several studies on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.storage import Store


def say_joint(console: Console, store: Store, names: Sequence[str]) -> None:
    """Write the page and print a table a data set."""
    from stlab.report import compare, terminal_table
    from stlab.report.page.joint import write_joint_report
    from stlab.report.paper.tables import terminal_paper

    path, sections = write_joint_report(store, names)
    for part in sections:
        axes = list(part.study["axes"])
        if part.folder:
            console.print(part.folder, style="bold", highlight=False)
        console.print(terminal_table(part.rows, axes, console.width, compare(part.rows, axes, part.study, store)))
        for block in terminal_paper(part.papers):
            console.print()
            console.print(block)
    console.print(f"report   {path}", highlight=False, soft_wrap=True)
