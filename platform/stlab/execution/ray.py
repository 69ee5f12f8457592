"""Ray: Tune schedules packs, Train workers train them. The sole importer of ray."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported. A report of a Train worker waits for the controller's next look: 2 s by default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: it ends the study, what is trained stays
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages: page faults are a third of an ST-VLM step on a CPU

import ray
import ray.train
import ray.tune
from ray.train.torch import TorchConfig, TorchTrainer

from stlab.errors import ResourceError
from stlab.execution.board import MAX_ATTEMPTS, Assignment, Board, Wait
from stlab.plan import Pack
from stlab.results import Store, TrialDirectory
from stlab.spec import ResourcesSpec, TrialSpec

if TYPE_CHECKING:
    from stlab.execution.search_board import SearchWork

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.3
_WAIT_SECONDS = 0.5  # between two questions of a worker group that has nothing to do
_STARTS = 4  # tries to start Ray on this machine
_WORKER_FAILURES = 10  # restarts of one worker group; a single trial is given up after MAX_ATTEMPTS

Listener = Callable[[list[dict[str, Any]]], None]


@contextlib.contextmanager
def connection(address: str | None) -> Iterator[None]:
    """A Ray cluster: the one at ``address`` or in RAY_ADDRESS, else one of this machine's own for the duration.

    Raises:
        ResourceError: there is no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options["include_dashboard"] = True  # it brings job submission; without it a sweep over Train can hang
    try:
        _start(address, options)
        yield
    finally:
        ray.shutdown()


def _start(address: str, options: Mapping[str, Any]) -> None:
    for attempt in range(_STARTS):
        try:
            ray.init(address=address, **options)
            return
        except (ConnectionError, ValueError) as error:
            raise ResourceError(
                f"no Ray cluster answers at {address}: {error}. Start one (ray start --head), or leave --address out."
            ) from error
        except Exception as error:
            # Ray gives its own processes 30 s, which is short on a busy machine, and says so with a bare Exception.
            if type(error) is not Exception:
                raise
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise ResourceError(
                    f"Ray did not start, {_STARTS} times over: {_last_line(error)} It gives itself 30 s: is the machine too busy? Try "
                    "again later, or give the --address of a cluster."
                ) from error
            logger.info("Ray did not start; once more: %s", error)


def with_gpus(resources: ResourcesSpec) -> ResourcesSpec:
    """``gpus`` decided: one a worker where the cluster has any (now or after scaling up), else none."""
    if resources.gpus is not None:
        return resources
    return resources.model_copy(update={"gpus": 1.0 if _reachable().get("GPU", 0) > 0 else 0.0})


