"""The versions of code and packages that a row names."""

import os
import subprocess
from importlib import metadata
from pathlib import Path

from pipeline.storage.paths import COMMIT, ROOT

PACKAGES = ("torch", "ray", "mmdet3d", "numpy", "biaswise")
"""What a row's ``versions`` names, if installed."""


def versions() -> str:
    """Return ``torch=...;ray=...`` of the packages that decide numbers."""
    found = []
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
