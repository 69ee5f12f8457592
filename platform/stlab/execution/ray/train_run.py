"""The Train run of one worker group, in the process of the Tune trial that it belongs to.

Every group starts these processes, each of which takes seconds; so what is not needed is left out, and torch is not imported here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from stlab.execution.ray.process_group import ProcessGroupConfig
from stlab.execution.ray.worker import WorkerGroup, train_trials
from stlab.execution.ray.worker_failure import WorkerFailures

_ADMISSION_SECONDS = 1.0  # between two questions of a worker group that the study's quota keeps out
_PATIENCE_SECONDS = 6 * 3600  # a worker waits so long for the others: the first alone measures the test segment
_NO_LIMIT = -1  # of restarts: the queue counts them, for each trial


# Ray's data sets are not used. The cleaner is a process for each group that outlives a killed driver for good: it asks to end in a thread
# from which Ray lets no actor end. What it would free, if the Tune trial died alone, is free when the study ends.
_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """A trainer that controls its workers itself, where Ray's starts a process for it, and starts no process that is not needed."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, _LEFT_OUT)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        async def run() -> Any:
            controller = TrainController(**arguments)
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())


def drive(config: Mapping[str, Any], groups: Sequence[WorkerGroup]) -> None:
    """A Tune trial: the Train run of one worker group, once the queue lets it in."""
    group = groups[config["group"]]
    resources = group.resources
    use_gpu = bool(resources.gpus)
    trainer = _Trainer(
        train_trials,
        train_loop_config={"group": group},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if use_gpu else {})},
        ),
        # NCCL takes no two workers on one GPU.
        backend_config=ProcessGroupConfig("nccl" if use_gpu and resources.gpus and resources.gpus >= 1 else "gloo", _PATIENCE_SECONDS),
        run_config=ray.train.RunConfig(
            name=group.name,
            storage_path=group.scratch,
            failure_config=ray.train.FailureConfig(max_failures=_NO_LIMIT),
            callbacks=[WorkerFailures(group.queue, group.number)],  # type: ignore[list-item]  # Ray names the old Train's class
        ),
    )
    while not ray.get(group.queue.admit.remote(group.number)):
        time.sleep(_ADMISSION_SECONDS)
    try:
        trainer.fit()
    finally:
        ray.get(group.queue.leave.remote(group.number))
