"""A study's trials on the cluster: one Tune trial for each worker group, one Train run in it, and the queue that all groups ask."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.tune

from stlab.errors import StorageError
from stlab.execution.events import Event
from stlab.execution.queue import TrialQueue
from stlab.execution.ray.cluster import ON_THE_HEAD, last_line
from stlab.execution.ray.train_run import drive
from stlab.execution.ray.worker import WorkerGroup
from stlab.execution.supply import Emit, PackSupply, Supply
from stlab.storage import Store
from stlab.study.packs import Pack
from stlab.study.spec import ResourcesSpec

if TYPE_CHECKING:
    from stlab.execution.search_supply import SearchWork

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.3
_NO_NEWS_SECONDS = 10.0  # before the queue is asked again after it could not be reached

Listener = Callable[[Sequence[Event]], None]


def run_packs(packs: Sequence[Pack], storage: str, study: str, listen: Listener) -> list[str]:
    """Run packs to their end; every trial leaves its directory in ``storage``.

    Args:
        listen: called in a thread of its own with the events of the queue, in order.

    Returns:
        Errors outside of any trial, a line for each worker group that had one.
    """
    return _run(functools.partial(PackSupply, packs), [pack.resources for pack in packs], storage, study, listen)


def run_branches(work: SearchWork, storage: str, listen: Listener) -> list[str]:
    """Run the branches of a search to their end, and measure what they select; see :func:`run_packs`."""
    from stlab.execution.search_supply import SearchSupply

    return _run(functools.partial(SearchSupply, Store(storage), work), work.groups, storage, work.study.name, listen)


def _run(
    make_supply: Callable[[Emit], Supply], groups: Sequence[ResourcesSpec], storage: str, study: str, listen: Listener
) -> list[str]:
    """Start the queue and a worker group for each of ``groups``, and wait for their end."""
    # On the head, so that no other node takes it down.
    queue: Any = ray.remote(num_cpus=0, resources=ON_THE_HEAD)(TrialQueue).remote(make_supply)
    scratch = _scratch(storage)
    worker_groups = [
        WorkerGroup(number, resources, queue, storage, name=f"{study}-pack-{number}", scratch=scratch)
        for number, resources in enumerate(groups)
    ]
    tuner = ray.tune.Tuner(
        # A Tune trial only drives a trainer and must not take a CPU from it; every cluster has this sliver.
        ray.tune.with_resources(ray.tune.with_parameters(drive, groups=worker_groups), ON_THE_HEAD),
        param_space={"group": ray.tune.grid_search(list(range(len(worker_groups))))},
        tune_config=ray.tune.TuneConfig(metric=None),
        run_config=ray.tune.RunConfig(name=f"{study}-packs", storage_path=scratch, verbose=0),
    )
    # Tune prints a banner of its own, whatever its verbosity; the observers show how the study goes.
    with _listening(queue, listen), contextlib.redirect_stdout(io.StringIO()):
        results = tuner.fit()
    if (reason := ray.get(queue.halted.remote())) is not None:
        raise StorageError(f"the study ended before its time: {reason}")
    errors = {group: results[group].error for group in range(len(results))}
    return [f"worker group {group}: {last_line(error)}" for group, error in errors.items() if error is not None]


def _scratch(storage: str) -> str:
    """The folder for Ray's own records, which nobody reads again: this machine's disk where the results go to an object store."""
    store = Store(storage)
    if store.is_local:
        return store.path(".ray")
    return str(Path(tempfile.gettempdir(), "stlab-ray", hashlib.sha256(storage.encode()).hexdigest()[:12]))


@contextlib.contextmanager
def _listening(queue: Any, listen: Listener) -> Iterator[None]:
    """Pass the queue's events on until the block ends, and then those that are left."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            try:
                listen(ray.get(queue.drain.remote()))
            except ray.exceptions.ActorDiedError as error:
                logger.warning("no more news from the workers: %s", error)
                return
            except ray.exceptions.RayError as error:
                logger.warning("no news from the workers for now: %s", error)
                stop.wait(_NO_NEWS_SECONDS)

    thread = threading.Thread(target=poll, name="stlab-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    listen(ray.get(queue.drain.remote()))
