"""The estimated cost of a study, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stlab.cli.options import coloured
from stlab.report.page.text import duration, memory

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.inspection.cost import CostEstimate
    from stlab.storage import Store
    from stlab.study.plan import Plan, PlannedTrial
    from stlab.study.spec import ResourcesSpec

_OF_SEARCHES = "Each trial of a search counts as much as the most expensive one that has a single field at an end of its range."


def estimate_and_print(
    console: Console, plan: Plan, todo: Sequence[PlannedTrial], slots: Mapping[ResourcesSpec, int], store: Store
) -> None:
    """Measure each distinct shape, write the estimate to the study's folder, and print it."""
    from stlab.inspection.cost import estimate_cost, left_to_search, write_cost_estimate

    searches, unbounded = left_to_search(plan, store) if plan.branches else ([], [])
    if unbounded:
        console.print(
            f"Not estimated: {', '.join(unbounded)}, which has no maximum number of trials (search.max_trials, or --trials).",
            highlight=False,
            soft_wrap=True,
        )
    if not searches and all(trial.spec.baseline for trial in todo):
        console.print("Nothing is left to train, so there is nothing to measure.")
        return
    store.make()
    with console.status("measuring") as status:

        def show_shape(done: int, total: int, trial: PlannedTrial) -> None:
            # A status reads a string's brackets as styles, whatever its console does.
            status.update(coloured(f"measuring {done + 1} of {total} shapes:", "", f" {trial.label}"))

        made = estimate_cost(todo, slots, show_shape, searches)
    path = write_cost_estimate(store, plan.study.name, made)
    _table(console, [*todo, *made.searched.values()], made)
    for line in lines(made):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"estimate {path}", highlight=False, soft_wrap=True)


def _table(console: Console, todo: Sequence[PlannedTrial], made: CostEstimate) -> None:
    from rich import box
    from rich.table import Table

    groups: dict[tuple[str, ...], list[PlannedTrial]] = {}
    for trial in todo:
        if not trial.spec.baseline:
            groups.setdefault((trial.spec.dataset_entry, trial.spec.variant, *map(str, trial.spec.axis_values.values())), []).append(trial)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("variant", "trials", "a step", "an epoch", "a trial, at most", "peak memory"):
        table.add_column(title, justify="left" if title == "variant" else "right")
    for trials in groups.values():
        first = trials[0]
        found = made.trials[first.trial_id]
        name = first.label.removesuffix(f", seed {first.spec.seed}").removesuffix(f" {first.note}")
        table.add_row(
            f"{name}, the most expensive" if first.note else name,
            str(len(trials)),
            f"{1000 * found.step_seconds:.3g} ms",
            duration(found.epoch_seconds),
            duration(made.seconds[first.trial_id]),
            memory(found.peak_memory_bytes),
        )
    console.print(table)


def lines(made: CostEstimate) -> list[str]:
    """The estimate as sentences."""
    devices = list(dict.fromkeys(measured.device for measured in made.trials.values()))
    together = f", {made.at_once} trials at a time" if made.at_once > 1 else ""
    hours = [f"{made.core_hours:.3g} core-hours", *([f"{made.gpu_hours:.3g} GPU-hours"] if made.gpu_hours else [])]
    price = ", no price: resources.price_per_gpu_hour sets one" if made.gpu_hours and made.price is None else ""
    cost = price if made.price is None else f", {made.price:.2f} at resources.price_per_gpu_hour"
    return [
        f"At most {' and '.join(hours)}{cost}.",
        f"Started now, it ends by {made.ends_at.astimezone():%Y-%m-%d %H:%M} ({duration(made.wall_seconds)}{together}).",
        "At most: every trial to train.max_epochs; early stopping ends sooner. Starting Ray and its workers (half a minute), baselines and",
        "the report come on top; trials side by side may slow one another.",
        *([_OF_SEARCHES] if made.searched else []),
        f"Measured on {', '.join(devices)}, by a few steps of each shape.",
    ]
