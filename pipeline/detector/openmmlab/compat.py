"""Makes mmengine, mmcv, mmdet and mmdet3d importable without a compiler, and checks their versions.

mmdet3d imports compiled ``mmcv.ops`` that our detector never calls. With ``mmcv-lite``, a placeholder
``mmcv._ext`` lets these imports pass. A call of a missing op raises an error that names it.
"""

import importlib
import importlib.util
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, SimpleNamespace
from typing import NoReturn

from packaging.version import Version
from torch.utils.checkpoint import checkpoint

from pipeline.detector.openmmlab import lazy_packages
from pipeline.detector.openmmlab.quiet_imports import quiet_imports

# Lower bound inclusive, upper bound exclusive: the versions that mmdet3d 1.4.0 and mmdet 3.3.0 assert.
VERSION_GATES = {
    "mmengine": (("mmengine",), "0.8.0", "1.0.0"),
    "mmcv": (("mmcv-lite", "mmcv"), "2.0.0rc4", "2.2.0"),
    "mmdet": (("mmdet",), "3.0.0rc5", "3.4.0"),
    "mmdet3d": (("mmdet3d",), "1.4.0", "1.5.0"),
}
EXTENSION = "mmcv._ext"
MM_MODULES = ("mmcv.ops", "mmdet.models", "mmdet3d.structures", "mmdet3d.models")


class CompatError(ImportError):
    """An mm library is missing, or its version does not fit the others."""


class MissingOpError(RuntimeError):
    """A compiled op of mmcv was called, and the installed mmcv has none."""


class _MissingOp:
    """Placeholder of one compiled op; a call raises MissingOpError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise MissingOpError(
            f"the compiled op mmcv.ops.{self.name} was called, but the installed mmcv has no compiled ops; "
            "use a config without the module that calls it, or install mmcv 2.1.0 built with its ops"
        )


class _PlaceholderExtension(ModuleType):
    """Placeholder of ``mmcv._ext``: every op exists, and none runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # Without a loader, mmengine recognises that this mmcv has no ops.
        self.__spec__ = ModuleSpec(name, loader=None)

    def __getattr__(self, name: str) -> _MissingOp:
        if name.startswith("__"):  # the import system asks for names such as __path__, which do not exist
            raise AttributeError(name)
        return _MissingOp(name)


def check_versions() -> None:
    """Check the versions of the mm libraries.

    Raises:
        CompatError: names the library, the installed version and the range that fits.
    """
    for module, (distributions, low, high) in VERSION_GATES.items():
        installed = _installed(distributions)
        expected = f"{module} >= {low}, < {high}"
        if installed is None:
            raise CompatError(
                f"{module} is not installed; {expected} comes from requirements-nodeps.txt (pip --no-deps)"
            )
        if not Version(low) <= Version(installed) < Version(high):
            raise CompatError(
                f"{module} {installed} is installed, but mmdet3d 1.4.0 needs {expected}; install one of those"
            )


def has_compiled_ops() -> bool:
    """Whether the real ``mmcv._ext`` is installed."""
    loaded = sys.modules.get(EXTENSION)
    if loaded is not None:
        return not isinstance(loaded, _PlaceholderExtension)
    return importlib.util.find_spec(EXTENSION) is not None


def prepare() -> None:
    """Check versions, install the placeholder if needed, and import the mm libraries.

    Further calls do nothing. Most modules of the libraries are imported later, by ``lazy_packages``.

    Raises:
        CompatError: see ``check_versions``.
    """
    check_versions()
    with quiet_imports():
        if not has_compiled_ops():
            sys.modules.setdefault(EXTENSION, _PlaceholderExtension(EXTENSION))
        lazy_packages.install()
        for name in MM_MODULES:
            importlib.import_module(name)
    _leave_out_zero_optimizer()
    _checkpoint_without_reentry()


def _leave_out_zero_optimizer() -> None:
    """Unregister mmengine's ZeroRedundancyOptimizer, which was imported without its base class.

    ``lazy_packages`` imports it anew when a config asks for it.
    """
    if sys.modules.pop(lazy_packages.ZERO, None) is not None:
        registry = importlib.import_module("mmengine.registry").OPTIMIZERS
        registry.module_dict.pop("ZeroRedundancyOptimizer", None)
        for package in ("mmengine.optim", "mmengine.optim.optimizer"):
            sys.modules[package].__dict__.pop("ZeroRedundancyOptimizer", None)


def _checkpoint_without_reentry() -> None:
    """Let mmdet's ResNet use non-reentrant checkpointing (``with_cp``), as PyTorch recommends."""
    resnet = importlib.import_module("mmdet.models.backbones.resnet")
    resnet.cp = SimpleNamespace(checkpoint=partial(checkpoint, use_reentrant=False))  # type: ignore[attr-defined]


def _installed(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
