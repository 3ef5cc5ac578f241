"""Import of mmengine.model, mmdet and mmdet3d module by module, as they are needed.

``import mmdet3d.models`` runs 400 modules, and with them matplotlib, numba and FSDP; a config needs a dozen.
Here a package whose ``__init__`` only re-exports names imports a submodule with the first use of a name. A
registry that is asked for a name first imports the modules that export it, and all of them if none does.
"""

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

from pipeline.detector.openmmlab.quiet_imports import quiet_imports

LAZY = (
    "mmengine.model",
    "mmengine.runner",
    "mmdet.datasets",
    "mmdet.models",
    "mmdet.utils",
    "mmdet3d.datasets",
    "mmdet3d.models",
    "mmdet3d.structures",
)
"""Packages that are lazy, with all packages below them."""

ZERO = "mmengine.optim.optimizer.zero_optimizer"
"""Loads all of torch.distributed; ``compat`` leaves it out until a registry is asked for it."""

_INIT = "mmengine.model.weight_init"
REGISTERED_AS = {
    **dict.fromkeys(("Constant", "Xavier", "Normal", "TruncNormal", "Uniform", "Kaiming"), _INIT),
    **dict.fromkeys(("Caffe2Xavier", "Pretrained"), _INIT),
    "DataParallel": "mmengine.model.wrappers.distributed",
    "DistributedDataParallel": "mmengine.model.wrappers.distributed",
    "ZeroRedundancyOptimizer": ZERO,
    "FrozenBN": "mmdet.models.layers.brick_wrappers",
    "Linear": "mmdet.models.layers.normed_predictor",
    "NormedConv2d": "mmdet.models.layers.normed_predictor",
    "NormedLinear": "mmdet.models.layers.normed_predictor",
    "naiveSyncBN1d": "mmdet3d.models.layers.norm",
    "naiveSyncBN2d": "mmdet3d.models.layers.norm",
}
"""Names in registries that differ from the name of their class -> module."""


