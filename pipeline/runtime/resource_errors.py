"""Explains memory or disk that ran out in one sentence, instead of a library's traceback.

Running out of memory is a refusal, because the same attempt would fail again. A full disk is one too: the
checkpoints are there, and the same command continues from them when there is space.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError, TrialMemoryError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""No space left on the device; the user's quota is used up."""

_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # CUDA, where it does not raise torch's own class
    "std::bad_alloc",
    "Insufficient memory",  # OpenCV
    "Cannot allocate memory",  # the operating system
)
_DISK = ("os error 28", "No space left on device", "os error 122", "Disk quota exceeded")
"""safetensors and pyarrow quote the operating system without its number."""


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error means that the disk is full."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(words in str(error) for words in _DISK)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    import torch  # here: drivers of trials import this file, and have no use for torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(words in str(error) for words in _MEMORY)


def no_room(place: Path) -> str:
    """Return the sentence that the disk of ``place`` is full, and what to do."""
    return (
        f"{place}: no space left on its disk; make room, then the same command goes on from the newest "
        f"checkpoint"
    )


@contextmanager
def explain_resource_errors(settings: TrialSettings, folder: Path) -> Iterator[None]:
    """Turn running out of memory or disk into a sentence.

    Args:
        settings: of the trial that runs inside.
        folder: the trial's.

    Raises:
        TrialMemoryError: memory ran out; says what to lower.
        TrialError: the disk is full; says where to make room.
    """
    try:
        yield
    except TrialError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise TrialError(no_room(folder)) from error
        if is_out_of_memory(error):
            words = str(error).strip().splitlines() or [type(error).__name__]
            graphs = settings.device == "cuda" and settings.train.cuda_graphs
            raise TrialMemoryError(
                f"out of memory on the {settings.device} ({words[0][:200]}); lower train.batch_size (now "
                f"{settings.train.batch_size}) or the size of the images, or run fewer trials at once "
                f"(--concurrent)"
                + (", or train without CUDA graphs (train.cuda_graphs=False)" if graphs else "")
            ) from error
        raise
