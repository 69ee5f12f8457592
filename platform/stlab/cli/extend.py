"""``stlab run STUDY --add-seeds N``: a study that was run, with further seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlab.cli.options import load_study, myself
from stlab.errors import UserError

if TYPE_CHECKING:
    from stlab.storage import Store
    from stlab.study.plan import PlannedTrial
    from stlab.study.source import StudySource
    from stlab.study.spec import StudySpec


def extended(study: str, overrides: list[str] | None, store: Store, count: int) -> tuple[StudySpec, StudySource]:
    """The study as it was run in this storage, with the next ``count`` seeds.

    Args:
        study: the name of a study that was run, or a study file, of which only the name is read.
        overrides: ``--set`` on what was run; a data file that moved, say.

    Raises:
        UserError: it was not run, or trials of it are left to do.
    """
    from stlab.execution.run_study import plan_study
    from stlab.storage import StudyDirectory, TrialDirectory
    from stlab.study.file import parse
    from stlab.study.source import StudySource

    name = study if StudyDirectory(store, study).read_study() is not None else load_study(study, None)[0].name
    text = StudyDirectory(store, name).read_study()
    if text is None:
        raise UserError(f"--add-seeds: no study '{name}' was run in {store.location}. Run it first: stlab run {study}")
    label = store.address(f"studies/{name}/study.yaml")
    source = StudySource.from_text(text, label, overrides or ())
    spec = parse(source)
    if spec.search is not None:
        raise UserError("--add-seeds: a search trains its selected configuration with the study's seeds; set them: --set seeds=[0, 1, 2].")
    left = [trial for trial in plan_study(spec, source).unique() if not TrialDirectory(store, trial.trial_id).is_over()]
    if left:
        raise UserError(
            f"--add-seeds: {len(left)} trials of '{name}' are left to do, seeds {spec.seeds}.{_other_code(store, name, left)} First: "
            f"{myself()} run {label} --storage {store.location}"
        )
    first = max(spec.seeds) + 1
    seeds = [*spec.seeds, *range(first, first + count)]
    source = StudySource.from_text(text, label, [*(overrides or ()), f"seeds={seeds}"])
    return parse(source), source


def _other_code(store: Store, name: str, left: list[PlannedTrial]) -> str:
    """That a newer stlab computes otherwise, where this is why trials are left."""
    from stlab.storage import StudyDirectory

    versions = {row["code_version"] for row in StudyDirectory(store, name).read_trials().to_pylist() if row["code_version"]}
    now = left[0].identity["code_version"]
    if not versions or now in versions:
        return ""
    return f" They were trained by {', '.join(sorted(versions))}; this is {now}, whose numbers may be others."