class _LazyPackage(ModuleType):
    """A package that imports a submodule with the first use of a name that it re-exports."""

    def __getattr__(self, name: str) -> Any:
        """Import the module that defines a name."""
        exports = {} if name.startswith("__") else exports_of(self.__name__)
        if name not in exports:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(exports[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        """Keep a re-exported function that has the name of its own module, such as ``accuracy``."""
        if isinstance(value, ModuleType) and name in exports_of(self.__name__):
            return
        super().__setattr__(name, value)


class _LazyLoader(Loader):
    """Makes a ``_LazyPackage`` without running its ``__init__``."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the empty package."""
        return _LazyPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Name what a star import takes; nothing else is run."""
        module.__dict__["__all__"] = list(exports_of(module.__name__))


class _QuietLoader(Loader):
    """Runs a module within ``quiet_imports``."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the module's own loader makes."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        with quiet_imports():
            self._loader.exec_module(module)


class _LazyFinder(MetaPathFinder):
    """Finds the packages of ``LAZY``: those whose ``__init__`` only re-exports are lazy, the others quiet."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a package, or of a module, below ``LAZY``; None for everything else."""
        if not _is_below(fullname, LAZY):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        is_lazy = spec.submodule_search_locations and _re_exports(spec.origin or "") is not None
        spec.loader = _LazyLoader() if is_lazy else _QuietLoader(spec.loader)
        return spec


def install() -> None:
    """Make the packages of ``LAZY`` lazy, and let registries import what they are asked for. Idempotent."""
    if not any(isinstance(finder, _LazyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LazyFinder())
        Registry.get = _with_import(Registry.get)


def import_all() -> None:
    """Import every module that a lazy package re-exports from."""
    for module in sorted({module for modules in _index().values() for module in modules}):
        importlib.import_module(module)


@cache
def _index() -> dict[str, tuple[str, ...]]:
    """Return what the lazy packages re-export: name -> the modules that define a class of that name."""
    index: dict[str, set[str]] = {}
    for package in LAZY:
        for each in _packages(package):
            for name, module in exports_of(each).items():
                index.setdefault(name, set()).add(module)
    return {name: tuple(sorted(modules)) for name, modules in index.items()}


def _packages(package: str) -> Iterator[str]:
    """Yield a package and those below it, if they are lazy."""
    path = importlib.import_module(package).__path__
    if isinstance(sys.modules[package], _LazyPackage):
        yield package
    for module in pkgutil.iter_modules(path):
        if module.ispkg and _is_lazy(f"{package}.{module.name}"):
            yield from _packages(f"{package}.{module.name}")


def is_registered(scope: str, name: str) -> bool:
    """Return whether a library, such as ``mmdet``, has a class of this name in one of its registries."""
    _import_modules_of(name)
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    children = [child for root in roots for child in root.children.values() if child.scope == scope]
    registries = [*roots, *children]
    if any(name in registry.module_dict for registry in registries):
        return True  # before all modules of all registries are loaded, which takes a second of CPU
    for registry in registries:
        with suppress(ImportError):  # mmdet3d names a module of each kind, also those that it has not
            registry.import_from_location()
    return any(name in registry.module_dict for registry in registries)


def _import_modules_of(name: str) -> None:
    for module in (REGISTERED_AS[name],) if name in REGISTERED_AS else _index().get(name, ()):
        importlib.import_module(module)


def _with_import(get: Any) -> Any:
    """Return ``Registry.get`` that imports the modules of a name before it looks the name up."""

    def get_imported(self: Registry, key: str) -> Any:
        _import_modules_of(str(key).rpartition(".")[2])
        value = get(self, key)
        if value is None:
            import_all()
            value = get(self, key)
        return value

    return get_imported


@cache
def exports_of(package: str) -> dict[str, str]:
    """Return what a lazy package re-exports: name -> module that defines or re-exports it."""
    spec = PathFinder.find_spec(package, sys.modules[package.rpartition(".")[0]].__path__)
    origin = spec.origin if spec else None
    exports: dict[str, str] = {}
    for module, names in _re_exports(origin or "") or ():
        module = importlib.util.resolve_name(module, package)
        for name in names:
            if name == "*":
                exports |= _star(module)
            else:
                exports[name] = module
    return exports


def _star(module: str) -> dict[str, str]:
    """Return what ``from module import *`` takes: name -> module."""
    for parent in [module[:at] for at in range(len(module)) if module[at] == "."]:
        importlib.import_module(parent)
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"no module {module}")
    if isinstance(spec.loader, _LazyLoader):
        names = set(_listed(spec.origin or "")) or set(exports_of(module))
        return {name: source for name, source in exports_of(module).items() if name in names}
    return dict.fromkeys(_listed(spec.origin or ""), module)


@cache
def _re_exports(origin: str) -> tuple[tuple[str, tuple[str, ...]], ...] | None:
    """Return (module, names) of each import in an ``__init__``; None if it does anything else."""
    imports = []
    for node in _flat(_statements(origin)):
        if isinstance(node, ast.ImportFrom) and not any(alias.asname for alias in node.names):
            module = "." * node.level + (node.module or "")
            imports.append((module, tuple(alias.name for alias in node.names)))
        elif not _is_documentation(node):
            return None
    return tuple(imports)


def _flat(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, and those under a condition on the version of torch, which always holds here."""
    for node in statements:
        if isinstance(node, ast.If) and "TORCH_VERSION" in ast.unparse(node.test) and not node.orelse:
            yield from node.body
        else:
            yield node


def _is_documentation(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring or changes ``__all__``."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith("__all__.append(")
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def _listed(origin: str) -> Iterator[str]:
    """Yield the names in ``__all__`` of a file."""
    for node in _statements(origin):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield from ast.literal_eval(node.value)


@cache
def _statements(origin: str) -> tuple[ast.stmt, ...]:
    return tuple(ast.parse(Path(origin).read_text(encoding="utf-8")).body)


def _is_lazy(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and isinstance(spec.loader, _LazyLoader)


def _is_below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
