"""What a study leaves behind: trial directories, study directories, and the Parquet schemas of both."""

from stlab.results.store import Store
from stlab.results.study_directory import StudyDirectory, single_protocol
from stlab.results.trial_directory import TrialDirectory, TrialStatus

__all__ = ["Store", "StudyDirectory", "TrialDirectory", "TrialStatus", "single_protocol"]
