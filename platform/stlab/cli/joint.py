"""``stlab report A B …``: several studies on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.results import Store


def say_joint(console: Console, store: Store, names: Sequence[str]) -> None:
    """Write the page and print a table a data set."""
    from stlab.report import compare, terminal_table
    from stlab.report.joint import write_joint_report

    path, sections = write_joint_report(store, names)
    for study, rows in sections:
        axes = list(study["axes"])
        if len(sections) > 1:
            console.print(f"[bold]{rows[0].get('dataset')}[/]", highlight=False)
        console.print(terminal_table(rows, axes, console.width, compare(rows, axes, study, store)))
    console.print(f"report   {path}", highlight=False, soft_wrap=True)
