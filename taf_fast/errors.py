"""Errors that the user can mend: the command line prints one as a single line, without a traceback.

Everything else that is raised is an error of the program, or of a package that it uses, and keeps its
traceback.
"""


class UserError(ValueError):
    """Something given to the program cannot work; the message names it and what was expected.

    ``known_to_all_ranks`` is set once every process of a run has been told of the error.
    """

    known_to_all_ranks = False


class RunError(UserError):
    """A value of a run, or the combination of several, cannot work."""


class DataError(UserError):
    """A data set cannot be used; the message names the file or clip at fault."""


class CheckpointError(UserError):
    """A file of weights cannot be read or does not fit; the message names the file."""


class ClassesError(CheckpointError):
    """A checkpoint was trained on other classes than those of the data set."""


class FileError(UserError, OSError):
    """A file cannot be written, or is in use; the message names it and the reason, as ``strerror`` does."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.strerror = reason

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.strerror)


class OutputError(UserError):
    """Nothing more can be printed, such as to a pipe whose reader has ended."""


class Stopped(UserError):
    """A signal asked to stop, before anything was done that a later run could go on from."""


class MissingDependency(UserError):
    """An optional package is not installed; the message says how to install it."""
