"""A study's trials on the cluster: one Tune trial a worker group, one Train run in it, and the board that they all ask."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.tune
from ray.train.torch import TorchTrainer

from stlab.errors import StorageError
from stlab.execution.queue import Board
from stlab.execution.ray.cluster import ON_THE_HEAD, last_line
from stlab.execution.ray.process_group import StudyTorchConfig
from stlab.execution.ray.worker import work_off
from stlab.execution.ray.worker_failure import Falls
from stlab.storage import Store
from stlab.study.plan import Pack
from stlab.study.spec import ResourcesSpec

if TYPE_CHECKING:
    from stlab.execution.search_queue import SearchWork

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.3
_ADMISSION_SECONDS = 1.0  # between two questions of a worker group that the study's quota keeps out
_PATIENCE_SECONDS = 6 * 3600  # of a worker for the others: the first alone measures the test segment, and they wait for it
_NO_LIMIT = -1  # of restarts: the board counts them, a trial at a time

Listener = Callable[[list[dict[str, Any]]], None]


def run_packs(packs: Sequence[Pack], storage: str, study: str, test: bool, listen: Listener) -> list[str]:
    """Run packs to their end; every trial leaves its directory in ``storage``.

    Args:
        listen: called in a thread of its own with the events of :class:`~stlab.execution.queue.Board`, in order.

    Returns:
        What went wrong outside of any trial, a line a pack.
    """
    groups = list(dict.fromkeys(pack.resources for pack in packs))
    board = _on_the_head(Board).remote([[t.trial_id for t in pack.trials] for pack in packs], [p.resources for p in packs])
    work = {
        group: {
            t.trial_id: (t.spec.model_copy(update={"resources": group}).model_dump(), t.identity)
            for pack in packs if pack.resources == group for t in pack.trials
        }
        for group in groups
    }  # fmt: skip
    given = [(pack.resources, work[pack.resources]) for pack in packs]
    return _run(board, given, storage, study, test, listen)


def run_search(work: SearchWork, storage: str, listen: Listener) -> list[str]:
    """Run a search to its end, and measure what it selects; see :func:`run_packs`."""
    from stlab.execution.search_queue import SearchBoard

    board = _on_the_head(SearchBoard).remote(Store(storage), work)
    return _run(board, [(resources, {}) for resources in work.groups], storage, work.study.name, False, listen)


def _on_the_head(board: type) -> Any:
    """A board as an actor that no other node takes down with it."""
    return ray.remote(num_cpus=0, resources=ON_THE_HEAD)(board)


def _scratch(storage: str) -> str:
    """Where Ray keeps records of its own, which nobody reads again: this machine's disk where the results go to an object store."""
    store = Store(storage)
    if store.is_local:
        return store.path(".ray")
    return str(Path(tempfile.gettempdir(), "stlab-ray", hashlib.sha256(storage.encode()).hexdigest()[:12]))


def _run(
    board: Any, groups: Sequence[tuple[ResourcesSpec, Mapping[str, Any]]], storage: str, study: str, test: bool, listen: Listener
) -> list[str]:
    """Start worker groups, each with its resources and the trials that it may be given, and wait for their end."""
    scratch = _scratch(storage)
    jobs = [
        {
            "pack": number, "board": board, "storage": storage, "test": test, "work": work,
            "resources": resources.model_dump(), "name": f"{study}-pack-{number}", "scratch": scratch,
        }
        for number, (resources, work) in enumerate(groups)
    ]  # fmt: skip
    tuner = ray.tune.Tuner(
        # A trial that only drives a trainer must not take a CPU from it; every cluster has this sliver.
        ray.tune.with_resources(ray.tune.with_parameters(_drive, jobs=jobs), ON_THE_HEAD),
        param_space={"pack": ray.tune.grid_search(list(range(len(jobs))))},
        tune_config=ray.tune.TuneConfig(metric=None),
        run_config=ray.tune.RunConfig(name=f"{study}-packs", storage_path=scratch, verbose=0),
    )
    # Tune prints a banner of its own, whatever its verbosity; what a study says, its observers say.
    with _listening(board, listen), contextlib.redirect_stdout(io.StringIO()):
        results = tuner.fit()
    if (reason := ray.get(board.halted.remote())) is not None:
        raise StorageError(f"the study ended before its time: {reason}")
    return [f"pack {index}: {last_line(error)}" for index, error in enumerate(results.errors)]


@contextlib.contextmanager
def _listening(board: Any, listen: Listener) -> Iterator[None]:
    """Pass the board's events on until the block ends, and then what is left of them."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            try:
                listen(ray.get(board.hear.remote()))
            except ray.exceptions.RayError as error:
                logger.warning("no news from the workers: %s", error)
                return

    thread = threading.Thread(target=poll, name="stlab-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    listen(ray.get(board.hear.remote()))


def _drive(config: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> None:
    """A Tune trial: one Train run that works off a pack."""
    job = jobs[config["pack"]]
    resources = ResourcesSpec(**job["resources"])
    use_gpu = bool(resources.gpus)
    trainer = TorchTrainer(
        work_off,
        train_loop_config=dict(job),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if use_gpu else {})},
        ),
        torch_config=StudyTorchConfig(
            backend="nccl" if use_gpu and resources.gpus and resources.gpus >= 1 else "gloo", timeout_s=_PATIENCE_SECONDS
        ),
        run_config=ray.train.RunConfig(
            name=job["name"],
            storage_path=job["scratch"],
            failure_config=ray.train.FailureConfig(max_failures=_NO_LIMIT),
            callbacks=[Falls(job["board"], job["pack"])],  # type: ignore[list-item]  # Ray names the old Train's class
        ),
    )
    while not ray.get(job["board"].admit.remote(job["pack"])):
        time.sleep(_ADMISSION_SECONDS)
    try:
        trainer.fit()
    finally:
        ray.get(job["board"].leave.remote(job["pack"]))
