"""Commands on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlab.cli.options import SetOption, coloured, console_for_output, data_spec
from stlab.errors import UserError


def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A data file, or synthetic:city. For a network in .npz: --set data.family=sensors.")
    ],
    overrides: SetOption = None,
    picture: Annotated[Path | None, typer.Option(help="Where the picture goes; by default NAME.png here.")] = None,
) -> None:
    """Shape, span, step, missing values, range, what the split gives; the mean grid and the daily profile as a picture."""
    from stlab.data import load_dataset
    from stlab.data.formats.readers import READERS
    from stlab.inspection.data_summary import summarise
    from stlab.report.figures.data_set import data_set_figure
    from stlab.report.figures.style import render

    console = console_for_output()
    suffix = Path(path).suffix.lower()
    # What only a network is stored in needs no saying.
    is_network = suffix in READERS["sensors"] and suffix not in READERS["grid"]
    spec = data_spec(path, overrides or [], **({"family": "sensors"} if is_network else {}))
    summary = summarise(spec)
    lines = [(label, text) for label, text in summary.lines() if label != "problem"]  # problems follow as the error
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        console.print(coloured(f"{label:<{width}}", "bold", f" {text}"), soft_wrap=True)
    if summary.problems:
        raise UserError("no picture: the data cannot be used as it is.\n" + "\n".join(summary.problems))
    dataset = load_dataset(spec)
    target = picture or Path(f"{dataset.name.replace(' ', '_')}.png")
    if target.exists() and picture is None:
        raise UserError(f"{target} is there already; say where the picture goes with --picture.")
    if not target.parent.is_dir():
        raise UserError(f"--picture {target}: there is no folder {target.parent}. Make it, or give another.")
    target.write_bytes(render(data_set_figure(dataset), "png"))
    console.print(coloured(f"{'picture':<{width}}", "bold", f" {target}"), soft_wrap=True)
