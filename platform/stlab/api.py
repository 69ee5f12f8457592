"""Studies from Python: run a study, read its results, and load a trained model. The package ``stlab`` exports these names.

    import stlab

    done = stlab.run("demo", storage="runs", overrides={"seeds": [0, 1]})
    done.table()                                     # the ablation table, pandas
    done.figures()["learning_curves"]                # the report's figures, matplotlib
    model = stlab.load_model("runs", done.best["trial_id"])
    model.predict(history)                           # in the unit of the data
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stlab.errors import UserError
from stlab.model_files import place_of
from stlab.storage import Store, StudyDirectory, TrialDirectory, best_trial
from stlab.study.dataset_files import chosen_datasets
from stlab.study.file import dump_study, load_study_source, parse
from stlab.study.model_places import with_models
from stlab.study.source import StudySource
from stlab.study.spec import StudySpec
from stlab.study.yaml import write_yaml

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure
    from rich.console import Console

    from stlab.execution.run_study import Outcome
    from stlab.inference import TrainedForecaster
    from stlab.report.predictions import Predictions

logger = logging.getLogger(__name__)

Study = str | Path | Mapping[str, Any] | StudySpec


def run(
    study: Study,
    storage: str | Path = "runs",
    *,
    overrides: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    tracking: bool = True,
    tracking_uri: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Results:
    """Run the trials of a study that are left to do, as ``stlab run`` does, and wait for them.

    Args:
        study: the name of a shipped study, the path of a study file, a mapping of the same fields, or a ``StudySpec``. In a mapping, the
            name of a model may be the class of its configuration.
        storage: a folder, or a URI such as ``s3://bucket/runs``.
        overrides: dotted path → value, as with ``--set``: ``{"train.lr": 1e-3, "seeds": [0, 1]}``.
        datasets: files, patterns of files, or names of the study's own entries, as with ``--datasets``: every variant is run on each.
        tracking: keep MLflow up to date.
        tracking_uri: address of MLflow. Default: SQLite in a local storage; with a remote storage there is no default.
        progress: show the progress on the terminal.
        **options: further arguments of ``stlab.execution.run_study.run_study``: ``address``, ``retry_failed``,
            ``skip_bad_datasets``.

    Returns:
        The results of the study. A failed trial is a row with ``status`` failed, and a warning in the log.

    Raises:
        UserError: the study, its data, weights or resources, or the URI of MLflow cannot be used; nothing was trained.
        StorageError: the storage is full or away; what is trained stays, and the same call goes on from there.
    """
    source = _source(study, overrides or {})
    if datasets:
        chosen = chosen_datasets(datasets, source.data.get("datasets") or {})
        source = _source(study, {**(overrides or {}), "datasets": chosen})
    spec = parse(source)
    store = Store(storage)
    console = None
    if progress:
        from rich.console import Console

        console = Console(emoji=False)
    done = run_observed(spec, source, store, console, tracking=tracking, tracking_uri=tracking_uri, **options)
    for row in done.outcome.ended_as("failed", "missing"):
        variant = f"{row['dataset']}: {row['variant']}" if spec.datasets else row["variant"]
        logger.warning("%s, seed %s (%s): %s", variant, row["seed"], row["trial_id"], row.get("error") or row["status"])
    for trouble in done.outcome.troubles:
        logger.warning("%s", trouble)
    if done.tracking_failure:
        logger.warning("MLflow is behind: %s Later: stlab sync %s --storage %s", done.tracking_failure, spec.name, store.location)
    return Results(store, spec.name)


@dataclass(frozen=True)
class ObservedRun:
    """A run that has ended, and how far MLflow followed it."""

    outcome: Outcome
    tracking_uri: str | None
    """The URI of MLflow; None where the run was not tracked."""
    tracking_failure: str | None
    """Why MLflow is behind, where it is."""


def run_observed(
    spec: StudySpec,
    source: StudySource,
    store: Store,
    console: Console | None,
    *,
    tracking: bool = True,
    tracking_uri: str | None = None,
    **options: Any,
) -> ObservedRun:
    """Run a study with its observers: the progress on ``console``, if there is one, and MLflow, as :func:`run` and ``stlab run`` do.

    Raises:
        UserError, StorageError, KeyboardInterrupt: as ``run_study``. After any error MLflow shows the study as interrupted.
    """
    from stlab.execution.progress import TerminalProgress
    from stlab.execution.run_study import run_study
    from stlab.execution.tracking_observer import TrackingObserver
    from stlab.tracking import default_uri

    uri = (tracking_uri or default_uri(store)) if tracking else None
    progress = TerminalProgress(console) if console is not None else None
    tracker = TrackingObserver(uri, store, spec.name) if uri else None
    observers = [observer for observer in (progress, tracker) if observer is not None]
    try:
        with contextlib.ExitStack() as display:
            if progress:
                display.callback(progress.stop)  # before anything else is printed
            outcome = run_study(spec, store.location, source=source, observers=observers, **options)
    except BaseException:
        if tracker:
            tracker.interrupt()
        raise
    return ObservedRun(outcome, uri, tracker.failure if tracker else None)


def results(storage: str | Path, study: str | None = None) -> Results:
    """The results of a study so far, read from its directories.

    Args:
        storage: a folder or URI; or the folder of the study itself, ``<storage>/studies/<name>``, without ``study``.
        study: the name of the study. It may be omitted if the storage holds a single study.

    Raises:
        UserError: there is no such study, or it has not been run.
    """
    location = str(storage).rstrip("/")
    parent, found, name = location.rpartition("/studies/")
    if study is None and found and "/" not in name:
        location, study = parent, name
    store = Store(location)
    if study is None:
        names = store.names("studies")
        if len(names) != 1:
            raise UserError(f"{location} holds {', '.join(names) or 'no studies'}: name one, results(storage, study).")
        study = names[0]
    return Results(store, study)


def load_model(storage: str | Path, trial_id: str, device: str = "cpu") -> TrainedForecaster:
    """The selected checkpoint of a finished trial. Its ``predict(history)`` returns forecasts in the unit of the data.

    Args:
        storage: a folder or URI.
        trial_id: as in the column ``trial_id`` of a study's trials.
        device: the device that computes, e.g. ``cuda``.

    Raises:
        UserError: there is no such trial, it is not finished, its data is missing or has changed, or its frozen weights are not
            available.
    """
    from stlab.inference import load_trial

    return load_trial(Store(storage), trial_id, device)


class Results:
    """The results of a study, which are read from its directories on access.

    Args:
        store: the storage, or its location.
        name: the name of the study.

    Raises:
        UserError: the study has not been run.
    """

    def __init__(self, store: Store | str | Path, name: str) -> None:
        self._store = store if isinstance(store, Store) else Store(store)
        self._directory = StudyDirectory(self._store, name)
        self.name = name
        self._directory.read_trials()

    def __repr__(self) -> str:
        rows = [row for row in self.arrow.to_pylist() if not row["baseline"]]
        done = sum(row["status"] == "finished" for row in rows)
        return f"<stlab.Results {self.name} in {self.storage}: {done} of {len(rows)} trials finished>"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False, float_format="{:.4g}".format, na_rep="–"))

    @property
    def storage(self) -> str:
        """The location of the storage."""
        return self._store.location

    @property
    def arrow(self) -> pa.Table:
        """``trials.parquet``: one row per trial, including baselines. The metadata of each field gives its unit and meaning."""
        return self._directory.read_trials()

    @property
    def trials(self) -> pd.DataFrame:
        """The same table in pandas."""
        return self.arrow.to_pandas()

    @property
    def best(self) -> pd.Series[Any]:
        """The row of the trial with the lowest validation error, baselines excluded.

        Raises:
            UserError: no trial has finished, or the study has several data sets, whose errors cannot be compared.
        """
        if names := list((self._study() or {}).get("datasets") or {}):
            raise UserError(f"{self.name} has several data sets, each with a best trial: best_on({names[0]!r}), … ({', '.join(names)}).")
        return self._best(self.arrow.to_pylist())

    def best_on(self, dataset: str) -> pd.Series[Any]:
        """The row of the trial with the lowest validation error on one of several data sets, baselines excluded.

        Raises:
            UserError: no trial on it has finished, or there is no such data set.
        """
        return self._best([row for row in self.arrow.to_pylist() if row["dataset"] == dataset], f" on {dataset}")

    def _best(self, rows: Sequence[Mapping[str, Any]], where: str = "") -> pd.Series[Any]:
        row = best_trial(rows)
        if row is None:
            raise UserError(f"no trial of {self.name}{where} has finished yet.")
        trials = self.trials
        return trials[trials["trial_id"] == row["trial_id"]].iloc[0]

    def table(self) -> pd.DataFrame:
        """The ablation table: one row per variant and axis values, then the baselines, with means, 95 % intervals and deviations.

        Of a study on several data sets, the tables stand one below the other, with a column ``dataset``.

        Raises:
            ProtocolMismatch: the trials on one data set were made by different protocols.
        """
        import pandas as pd

        from stlab.report import ablation_table, across_datasets, compare

        rows, axes, study = self.arrow.to_pylist(), self._axes(), self._study() or {}
        if not study.get("datasets"):
            return ablation_table(rows, axes, compare(rows, axes, study or None, self._store))
        found, tables = across_datasets(rows, axes, study, self._store), []
        for name in found.datasets:
            table = ablation_table(found.rows[name], axes, found.compared[name])
            table.insert(0, "dataset", name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def across_datasets(self) -> pd.DataFrame:
        """Models down, data sets across: mean test errors, mean ranks, and errors relative to the reference's.

        Raises:
            ProtocolMismatch: the trials on one data set were made by different protocols.
        """
        from stlab.report import across_datasets, across_frame

        return across_frame(across_datasets(self.arrow.to_pylist(), self._axes(), self._study() or {}, self._store))

    def epochs(self) -> pd.DataFrame:
        """One row per epoch of every trial, including running ones: ``variant``, ``seed``, ``trial_id``, then the values of the epoch."""
        import pandas as pd

        parts, several = [], bool((self._study() or {}).get("datasets"))
        for row in self.arrow.to_pylist():
            epochs = TrialDirectory(self._store, row["trial_id"]).read_epochs()
            if epochs:
                told = {f"param.{axis}": row.get(f"param.{axis}") for axis in self._axes() or ()}
                told |= {"dataset": row["dataset"]} if several else {}
                parts.append(pd.DataFrame(epochs).assign(trial_id=row["trial_id"], variant=row["variant"], seed=row["seed"], **told))
        if not parts:
            return pd.DataFrame(columns=["variant", "seed", "trial_id", "epoch"])
        whole = pd.concat(parts, ignore_index=True)
        first = ["variant", "seed", "trial_id"]
        return whole[[*first, *(name for name in whole.columns if name not in first)]]

    def predictions(self, trial_id: str) -> Predictions:
        """Truth and forecast of the test windows as arrays, (windows, Q, *S), in the unit of the data; NaN where there is no reading.

        Raises:
            UserError: the trial has not been measured on the test segment.
        """
        from stlab.report.predictions import read_predictions

        found = read_predictions(self._store, trial_id)
        if found is None:
            raise UserError(f"trial {trial_id} has no forecasts in {self.storage}: it has not been measured on the test segment.")
        return found

    def figures(self, beside: Sequence[str] = ()) -> dict[str, Figure]:
        """The report's figures by name.

        Args:
            beside: other studies of the storage. The figures are then those of the joint page, with one panel per data set along an axis.

        Raises:
            UserError: a study was not run, or appears twice.
            ProtocolMismatch: the trials were made by different protocols.
        """
        from stlab.report import joint_figures, report_figures

        return joint_figures(self._store, [self.name, *beside]) if beside else report_figures(self._store, self.name)

    @property
    def report_path(self) -> str:
        """Path or URI of the report's page.

        Raises:
            UserError: there is no report yet.
        """
        relative = self._directory.report_path()
        if not self._store.exists(relative):
            raise UserError(f"{self.name} has no report yet: stlab report {self.name} --storage {self.storage}")
        return self._store.address(relative)

    def load_model(self, trial_id: str | None = None, device: str = "cpu") -> TrainedForecaster:
        """The model of a trial, by default the best one; see :func:`load_model`."""
        from stlab.inference import load_trial

        return load_trial(self._store, trial_id or str(self.best["trial_id"]), device)

    def _study(self) -> dict[str, Any] | None:
        """The resolved study. None if its file was not kept."""
        text = self._directory.read_study()
        return None if text is None else dict(yaml.safe_load(text) or {})

    def _axes(self) -> list[str] | None:
        """The axes of the study. None if its file was not kept."""
        study = self._study()
        return None if study is None else list(study.get("axes") or {})


def _source(study: Study, overrides: Mapping[str, Any]) -> StudySource:
    given: Sequence[str] = [f"{path}={json.dumps(value, ensure_ascii=False, default=str)}" for path, value in overrides.items()]
    if isinstance(study, StudySpec):
        return StudySource.from_text(dump_study(study), "<StudySpec>", given)
    if isinstance(study, Mapping):
        named = with_models(study, lambda name: place_of(name) if isinstance(name, type) else name)
        return StudySource.from_text(write_yaml(named), "<mapping>", given)
    return load_study_source(str(study), given)
