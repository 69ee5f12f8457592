"""Train a finished trial again from its own record, and compare the numbers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stlab.catalog import create_config
from stlab.errors import DataError, UserError
from stlab.execution.models import threads_of
from stlab.execution.preflight import check_machine
from stlab.inspection.status import find_trial
from stlab.model_files import relocated
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.aliases import trial_with_current_fields
from stlab.study.identity import absolute, code_version, library_versions, recorded_parts, source_digests, trial_id
from stlab.study.spec import DataSpec, TrialSpec
from stlab.training import run_trial
from stlab.training.trial import dataset_for

TOLERANCE = 1e-6
"""Relative difference. Float32 sums differ by this much when their order changes."""

_BY_EPOCH = {"loss": "training loss", "val_rmse": "validation RMSE", "val_mae": "validation MAE"}
_RESULT = {"val_rmse": "best validation RMSE", "best_epoch": "best epoch", "epochs": "epochs"}
_TEST = {"rmse": "test RMSE", "mae": "test MAE", "mape": "test MAPE"}


@dataclass(frozen=True)
class Number:
    """One number, or one for each epoch, of the first and of the second training."""

    name: str
    then: float | None
    now: float | None
    difference: float
    """Relative to the larger of the two: |then − now| / max(|then|, |now|). Infinite if one is missing."""


@dataclass(frozen=True)
class Condition:
    """A condition that may change numbers, as it was and as it is now."""

    name: str
    then: str
    now: str

    @property
    def differs(self) -> bool:
        return self.then != self.now


@dataclass(frozen=True)
class Replay:
    """How a trial's second training compares with its first."""

    trial_id: str
    spec: TrialSpec
    numbers: tuple[Number, ...]
    conditions: tuple[Condition, ...]
    failure: str | None = None
    """The reason, if the second training failed."""

    @property
    def difference(self) -> float:
        """The largest relative difference. 0 means that the numbers are equal to the last digit."""
        return math.inf if self.failure else max((number.difference for number in self.numbers), default=0.0)


