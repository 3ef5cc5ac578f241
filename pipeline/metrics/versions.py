"""The versions of code and packages that a row names."""

import os
import subprocess
from importlib import metadata
from pathlib import Path

from pipeline.storage.paths import COMMIT, ROOT

PACKAGES = ("ray", "mmdet3d", "numpy", "biaswise")
"""What a row's ``versions`` names beside torch, if installed."""


def versions() -> str:
    """Return ``torch=...;ray=...`` of the packages that decide numbers."""
    import torch  # here, because the study's commands start without it

    # A wheel's metadata may say 2.11.0 of every build; torch itself says 2.11.0+cu130.
    found = [f"torch={torch.__version__}"]
    for name in PACKAGES:
        try:
            found.append(f"{name}={metadata.version(name)}")
        except metadata.PackageNotFoundError:  # an optional package
            continue
    return ";".join(found)


def commit() -> str:
    """Return the short commit of the code, ``+`` appended if the tree is dirty.

    Of code that is no checkout it is ``BIASWISE_COMMIT`` (`biaswise study submit` sets it), or empty.
    """
    root = ROOT
    if not (root / ".git").exists():  # an installed package, perhaps within somebody else's repository
        return os.environ.get(COMMIT, "")
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):  # no git
        return os.environ.get(COMMIT, "")
    return head + ("+" if dirty else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
