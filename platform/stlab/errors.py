"""One family of errors that a user can correct. The command line prints them once and exits with code 2."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UserError(Exception):
    """An input of the user cannot be used. The message gives the place, the reason and the remedy."""

    exit_code = 2


class StudyError(UserError):
    """Unknown or wrong fields in a study file or an override. The message gives their place and the allowed values."""


class DataError(UserError):
    """A data file cannot be used. The message names the file, the array, the index and the remedy."""


class ModelError(UserError):
    """A model cannot be built: its configuration does not fit the data, or its weights are not available."""


class ResourceError(UserError):
    """A study needs more resources than the cluster has or its autoscaler can add."""


class StorageError(UserError):
    """A storage cannot be read or written."""


class ProtocolMismatch(UserError):
    """The rows of a table have different protocols. The message names the field that differs."""


class TrialFailed(Exception):
    """One trial ended without a result; the study goes on with the rest."""


class NeedsSmallerBatches(Exception):
    """One of several workers ran out of memory. The division is written down; all workers have to start anew with it."""


class PeerLost(Exception):
    """Another worker of the group is gone. The trial is not at fault; whoever started the workers knows why that one ended."""


class FailedHere(Exception):
    """The trial failed on one of several workers, which is written down. The others wait for it, so all have to start anew."""
