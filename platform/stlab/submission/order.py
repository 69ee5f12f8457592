"""The order of a job: ``stlab run`` with its arguments, which are checked here, as far as possible, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stlab.errors import StorageError, StudyError, UserError
from stlab.execution.preflight import check_protocol
from stlab.execution.run_study import data_facts
from stlab.files import holds_secret, is_uri, secrets_of, shown
from stlab.study.file import (
    NO_PASSWORD,
    find_study,
    load_study_source,
    parse,
    shipped_studies,
    with_datasets,
    with_trials,
)
from stlab.study.plan import DataFacts, make_plan
from stlab.study.source import Key, StudySource
from stlab.study.spec import DataSpec
from stlab.submission.models import ModelSources, model_names, model_sources

_DATA_FILES = ("path", "node_ids", "distances", "pretrain")
_KEEP_IT_OUT = " Take it out of the URI, and set it in the environment of the cluster's nodes."


@dataclass(frozen=True)
class Order:
    """The call of ``stlab run`` on the cluster."""

    study: str
    overrides: list[str]
    storage: str
    tracking_uri: str | None = None
    trials: int | None = None
    retry_failed: bool = False
    add_seeds: int | None = None
    datasets: tuple[str, ...] = ()
    skip_bad_datasets: bool = False

    def arguments(self, study: str) -> list[str]:
        """The words after ``stlab``. They hold no password, since every user of the cluster can read them."""
        words = ["run", study, "--storage", self.storage]
        if self.tracking_uri and not secrets_of(self.tracking_uri):
            words += ["--tracking-uri", self.tracking_uri]
        for override in self.overrides:
            words += ["--set", override]
        if self.trials is not None:
            words += ["--trials", str(self.trials)]
        if self.retry_failed:
            words.append("--retry-failed")
        if self.add_seeds is not None:
            words += ["--add-seeds", str(self.add_seeds)]
        for files in self.datasets:
            words += ["--datasets", files]
        return words + ["--skip-bad-datasets"] * self.skip_bad_datasets

    def again(self, name: str) -> list[str]:
        """The words after ``stlab submit`` that continue a job of this order, without the address and without passwords.

        Args:
            name: the name of the study.
        """
        order = replace(self, retry_failed=False)  # it concerned earlier failures, not those of this job
        if self.add_seeds is None:
            study = _as_anywhere(self.study)
        else:  # the study in the storage has the new seeds by then, and repeating the option would add further ones
            study = f"{self.storage.rstrip('/')}/studies/{name}/study.yaml"
            order = replace(order, overrides=[], add_seeds=None, datasets=())
        hidden = [word for uri in self.environment().values() for word in ("--tracking-uri", shown(uri))]
        return [*order.arguments(study)[1:], *hidden]

    def environment(self) -> dict[str, str]:
        """A tracking URI with a password, which must not be part of the command, since the command is logged and shown."""
        return {"MLFLOW_TRACKING_URI": self.tracking_uri} if self.tracking_uri and secrets_of(self.tracking_uri) else {}


def _as_anywhere(study: str) -> str:
    """The name of a study, or its path from any folder of this machine."""
    if is_uri(study):
        return study
    found = find_study(study)
    return study if found in shipped_studies() else str(found.resolve())


@dataclass
class Checked:
    """The result of checking an order that may be sent."""

    name: str
    """The name of the study."""
    text: str | None
    """The content of the study file. None if ``--add-seeds`` extends a study that is given by its name alone."""
    notes: list[str] = field(default_factory=list)
    """Notes on what could not be checked on this machine."""
    models: ModelSources = field(default_factory=ModelSources)
    """What is sent beside the study for models from outside."""


def check_order(order: Order) -> Checked:
    """Find and validate the study, and refuse paths and addresses that only this machine can use.

    Raises:
        UserError: the order cannot be sent; the message gives the place, the reason and the remedy.
    """
    _check_places(order)
    notes = []
    if order.tracking_uri and urlsplit(order.tracking_uri).hostname in ("localhost", "127.0.0.1", "::1"):
        notes.append(f"for the job, {shown(order.tracking_uri)} is a server on the head of the cluster.")
    if order.add_seeds is not None:
        return _extension(order, notes)
    overrides = with_trials(order.study, order.overrides, order.trials)
    elsewhere: list[str] = []
    try:
        overrides = with_datasets(order.study, overrides, order.datasets)
    except (StudyError, StorageError) as error:  # the nodes may have the files, or reach the store
        elsewhere.append(f"--datasets {' '.join(map(shown, order.datasets))}")
        notes.append(str(error))
    source = load_study_source(order.study, overrides)
    spec = parse(source)
    _refuse_relative_paths(source, chosen_there=bool(elsewhere))

    def facts(data: DataSpec) -> DataFacts:
        for name, path in (("path", data.path), *(("pretrain", path) for path in data.pretrain)):
            if not path.startswith("synthetic:") and (is_uri(path) or not Path(path).exists()):
                elsewhere.append(f"data.{name}={shown(path)}")
                raise _Elsewhere
        return data_facts(data)

    try:
        if not elsewhere:
            check_protocol(make_plan(spec, facts, source, skip_bad=order.skip_bad_datasets))
    except _Elsewhere:
        pass
    if elsewhere:
        notes.append(f"{elsewhere[0]} is not on this machine: the data are checked on the cluster.")
    file = find_study(order.study)
    _refuse_model_files_elsewhere([file.read_text(encoding="utf-8-sig"), *order.overrides])
    models = model_sources(model_names(spec), file.resolve().parent)
    return Checked(spec.name, file.read_text(encoding="utf-8-sig"), notes, models)


class _Elsewhere(Exception):
    """Raised for data that are not on this machine, since the rest of the plan cannot be made here."""


def _extension(order: Order, notes: list[str]) -> Checked:
    """``--add-seeds`` extends the study in the storage, so a study file only gives the name."""
    try:
        source = load_study_source(order.study)
    except StudyError:
        return Checked(order.study, None, notes)
    file, spec = find_study(order.study), parse(source)
    # A model's package is in no storage, so it is sent again, as with any job.
    return Checked(spec.name, file.read_text(encoding="utf-8-sig"), notes, model_sources(model_names(spec), file.resolve().parent))


def _check_places(order: Order) -> None:
    if secrets_of(order.storage):
        raise UserError(
            f"--storage {shown(order.storage)}: keys do not belong in a URI. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on the "
            "cluster's nodes."
        )
    if not is_uri(order.storage) and not Path(order.storage).is_absolute():
        raise UserError(
            f"--storage {order.storage}: a cluster cannot use a folder of this machine. Give a storage that all nodes reach: "
            "--storage s3://bucket/runs, or an absolute path of a shared folder: /shared/runs."
        )
    uri = order.tracking_uri or ""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise UserError(
            f"--tracking-uri {uri}: a cluster cannot reach a database in this folder. Give a server, --tracking-uri "
            "http://mlflow:5000, or leave it out and run stlab sync later."
        )
    for word in order.datasets:
        if holds_secret(word):
            raise UserError(f"--datasets {shown(word)}: the URI holds a key, and all users can read the command of a job.{_KEEP_IT_OUT}")
        if not (is_uri(word) or Path(word).is_absolute() or ":" in word) and ("/" in word or "." in word or "*" in word):
            raise UserError(
                f"--datasets {word}: a cluster cannot use a folder of this machine. Give a URI, or an absolute path that all nodes reach."
            )
    for override in order.overrides:
        path, _, value = override.partition("=")
        if holds_secret(value):
            remedy = f" {NO_PASSWORD[0].upper()}{NO_PASSWORD[1:]}" if path.strip().startswith("search") else _KEEP_IT_OUT
            raise UserError(f"--set {path.strip()}: the value holds a password, and all users can read the command of a job.{remedy}")


def _refuse_model_files_elsewhere(texts: Sequence[str]) -> None:
    """A job finds a model's file by the same words, so these must lead there from the study's folder."""
    for text in texts:
        for place in re.findall(r"([^\s\"'{}\[\],=]+\.py):\w+", text):
            if not is_uri(place) and (Path(place).expanduser().is_absolute() or place.startswith("~") or ".." in Path(place).parts):
                raise UserError(
                    f"{place}: a job gets what lies beside the study. Put the file there, and name it as ./{Path(place).name}:…"
                )


def _refuse_relative_paths(source: StudySource, chosen_there: bool) -> None:
    """Refuse paths that start in this folder.

    Args:
        chosen_there: the job chooses the data sets, in place of those of the study.
    """
    unread: list[tuple[str, ...]] = [("base", "data", "path")] if source.data.get("datasets") or chosen_there else []
    if chosen_there:
        unread.append(("datasets",))
    problems = [
        f"{source.place(loc)[1]}: {'.'.join(map(str, loc))}: {value!r} is relative to this folder, which the job does not have. Give an "
        "absolute path that all nodes reach, or a URI (s3://…)."
        for loc, value in _leaves(source.data, ())
        if _is_of_this_folder(loc, value) and not any(loc[: len(place)] == place for place in unread)
    ]
    if problems:
        raise StudyError("\n".join(problems))


def _is_of_this_folder(loc: tuple[Key, ...], value: str) -> bool:
    """Whether a value of a study is a relative path. A field of the model may name a file: it does if there is such a file here."""
    if ":" in value or not value or Path(value).is_absolute():
        return False
    words = ".".join(key for key in loc if isinstance(key, str)).split(".")  # numbers are places in lists
    if ("data" in words or words[0] == "datasets") and any(name in words[-2:] for name in _DATA_FILES):
        return True
    if words[:2] == ["paper", "file"]:
        return value.endswith((".yaml", ".yml"))
    return "model" in words and ("/" in value or "." in value) and Path(value).expanduser().exists()


def _leaves(value: Any, loc: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*loc, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*loc, index))
    elif isinstance(value, str):
        yield loc, value
