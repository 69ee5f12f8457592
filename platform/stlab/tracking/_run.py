"""One MLflow run and its known content; everything is logged once."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlab.storage import Store
from stlab.tracking._rows import EPOCH_MARKER, epoch_metrics

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

# MLflow's limits for one log_batch.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100


class Run:
    """A run that remembers its tags, parameters, metrics and epochs, so that nothing is requested or logged twice."""

    def __init__(self, client: MlflowClient, run: MlflowRun, is_new: bool = False) -> None:
        self._client = client
        self.id: str = run.info.run_id
        self.start_time: int = run.info.start_time  # ms since 1970
        self.status: str = run.info.status
        self.tags: dict[str, str] = dict(run.data.tags)
        self._params: set[str] = set(run.data.params)
        self._metrics: dict[str, float] = dict(run.data.metrics)
        self._epochs: dict[int, int] | None = {} if is_new else None  # epoch → timestamp; None: not asked yet

    def log(self, tags: Mapping[str, str] | None = None, params: Mapping[str, str] | None = None,
            metrics: Mapping[str, float] | None = None) -> None:
        """Log everything that the run does not have yet, in one round trip. A parameter keeps its first value.

        A metric's first value has the time of the run's start, so that the server recognises it if it is sent again after a lost answer.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = time.time_ns() // 1_000_000
        new_tags = {key: value for key, value in (tags or {}).items() if self.tags.get(key) != value}
        new_params = {key: value for key, value in (params or {}).items() if key not in self._params}
        new_metrics = {key: value for key, value in (metrics or {}).items() if not self._has(key, value)}
        param_list = [Param(key, value) for key, value in new_params.items()]
        if not (new_tags or new_params or new_metrics):
            return
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in new_tags.items()],
                               metrics=[Metric(key, value, now if key in self._metrics else self.start_time, 0)
                                        for key, value in new_metrics.items()],
                               params=param_list[:_PARAMS_PER_BATCH])
        for first in range(_PARAMS_PER_BATCH, len(param_list), _PARAMS_PER_BATCH):
            self._client.log_batch(self.id, params=param_list[first : first + _PARAMS_PER_BATCH])
        self.tags |= new_tags
        self._params |= set(new_params)
        self._metrics |= new_metrics

    def _has(self, name: str, value: float) -> bool:
        known = self._metrics.get(name)
        return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))

    def log_epochs(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Log the epochs that the run does not have, with step = epoch and time = the epoch's end.

        Returns:
            The number of epochs that were logged.
        """
        from mlflow.entities import Metric

        logged = self._logged_epochs()
        missing = sorted((row for row in rows if row["epoch"] not in logged), key=lambda row: row["epoch"])
        stamps: dict[int, int] = {}
        batches: list[list[Metric]] = [[]]
        for row in missing:
            epoch = int(row["epoch"])
            # An epoch always has the same time, so that the server recognises it if it is sent again after a lost answer.
            before = max((stamp for done, stamp in (logged | stamps).items() if done < epoch), default=self.start_time)
            stamps[epoch] = before + round(1000 * (row.get("seconds") or 0))
            metrics = [Metric(name, value, stamps[epoch], epoch) for name, value in epoch_metrics(row).items()]
            if len(batches[-1]) + len(metrics) > _METRICS_PER_BATCH:  # an epoch is never split between batches
                batches.append([])
            batches[-1].extend(metrics)
        for batch in batches:
            if batch:
                self._client.log_batch(self.id, metrics=batch)
                self._metrics |= {metric.key: metric.value for metric in batch}
        logged |= stamps
        return len(missing)

    def _logged_epochs(self) -> dict[int, int]:
        if self._epochs is None:
            history = self._client.get_metric_history(self.id, EPOCH_MARKER) if EPOCH_MARKER in self._metrics else []
            self._epochs = {metric.step: metric.timestamp for metric in history if metric.step > 0}
        return self._epochs

    def log_files(self, store: Store, folder: str, names: list[str], artifact_path: str | None = None) -> None:
        """Copy files of a folder of the store. JSON is copied each time, other files if MLflow has none of the same size."""
        sizes = {Path(info.path).name: info.file_size for info in self._client.list_artifacts(self.id, artifact_path)}
        for name in names:
            with _local(store, f"{folder}/{name}") as path:
                if path.suffix == ".json" or sizes.get(name) != path.stat().st_size:
                    self._client.log_artifact(self.id, str(path), artifact_path)

    def reopen(self) -> None:
        if self.status != "RUNNING":
            self._client.update_run(self.id, status="RUNNING")
            self.status = "RUNNING"

    def end(self, status: str, seconds: float | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, ``seconds`` after its start, or now if they are None."""
        if self.status != status:
            end_time = None if seconds is None else self.start_time + round(1000 * seconds)
            self._client.set_terminated(self.id, status=status, end_time=end_time)
            self.status = status


@contextlib.contextmanager
def _local(store: Store, relative: str) -> Iterator[Path]:
    """A file of the store as a local path; a file of a remote store is downloaded temporarily."""
    if store.is_local:
        yield Path(store.path(relative))
        return
    with tempfile.TemporaryDirectory(prefix="stlab-") as folder:
        path = Path(folder) / relative.rpartition("/")[2]
        path.write_bytes(store.read(relative))
        yield path


def files_below(store: Store, folder: str) -> Iterator[tuple[str, list[str]]]:
    """All folders below ``folder``, relative to it, with the files in each. A name with a suffix is taken for a file."""
    pending = [""]
    while pending:
        below = pending.pop()
        names = store.names(f"{folder}/{below}".rstrip("/"))
        yield below, [name for name in names if Path(name).suffix]
        pending += [f"{below}/{name}".lstrip("/") for name in names if not Path(name).suffix]
