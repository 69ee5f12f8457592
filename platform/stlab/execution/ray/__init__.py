"""Ray: Tune schedules packs, Train workers train them. The only package that imports ray."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported. A report of a Train worker waits for the controller's next look: 2 s by default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: it ends the study, what is trained stays
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages: page faults are a third of an ST-VLM step on a CPU

if TYPE_CHECKING:
    from stlab.execution.ray.cluster import connection, slots, with_gpus
    from stlab.execution.ray.sweep import Listener, run_packs, run_search

__all__ = ["Listener", "connection", "run_packs", "run_search", "slots", "with_gpus"]
_HOME = dict.fromkeys(("connection", "slots", "with_gpus"), "cluster") | dict.fromkeys(("Listener", "run_packs", "run_search"), "sweep")


def __getattr__(name: str) -> Any:
    """Imported when used: a command that only asks after jobs needs neither Tune nor Train, which take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
