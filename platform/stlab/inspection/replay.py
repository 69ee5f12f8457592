"""A finished trial once more, from its own record, and whether the numbers agree."""

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
from stlab.execution.preflight import check_machine, threads_of
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.identity import absolute, code_hash, library_versions, trial_id
from stlab.study.spec import DataSpec, TrialSpec
from stlab.training import run_trial
from stlab.training.trial import dataset_for
from stlab.version import __version__

TOLERANCE = 1e-6
"""Relative; sums in another order make that of float32."""

_BY_EPOCH = {"loss": "training loss", "val_rmse": "validation RMSE", "val_mae": "validation MAE"}
_RESULT = {"val_rmse": "best validation RMSE", "best_epoch": "best epoch", "epochs": "epochs"}
_TEST = {"rmse": "test RMSE", "mae": "test MAE", "mape": "test MAPE"}


@dataclass(frozen=True)
class Number:
    """One number, or one of each epoch, then and now."""

    name: str
    then: float | None
    now: float | None
    difference: float
    """Relative to the larger of the two: |then − now| / max(|then|, |now|); infinite where one is missing."""


@dataclass(frozen=True)
class Condition:
    """Something that may change numbers, then and now."""

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
    """Why the second training failed, where it did."""

    @property
    def difference(self) -> float:
        """The largest relative difference; 0: the same to the last digit."""
        return math.inf if self.failure else max((number.difference for number in self.numbers), default=0.0)


def replay(
    store: Store,
    given: str,
    *,
    data_path: str | None = None,
    report: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> Replay:
    """Train a finished trial again, in this process and a scratch directory, and compare.

    Args:
        given: the trial's id, or as much of its start as is unique.
        data_path: where the data lies now, if not where it was.
        report: called with ``{"kind": "epochs", "rows": [...]}`` as epochs end.

    Raises:
        UserError: no such trial, not finished, made by a version of stlab that is not this one's, or its data is gone or another.
    """
    directory = TrialDirectory(store, find_trial(store, given))
    trial = _finished(directory)
    spec = _spec(directory, trial, data_path)
    check_machine([spec.resources])
    _check_data(directory, trial, spec)
    identity = {name: value for name, value in trial.items() if name not in TrialSpec.model_fields}
    with tempfile.TemporaryDirectory(prefix="stlab-replay-") as scratch, threads_of(spec.resources):
        again = TrialDirectory(Store(scratch), directory.trial_id)
        parts = directory.micro_batches()
        status = run_trial(spec, identity, again, test=directory.is_tested(), report=report, micro_batches=parts)
        conditions = tuple(_conditions(spec, trial, directory, again))
        failure = again.read("failed.json") or {}
        if status is not TrialStatus.FINISHED or (directory.is_tested() and not again.is_tested()):
            return Replay(directory.trial_id, spec, (), conditions, failure.get("reason", status.value))
        return Replay(directory.trial_id, spec, tuple(_numbers(directory, again)), conditions)


def find_trial(store: Store, given: str) -> str:
    """The id that starts with ``given``.

    Raises:
        UserError: none does, or several do.
    """
    found = [name for name in store.names("trials") if given and name.startswith(given)]
    if given in found:
        return given
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{len(found)} trials in {store.location} start with {given}: {', '.join(found[:5])}. Give more of the id.")
    raise UserError(
        f"there is no trial '{given}' in {store.location}. Ids stand in `stlab plan STUDY` and in the report under “How to reproduce”; "
        "--storage says where to look."
    )


def _finished(directory: TrialDirectory) -> dict[str, Any]:
    """What ``trial.json`` of a finished trial says."""
    trial, status = directory.read("trial.json"), directory.status()
    if trial is None or status is not TrialStatus.FINISHED:
        remedy = {
            TrialStatus.FAILED: "It failed; stlab run --retry-failed repeats it.",
            TrialStatus.PRUNED: "Its search ended it early.",
        }.get(status, "stlab run goes on with it.")
        raise UserError(f"trial {directory.trial_id} has no result to compare with. {remedy}")
    return trial


def _spec(directory: TrialDirectory, trial: Mapping[str, Any], data_path: str | None) -> TrialSpec:
    try:
        spec = TrialSpec(**{name: value for name, value in trial.items() if name in TrialSpec.model_fields})
        create_config(spec.model)
    except (ValidationError, TypeError, ValueError) as error:
        raise UserError(
            f"trial {directory.trial_id} was made by stlab {trial.get('code_version')}, this is {_code()}, which does not understand its "
            f"record: {' '.join(str(error).split())}. Replay it with that version."
        ) from error
    if data_path is None:
        return spec
    data = DataSpec(**{**spec.data.model_dump(), "path": absolute(data_path)})
    return spec.model_copy(update={"data": data})


def _check_data(directory: TrialDirectory, trial: Mapping[str, Any], spec: TrialSpec) -> None:
    path = spec.data.path
    if ":" not in path and not Path(path).exists():
        raise DataError(f"{path}: the data of trial {directory.trial_id} is gone. Put it back, or say where it is now: --data PATH.")
    found = dataset_for(spec.data).sha256
    if found != trial.get("data_sha256"):
        raise DataError(
            f"{path}: its content is not what trial {directory.trial_id} was trained on (SHA-256 of the content {found[:12]}…, then "
            f"{str(trial.get('data_sha256'))[:12]}…). Give the file as it was: --data PATH."
        )


def _code() -> str:
    return f"{__version__}+{code_hash()[:10]}"


def _conditions(
    spec: TrialSpec, trial: Mapping[str, Any], directory: TrialDirectory, again: TrialDirectory
) -> list[Condition]:
    then, now = directory.read("result.json") or {}, again.read("result.json") or {}
    code = Condition("code", str(trial.get("code_version")), _code())
    found = [code]
    identical = trial_id(spec, create_config(spec.model), trial["data_sha256"]) == directory.trial_id
    if not code.differs and not identical:
        found.append(Condition("weights, or another file the model names", "as its id says", "another content"))
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
    """Of the epochs that both have, the one that differs most; the last of equals."""
    pairs = list(zip(then, now, strict=False))
    at = max(range(len(pairs)), key=lambda i: (relative(*pairs[i]), i))
    return Number(f"{title}, epoch {at + 1}", *pairs[at], relative(*pairs[at]))


def relative(one: float | None, other: float | None) -> float:
    """|one − other| / max(|one|, |other|); 0 where they are the same, infinite where one of them is missing."""
    if one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other)):
        return 0.0
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))
