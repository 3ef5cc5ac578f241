"""Imports the nuScenes devkit without scikit-learn: it takes a second, and one picture of a map needs it."""

import importlib
import sys
from types import ModuleType
from typing import Any


def import_devkit() -> None:
    """Import ``nuscenes``; to be called before anything is imported from it.

    The devkit imports ``sklearn.metrics`` at its top, for a picture of a map. Here it gets a stand-in, which
    imports the real module when it is used.
    """
    names = ("sklearn", "sklearn.metrics")
    stand_ins = {} if "sklearn" in sys.modules else {name: _Later(name) for name in names}
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("nuscenes")
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _Later(ModuleType):
    """A package that imports a submodule when it is used."""

    def __getattr__(self, name: str) -> Any:
        """Import a submodule."""
        if name.startswith("__"):
            raise AttributeError(name)
        return importlib.import_module(f"{self.__name__}.{name}")
