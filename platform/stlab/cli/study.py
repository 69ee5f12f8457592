"""Commands for a study: run, plan, report, and the schema of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlab.cli.options import (
    DatasetsOption,
    SetOption,
    SkipOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    TrialsOption,
    coloured,
    console_for_output,
    extended,
    load_study,
    myself,
    study_name,
)
from stlab.cli.summaries import say_coverage, say_joint, say_results, say_search
from stlab.files import shown

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.execution.run_study import Outcome
    from stlab.storage import TrialDirectory
    from stlab.study.plan import Plan, PlannedTrial


def run(
    study: StudyArgument,
    overrides: SetOption = None,
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
    address: Annotated[
        str | None,
        typer.Option("--address", envvar="RAY_ADDRESS", help="Address of a running Ray cluster. Default: this machine."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    add_seeds: Annotated[
        int | None, typer.Option("--add-seeds", min=1, metavar="N", help="Extend a finished study by N new seeds.")
    ] = None,
    trials: TrialsOption = None,
    datasets: DatasetsOption = None,
    skip_bad_datasets: SkipOption = False,
) -> None:
    """Run the trials of a study that are left to do."""
    from stlab.storage import Store
    from stlab.study.file import with_datasets, with_trials

    overrides = with_datasets(study, with_trials(study, overrides, trials), datasets)

    store = Store(storage)
    spec, source = load_study(study, overrides) if add_seeds is None else extended(study, overrides, store, add_seeds)
    from stlab.api import run_observed

    console = console_for_output()
    if add_seeds is not None:
        console.print(f"seeds {', '.join(map(str, spec.seeds))}: the last {add_seeds} are new.", highlight=False)
    try:
        done = run_observed(
            spec, source, store, console, tracking_uri=tracking_uri, address=address, retry_failed=retry_failed,
            skip_bad_datasets=skip_bad_datasets,
        )  # fmt: skip
    except KeyboardInterrupt:
        again = "the same command goes on from there."
        if add_seeds is not None:
            again = f"go on with {myself()} run {store.address(f'studies/{spec.name}/study.yaml')} --storage {store.location}"
        console.print(f"Interrupted. What is trained stays: {again}", soft_wrap=True)
        raise typer.Exit(130) from None
    _say_outcome(console, done.outcome, store.location, done.tracking_uri, done.tracking_failure)
    raise typer.Exit(1 if done.outcome.ended_as("failed", "missing") else 0)


def _say_outcome(
    console: Console, outcome: Outcome, storage: str, uri: str | None, tracking_failure: str | None
) -> None:
    from stlab.storage import Store, TrialDirectory, table_rows

    console.print()
    study = outcome.plan.study
    say_results(console, Store(storage), table_rows(outcome.rows), study.model_dump(mode="json"), list(study.axes))
    for name, reason in outcome.plan.left_out.items():
        console.print(coloured("left out:", "yellow", f" {name}: {reason}"), soft_wrap=True)
    def where(row: Mapping[str, Any]) -> str:
        return f"{row['dataset']}: " if study.datasets else ""

    for row in outcome.ended_as("failed"):
        failure = TrialDirectory(Store(storage), row["trial_id"]).read("failed.json") or {}
        console.print(
            coloured("failed:", "red", f" {where(row)}{row['variant']}, seed {row['seed']} ({row['trial_id']}): {row['error']}"),
            soft_wrap=True,
        )
        for line in failure.get("log_tail", []):
            console.print(f"    {line}", style="dim", highlight=False, soft_wrap=True)
    if outcome.ended_as("failed"):
        console.print("--retry-failed runs failed trials again.", highlight=False)
    reused = [row["reused_from"] for row in outcome.rows if row.get("reused_from")]
    for other in dict.fromkeys(reused):
        count = reused.count(other)
        console.print(f"reused   {count} trial{'' if count == 1 else 's'} that {other} had trained", highlight=False)
    missing = outcome.ended_as("missing")
    if missing:
        console.print(coloured(f"{len(missing)} trials did not end.", "red", " The same command continues them."))
    for trouble in outcome.troubles:
        console.print(trouble, style="red", highlight=False, soft_wrap=True)
    if outcome.kept:
        console.print(
            f"The study has changed. Its earlier results and report are kept in {Store(storage).address(outcome.kept)}.",
            highlight=False,
            soft_wrap=True,
        )
    if tracking_failure:
        later = f" {tracking_failure} Later: {myself()} sync {outcome.plan.study.name} --storage {storage}"
        console.print(coloured("MLflow is behind:", "yellow", later), soft_wrap=True)
    console.print(f"report   {outcome.report}", highlight=False, soft_wrap=True)
    if uri is None:
        console.print("MLflow   no server was named: use --tracking-uri, or stlab sync later", highlight=False)
    else:
        default = uri.startswith("sqlite:///") and not tracking_failure
        console.print(
            f"MLflow   {myself()} ui --storage {storage}" if default else f"MLflow   {myself()} ui --tracking-uri {shown(uri)}",
            highlight=False,
            soft_wrap=True,
        )


def plan(
    study: StudyArgument,
    overrides: SetOption = None,
    storage: StorageOption = "runs",
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Number of worker groups at once, for the packs. Default: as many as this machine can run.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure a few training steps of each shape, and estimate time, memory and cost.")
    ] = False,
    trials: TrialsOption = None,
    datasets: DatasetsOption = None,
    skip_bad_datasets: SkipOption = False,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="TRIAL_ID", help="Say which field or source file sets this trial apart from those in the storage."),
    ] = None,
) -> None:
    """List the trials of a study (variant, axis values, seed, id, state) and their packs. Only --probe trains anything."""
    from stlab.execution.run_study import plan_study
    from stlab.study.file import with_datasets, with_trials

    spec, source = load_study(study, with_datasets(study, with_trials(study, overrides, trials), datasets))

    made = plan_study(spec, source, skip_bad=skip_bad_datasets)
    if why is not None:
        _say_why(made, why, storage)
    else:
        _say_plan(made, storage, concurrency, probe)


def _say_why(plan: Plan, trial_id: str, storage: str) -> None:
    from rich.table import Table

    from stlab.inspection.why import why_new
    from stlab.storage import Store

    console, store = console_for_output(), Store(storage)
    found = why_new(plan, trial_id, store)
    who = f"{found.planned.trial_id} ({found.planned.label})"
    if found.is_there:
        console.print(f"{who} is in {store.location}: nothing makes it new.", highlight=False, soft_wrap=True)
        return
    if found.nearest is None:
        name = found.planned.spec.model["name"]
        console.print(f"{who} is new: {store.location} has no trial of {name}.", highlight=False, soft_wrap=True)
        return
    near = found.nearest
    nearest = f"{found.nearest_id} (study {near.get('study')}: {near.get('variant')}, seed {near.get('seed')})"
    console.print(f"{who} is new. The most similar trial in {store.location} is {nearest}. They differ in", highlight=False, soft_wrap=True)
    table = Table("", "there", "here", show_edge=False)
    for one in found.differences:
        table.add_row(one.what, one.there, one.here)
    console.print(table)


def _say_plan(plan: Plan, storage: str, concurrency: int | None, probe: bool) -> None:
    from rich.table import Table

    from stlab.errors import ResourceError
    from stlab.execution.capacity import groups_here
    from stlab.execution.preflight import check_machine
    from stlab.storage import Store, TrialDirectory
    from stlab.study.packs import make_packs

    console, store = console_for_output(), Store(storage)
    todo = [trial for trial in plan.unique() if not TrialDirectory(store, trial.trial_id).is_over()]
    wanted = {trial.spec.resources for trial in (*todo, *(branch.template for branch in plan.branches))}
    slots = {resources: concurrency or groups_here(resources) for resources in wanted}
    packs = make_packs(todo, slots)
    pack_of = {trial.trial_id: str(number) for number, pack in enumerate(packs) for trial in pack.trials}
    several = bool(plan.study.datasets)
    table = Table(
        *(["data set"] if several else []),
        "variant",
        *plan.study.axes,
        "seed",
        "id",
        "state",
        "pack",
        title=f"{plan.study.name}: {len(plan.trials)} trials" + (" beside its searches" if plan.branches else ""),
        title_justify="left",
    )
    for trial in plan.trials:
        axes = [str(trial.spec.axis_values.get(path, "")) for path in plan.study.axes]
        state = _state(TrialDirectory(store, trial.trial_id), trial) if trial.trial_id not in pack_of else "to do"
        table.add_row(
            *([trial.spec.dataset_entry] if several else []),
            trial.spec.variant,
            *axes,
            "" if trial.spec.baseline else str(trial.spec.seed),
            trial.trial_id,
            state,
            pack_of.get(trial.trial_id, ""),
        )
    console.print(table)
    say_search(console, plan, store)
    for name, reason in plan.left_out.items():
        console.print(coloured("left out:", "yellow", f" {name}: {reason}"), soft_wrap=True)
    for note in plan.notes:
        console.print(coloured("note:", "dim", f" {note}"))
    try:
        check_machine(wanted)
    except ResourceError as error:
        console.print(coloured("note:", "dim", f" this machine alone is not enough: {error}"), soft_wrap=True)
    say_coverage(console, plan)
    there, plural = len(plan.unique()) - len(todo), "" if len(packs) == 1 else "s"
    besides = "; the table above shows the searches" if plan.branches else ""
    console.print(f"{len(todo)} to do, in {len(packs)} pack{plural}; {there} there already{besides}.", highlight=False)
    if probe:
        from stlab.cli.cost import estimate_and_print

        estimate_and_print(console, plan, todo, slots, store)


def _state(directory: TrialDirectory, trial: PlannedTrial) -> str:
    """The state of a trial with nothing left to do, and the other study if one trained it."""
    if directory.status().value == "failed":
        return "failed"
    first = (directory.read("trial.json") or {}).get("study", trial.spec.study)
    return "done" if first == trial.spec.study else f"done in {first}"


def report(
    names: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies that were run.")],
    storage: StorageOption = "runs",
) -> None:
    """Write the report of a study again from its directories. Several studies share one page."""
    import yaml

    from stlab.report import write_report
    from stlab.storage import Store, StudyDirectory, table_rows

    names = [study_name(name) for name in names]
    store = Store(storage)
    if len(names) > 1:
        say_joint(console_for_output(), store, names)
        return
    name = names[0]
    rows = table_rows(StudyDirectory(store, name).read_trials().to_pylist())
    path = write_report(store, name)
    console = console_for_output()
    study = yaml.safe_load(StudyDirectory(store, name).read_study() or "{}")
    axes = list(study.get("axes") or []) if study else None
    say_results(console, store, rows, {"name": name, **study}, axes)
    console.print(f"report   {path}", highlight=False, soft_wrap=True)


def schema() -> None:
    """Print the JSON schema of the study file, for editors."""
    from pydantic import TypeAdapter

    from stlab.catalog import trainable_models
    from stlab.study.schema import study_schema

    models = {name: TypeAdapter(config).json_schema() for name, config in trainable_models().items()}
    typer.echo(json.dumps(study_schema(models), indent=2, ensure_ascii=False))
