"""One family of errors for what a user can mend: rendered once, by the command line, with exit code 2."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something; its type's name where none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UserError(Exception):
    """Something the user gave cannot be used. The message says what is wrong, where, and what to do."""

    exit_code = 2


class StudyError(UserError):
    """A study file or an override of it: unknown or wrong fields, with their place and what was allowed."""


class DataError(UserError):
    """A data file: names the file, the array, the index and the remedy."""


class ModelError(UserError):
    """A model that cannot be built as asked: a configuration that does not fit the data, weights that cannot be had."""


class ResourceError(UserError):
    """More resources were asked for than the cluster has or its autoscaler can bring."""


class StorageError(UserError):
    """A storage path that cannot be read or written."""


class ProtocolMismatch(UserError):
    """Rows of different protocols were to be put into one table; names the field that differs."""


class TrialFailed(Exception):
    """One trial ended without a result; the study goes on with the rest."""