def slots(resources: ResourcesSpec) -> int:
    """How many trials with these resources the cluster runs at once, now.

    Raises:
        ResourceError: not even one fits, nor would it after scaling up; names the resource.
    """
    worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    have, reach = ray.cluster_resources(), _reachable()
    for name, amount in worker.items():
        wanted = amount * resources.workers
        field = f"resources.{name.lower()}s"
        if reach.get(name, 0) < wanted:
            raise ResourceError(
                f"a trial asks for {wanted:g} {name} ({field}={amount:g} × resources.workers={resources.workers}); the cluster has "
                f"{have.get(name, 0):g} and can grow to {reach.get(name, 0):g}. Lower {field} or resources.workers, or add nodes."
            )
    largest = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    grows = any(reach.get(name, 0) > have.get(name, 0) for name in worker)
    if not grows and not any(all(node.get(name, 0) >= amount for name, amount in worker.items()) for node in largest):
        asked = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
        raise ResourceError(
            f"a worker asks for {asked}, and no single node has that. Lower resources.cpus or resources.gpus; a worker lives on one node."
        )
    return max(1, min(int(have.get(name, 0) // (amount * resources.workers)) for name, amount in worker.items()))


def _reachable() -> dict[str, float]:
    """What the cluster has, or what its autoscaler can bring it to."""
    have = dict(ray.cluster_resources())
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(have.get(name, 0), most.get(name, 0)) for name in have.keys() | most.keys()}


def run_packs(packs: Sequence[Pack], storage: str, study: str, test: bool, listen: Listener) -> list[str]:
    """Run packs to their end; every trial leaves its directory in ``storage``.

    Args:
        listen: called in a thread of its own with the events of :class:`~stlab.execution.board.Board`, in order.

    Returns:
        What went wrong outside of any trial, a line a pack.
    """
    groups = list(dict.fromkeys(pack.resources for pack in packs))
    board = ray.remote(num_cpus=0)(Board).remote(
        [[t.trial_id for t in pack.trials] for pack in packs], [groups.index(p.resources) for p in packs]
    )
    work = {
        group: {
            t.trial_id: (t.spec.model_copy(update={"resources": group}).model_dump(), t.identity)
            for pack in packs if pack.resources == group for t in pack.trials
        }
        for group in groups
    }  # fmt: skip
    jobs = [
        {
            "pack": number, "board": board, "storage": storage, "test": test, "work": work[pack.resources],
            "resources": pack.resources.model_dump(), "name": f"{study}-pack-{number}", "scratch": f"{storage}/.ray",
        }
        for number, pack in enumerate(packs)
    ]  # fmt: skip
    return _run(board, jobs, storage, study, listen)


def run_search(work: SearchWork, storage: str, listen: Listener) -> list[str]:
    """Run a search to its end, and measure what it selects; see :func:`run_packs`."""
    from stlab.execution.search_board import SearchBoard

    board = ray.remote(num_cpus=0)(SearchBoard).remote(Store(storage), work)
    jobs = [
        {
            "pack": number, "board": board, "storage": storage, "test": False, "work": {},
            "resources": resources.model_dump(), "name": f"{work.study.name}-pack-{number}", "scratch": f"{storage}/.ray",
        }
        for number, resources in enumerate(work.groups)
    ]  # fmt: skip
    return _run(board, jobs, storage, work.study.name, listen)


def _run(board: Any, jobs: Sequence[Mapping[str, Any]], storage: str, study: str, listen: Listener) -> list[str]:
    tuner = ray.tune.Tuner(
        # A trial that only drives a trainer must not take a CPU from it; every cluster has this sliver.
        ray.tune.with_resources(ray.tune.with_parameters(_drive, jobs=jobs), {"node:__internal_head__": 0.001}),
        param_space={"pack": ray.tune.grid_search(list(range(len(jobs))))},
        tune_config=ray.tune.TuneConfig(metric=None),
        run_config=ray.tune.RunConfig(name=f"{study}-packs", storage_path=f"{storage}/.ray", verbose=0),
    )
    # Tune prints a banner of its own, whatever its verbosity; what a study says, its observers say.
    with _listening(board, listen), contextlib.redirect_stdout(io.StringIO()):
        results = tuner.fit()
    return [f"pack {index}: {_last_line(error)}" for index, error in enumerate(results.errors)]


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


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
        _work,
        train_loop_config=dict(job),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu and resources.gpus and resources.gpus >= 1 else "gloo"),
        run_config=ray.train.RunConfig(
            name=job["name"],
            storage_path=job["scratch"],
            failure_config=ray.train.FailureConfig(max_failures=_WORKER_FAILURES),
        ),
    )
    trainer.fit()


def _work(job: Mapping[str, Any]) -> None:
    """A Train worker: take a trial, train it, take the next."""
    import torch

    from stlab.training import run_trial

    resources = ResourcesSpec(**job["resources"])
    # One thread more than cores is costly: the pools of several workers would fight over them.
    torch.set_num_threads(max(1, int(resources.cpus)))
    board, store = job["board"], Store(job["storage"])
    lead = ray.train.get_context().get_world_rank() == 0
    while (assignment := _take(board, job["pack"], lead)) is not None:
        if isinstance(assignment, Wait):
            time.sleep(_WAIT_SECONDS)
            continue
        if assignment.spec is None:
            spec, identity = job["work"][assignment.trial_id]
        else:
            spec, identity = assignment.spec, assignment.identity or {}
        directory = TrialDirectory(store, assignment.trial_id)

        def report(event: Mapping[str, Any], taken: Assignment = assignment) -> str | None:
            board.say.remote({**event, "trial_id": taken.trial_id})
            if not taken.prunable:
                return None
            stop: str | None = ray.get(board.report.remote(job["pack"], event["rows"]))
            return stop

        if assignment.attempt > MAX_ATTEMPTS:
            status = "failed"
            if lead:
                directory.write_failure(
                    {
                        "reason": f"its workers died {MAX_ATTEMPTS} times, out of memory perhaps; see the logs of Ray",
                        "log_tail": [],
                    }
                )
        else:
            test = job["test"] if assignment.spec is None else assignment.test
            trial = TrialSpec(**spec)
            status = run_trial(trial, identity, directory, test=test, report=report, prunable=assignment.prunable).value
        if lead:
            ray.get(board.end.remote(job["pack"], status))
    ray.train.report({"pack": job["pack"]})


def _take(board: Any, pack: int, lead: bool) -> Assignment | Wait | None:
    """The next trial, the same on every worker of the group."""
    import torch.distributed as dist

    box: list[Assignment | Wait | None] = [ray.get(board.take.remote(pack)) if lead else None]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