def replay(
    store: Store,
    given: str,
    *,
    data_path: str | None = None,
    report: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> Replay:
    """Train a finished trial again, in this process and in a scratch directory, and compare the numbers.

    Args:
        given: the trial's id, or a unique beginning of it.
        data_path: the new path of the data, if it was moved.
        report: is called with ``{"kind": "epochs", "rows": [...]}`` when epochs end.

    Raises:
        UserError: there is no such trial, it is not finished, this version of stlab cannot read its record, or its data is missing or has
            changed.
    """
    directory = TrialDirectory(store, trial_to_replay(store, given))
    trial = _finished(directory)
    spec = _spec(directory, trial, data_path)
    check_machine([spec.resources])
    _check_data(directory, trial, spec)
    identity = {name: value for name, value in trial.items() if name not in TrialSpec.model_fields}
    with tempfile.TemporaryDirectory(prefix="stlab-replay-") as scratch, threads_of(spec.resources):
        again = TrialDirectory(Store(scratch), directory.trial_id)
        parts = directory.micro_batches()
        status = run_trial(spec, identity, again, test=directory.is_tested(), report=report, parts=parts)
        conditions = tuple(_conditions(spec, trial, directory, again))
        failure = again.read("failed.json") or {}
        if status is not TrialStatus.FINISHED or (directory.is_tested() and not again.is_tested()):
            return Replay(directory.trial_id, spec, (), conditions, failure.get("reason", status.value))
        return Replay(directory.trial_id, spec, tuple(_numbers(directory, again)), conditions)


def trial_to_replay(store: Store, given: str) -> str:
    """The id that begins with ``given``.

    Raises:
        UserError: no id does, or several do.
    """
    found = find_trial(store, given) if given else None
    if found is None:
        raise UserError(
            f"there is no trial '{given}' in {store.location}. `stlab plan STUDY` and the report (“How to reproduce”) list the ids; "
            "--storage names the place to search."
        )
    return found


def _finished(directory: TrialDirectory) -> dict[str, Any]:
    """The content of ``trial.json`` of a finished trial."""
    trial, status = directory.read("trial.json"), directory.status()
    if trial is None or status is not TrialStatus.FINISHED:
        remedy = {
            TrialStatus.FAILED: "It failed; stlab run --retry-failed repeats it.",
            TrialStatus.PRUNED: "Its search ended it early.",
        }.get(status, "stlab run continues it.")
        raise UserError(f"trial {directory.trial_id} has no result to compare with. {remedy}")
    return trial


def _spec(directory: TrialDirectory, trial: Mapping[str, Any], data_path: str | None) -> TrialSpec:
    try:
        current = trial_with_current_fields(trial)
        current["model"] = {**current["model"], "name": relocated(current["model"]["name"], directory.store)}
        spec = TrialSpec(**{name: value for name, value in current.items() if name in TrialSpec.model_fields})
        create_config(spec.model)
    except (ValidationError, TypeError, ValueError) as error:
        raise UserError(
            f"trial {directory.trial_id} was made by stlab {trial.get('code_version')}. This is {code_version()}, which cannot read its "
            f"record: {' '.join(str(error).split())}. Replay it with that version."
        ) from error
    if "pretrain" not in create_config(spec.model).reads():
        spec = spec.model_copy(update={"data": spec.data.without_pretraining()})
    if data_path is None:
        return spec
    path = absolute(data_path)
    pretrain = [path if given == spec.data.path else given for given in spec.data.pretrain]
    data = DataSpec(**{**spec.data.model_dump(), "path": path, "pretrain": pretrain})
    return spec.model_copy(update={"data": data})


def _check_data(directory: TrialDirectory, trial: Mapping[str, Any], spec: TrialSpec) -> None:
    path = spec.data.path
    if ":" not in path and not Path(path).exists():
        raise DataError(f"{path}: the data of trial {directory.trial_id} is gone. Put it back, or name its new path: --data PATH.")
    dataset = dataset_for(spec.data)
    found = dataset.sha256
    if changed := dataset.changed_parts(recorded_parts(trial)):
        raise DataError(f"{path}: its {changed[0]} are not what trial {directory.trial_id} was trained on.")
    if found != trial.get("data_sha256"):
        raise DataError(
            f"{path}: its content is not what trial {directory.trial_id} was trained on (SHA-256 of the content {found[:12]}…, then "
            f"{str(trial.get('data_sha256'))[:12]}…). Give the file as it was: --data PATH."
        )


def _codes(trial: Mapping[str, Any], spec: TrialSpec) -> tuple[str, str]:
    """The code of a trial then and now: its version, and which files of it have changed."""
    then, now = trial.get("code"), source_digests(create_config(spec.model))
    version = str(trial.get("code_version"))
    if not isinstance(then, dict):  # a record from before files were told apart
        return version, code_version()
    changed = sorted(file for file in then.keys() | now.keys() if then.get(file) != now.get(file))
    return version, f"{code_version()}, other code in {', '.join(changed)}" if changed else version


def _conditions(
    spec: TrialSpec, trial: Mapping[str, Any], directory: TrialDirectory, again: TrialDirectory
) -> list[Condition]:
    then, now = directory.read("result.json") or {}, again.read("result.json") or {}
    code = Condition("code", *_codes(trial, spec))
    found = [code]
    identical = trial_id(spec, create_config(spec.model), trial["data_sha256"], recorded_parts(trial)) == directory.trial_id
    if not code.differs and not identical:
        found.append(Condition("content of the weights, or of another file of the model", "as in the trial's id", "different"))
    recorded = trial.get("libraries")
    for name, version in library_versions().items():
        found.append(Condition(name, "not recorded" if recorded is None else recorded.get(name, "none"), version))
    for name in ("device", "arithmetic", "precision", "micro_batch"):
        found.append(Condition(name, str(then.get(name)), str(now.get(name, then.get(name)))))
    found.append(Condition("workers", str(spec.resources.workers), "1"))
    return found


def _numbers(directory: TrialDirectory, again: TrialDirectory) -> list[Number]:
    found = [
        _largest(title, [row.get(name) for row in directory.read_epochs()], [row.get(name) for row in again.read_epochs()])
        for name, title in _BY_EPOCH.items()
        if directory.read_epochs()
    ]
    for file, titles in (("result.json", _RESULT), ("test.json", _TEST)):
        then, now = directory.read(file) or {}, again.read(file) or {}
        found += [
            Number(title, then[name], now.get(name), relative(then[name], now.get(name)))
            for name, title in titles.items()
            if then.get(name) is not None
        ]
    return found


def _largest(title: str, then: list[float | None], now: list[float | None]) -> Number:
    """The epoch of the largest difference among those that both trainings have; the last one if several are equal."""
    pairs = list(zip(then, now, strict=False))
    at = max(range(len(pairs)), key=lambda i: (relative(*pairs[i]), i))
    return Number(f"{title}, epoch {at + 1}", *pairs[at], relative(*pairs[at]))


def relative(one: float | None, other: float | None) -> float:
    """|one − other| / max(|one|, |other|). 0 if they are equal, infinite if one of them is missing."""
    if one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other)):
        return 0.0
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))
