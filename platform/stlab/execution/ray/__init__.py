"""Ray: Tune starts worker groups, Train workers train. The only package that imports ray, apart from the client of its jobs."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported, and on a cluster that was started without them the workers are given them.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report of a Train worker waits for the controller's next look: 2 s by default
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # between two looks at whether a node is drained: 5 s by default, of a grace of 30
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # stlab handles Ctrl-C itself: it ends the study, what is trained stays
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages: page faults are a third of an ST-VLM step on a CPU
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from stlab.execution.ray.actor_lock import study_actor_lock
    from stlab.execution.ray.cluster import autoscaling_note, cluster_amounts, connection, slots, with_gpus
    from stlab.execution.ray.sweep import Listener, run_branches, run_packs

__all__ = [
    "Listener", "autoscaling_note", "cluster_amounts", "connection", "run_branches", "run_packs", "slots", "study_actor_lock", "with_gpus",
]  # fmt: skip
_HOME = dict.fromkeys(("autoscaling_note", "cluster_amounts", "connection", "slots", "with_gpus"), "cluster")
_HOME |= dict.fromkeys(("Listener", "run_packs", "run_branches"), "sweep")
_HOME["study_actor_lock"] = "actor_lock"


def __getattr__(name: str) -> Any:
    """Imported when used: a command that only asks after jobs needs neither Tune nor Train, which take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
