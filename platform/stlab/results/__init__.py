"""What a study leaves behind: trial directories, study directories, and the Parquet schemas of both.

The package is callable, ``stlab.results("runs", "demo")``: that is :func:`stlab.api.results`, whose name it shares.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from stlab.results.selection import best_trial, outcome, table_rows
from stlab.results.store import Store
from stlab.results.study_directory import StudyDirectory, single_protocol
from stlab.results.trial_directory import TrialDirectory, TrialStatus

if TYPE_CHECKING:
    from stlab.api import Results

__all__ = ["Store", "StudyDirectory", "TrialDirectory", "TrialStatus", "best_trial", "outcome", "single_protocol", "table_rows"]


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Results:
        import importlib

        found: Results = importlib.import_module("stlab.api").results(*args, **kwargs)
        return found


sys.modules[__name__].__class__ = _Callable
