"""Errors whose message is one sentence for the user, as opposed to bugs.

Every error class of this project is one. An error of a class of Python or of a library is a bug or a broken
machine, and is shown with its traceback.
"""

PACKAGES = ("operators", "pipeline", "experiments")
"""Packages whose own error classes are refusals."""


def is_user_error(error: BaseException) -> bool:
    """Return whether an error's message is meant for the user; the same attempt would fail again."""
    return type(error).__module__.partition(".")[0] in PACKAGES


def written_by_old_version(what: str) -> str:
    """Return the sentence that refuses a study folder, rows or a rule of version 0.1.0.

    Args:
        what: the thing that is refused, as the subject of the sentence.
    """
    return f"{what} was written by Biaswise 0.1.0; read it with that version (commit da22db2)"


class TrialError(RuntimeError):
    """A trial that cannot start or go on; the message says what, why and what to do."""


class DivergedError(TrialError):
    """A loss or a gradient is not finite, on all ranks."""


class TrialMemoryError(TrialError):
    """Memory of the device or the host ran out; a smaller cohort or batch may fit."""
