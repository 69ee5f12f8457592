"""The files of a study: trial directories, study directories, and the Parquet schemas of both."""

from __future__ import annotations

from stlab.storage.rows import best_trial, outcome, single_protocol, table_rows
from stlab.storage.store import Store
from stlab.storage.study_directory import StudyDirectory
from stlab.storage.trial_directory import TrialDirectory, TrialStatus

__all__ = ["Store", "StudyDirectory", "TrialDirectory", "TrialStatus", "best_trial", "outcome", "single_protocol", "table_rows"]
