"""``stlab doctor``: check that this machine or a cluster has everything that a study needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from stlab.cli.options import SetOption, TrackingOption, console_for_output

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.inspection.doctor import Check


def doctor(
    storage: Annotated[str | None, typer.Option("--storage", envvar="STLAB_STORAGE", help="Check that it can be written.")] = None,
    tracking_uri: TrackingOption = None,
    address: Annotated[
        str | None, typer.Option("--address", envvar="RAY_ADDRESS", help="Address of a Ray cluster: http://head:8265, host:6379, or auto.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Check versions, devices, threads, Ray, storage, MLflow, weights and, with --set data.path=…, the data."""
    console = console_for_output()
    good = [_say(console, check) for check in _checks(storage, tracking_uri, address, list(overrides or ()))]
    if not all(good):
        console.print(f"{good.count(False)} of {len(good)} checks failed.", highlight=False)
        raise typer.Exit(1)
    console.print(f"all {len(good)} checks passed.", highlight=False)


def _checks(storage: str | None, tracking_uri: str | None, address: str | None, overrides: list[str]) -> Iterator[Check]:
    from stlab.inspection import doctor as checks

    yield from checks.machine_checks()
    yield from checks.ray_checks(address)
    if storage is not None:
        yield from checks.storage_checks(storage)
    if tracking_uri is not None:
        yield checks.tracking_check(tracking_uri)
    yield checks.weights_check()
    path = next((text.partition("=")[2] for text in reversed(overrides) if text.startswith("data.path=")), None)
    if path is not None:
        yield checks.data_check(path, overrides)


def _say(console: Console, check: Check) -> bool:
    from rich.text import Text

    sign = Text("✓ ", style="green") if check.ok else Text("✗ ", style="bold red")
    lines = check.found.splitlines()
    console.print(sign, Text(f"{check.what:<11}{lines[0]}"), sep="", soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(f"             {line.strip()}"), soft_wrap=True)
    if not check.ok and check.remedy:
        console.print(Text(f"             → {check.remedy}"), style="yellow", soft_wrap=True)
    return check.ok
