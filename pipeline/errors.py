"""Errors whose message is one sentence for the user, told apart from bugs.

Every error class of this project is one; whatever Python or a library raises by itself is a bug or
a broken machine, and deserves its traceback.
"""

PACKAGES = ("operators", "pipeline", "experiments")
"""Packages whose own error classes are refusals."""


def is_user_error(error: BaseException) -> bool:
    """Tell whether an error's message is meant for the user and the same attempt would fail again."""
    return type(error).__module__.partition(".")[0] in PACKAGES


class TrialError(RuntimeError):
    """A trial that cannot start or go on; the message says what, why and what to do."""
