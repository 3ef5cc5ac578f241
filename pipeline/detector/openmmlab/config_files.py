"""Read mmengine's config files: Python is run, YAML and JSON are data and run nothing.

mmengine loads YAML with a loader that makes any Python object, imports what ``custom_imports`` names, and
takes a ``type`` that is in no registry for the path of a class to import. Here YAML is read by the safe
loader, a config that is data has only data as its bases, and a ``type`` is a name in a registry.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmengine.registry.registry
from mmengine.config import Config
from mmengine.fileio.handlers import YamlHandler, register_handler

from pipeline.detector.openmmlab.lazy_packages import is_registered
from pipeline.json_files import JsonError, parse_json, read_bytes
from pipeline.redaction import is_secret_name
from pipeline.yaml_files import Loader, parse_yaml

DATA = (".yaml", ".yml", ".json")
"""Ends of the names of configs that are data."""
MAX_BYTES = 2**20
"""Largest config that is data; those that ship have 10 kB."""
MAX_BASES = 16
"""Most bases of a config in one another."""
SCOPES = ("mmengine", "mmcv", "mmdet", "mmdet3d")
"""Libraries whose registries a type may name, as in ``mmdet.ResNet``."""


class ConfigError(ValueError):
    """A config cannot be read, or it has an unknown key; the message is one sentence."""


@register_handler(["yaml", "yml"])
class _SafeYaml(YamlHandler):
    """Reads YAML as data."""

    def load_from_fileobj(self, file: Any, **options: Any) -> Any:
        """Load with our loader, whatever the caller asks for."""
        return super().load_from_fileobj(file, **options | {"Loader": Loader})


_SUBSTITUTE = Config._substitute_env_variables


def _substitute(filename: str, target: str) -> Any:
    """Put environment variables into the text of a config, as mmengine does, which also logs their values.

    Raises:
        ConfigError: a variable's name says that it holds a secret.
    """
    text = Path(filename).read_text(encoding="utf-8")
    if secret := [name for name in re.findall(r"\{\{\W*\$(\w+)", text) if is_secret_name(name)]:
        raise ConfigError(
            f"reads the environment variable {secret[0]}, which holds a secret; configs are "
            "printed and copied"
        )
    return _SUBSTITUTE(filename, target)


Config._substitute_env_variables = staticmethod(_substitute)
mmengine.registry.registry.get_object_from_string = lambda name: None  # a type is in a registry, or unknown


def read_config(path: Path) -> Config:
    """Read a config with its bases. A Python file is run.

    Raises:
        ConfigError: it cannot be read, or a config that is data names code.
    """
    is_data = path.suffix in DATA
    try:
        if is_data:
            _refuse_code(path, 0)
        return Config.fromfile(path, import_custom_modules=not is_data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except (Exception, SystemExit) as error:  # a config is a program: it may raise anything, or leave
        raise ConfigError(
            f"{path}: cannot be read as a config ({type(error).__name__}: {error}); correct it, or its _base_"
        ) from error


def _refuse_code(path: Path, depth: int) -> None:
    """Refuse a config that is data and would run something, or that has too many bases in one another."""
    if path.suffix not in DATA:
        raise ConfigError(
            f"{path}: is the _base_ of a config that is data, and would be run; write the config in Python"
        )
    if depth > MAX_BASES:
        raise ConfigError(f"{path}: its _base_ files name one another; expected {MAX_BASES} at most")
    content = _load(path)
    if "custom_imports" in content:
        raise ConfigError(f"{path}: has custom_imports, which runs code; write the config in Python")
    bases = content.get("_base_", [])
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []:
        _refuse_code((path.parent / str(base)).resolve(), depth + 1)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = read_bytes(path, MAX_BYTES)
        return parse_json(data, dict) if path.suffix == ".json" else parse_yaml(data)
    except (JsonError, FileNotFoundError) as error:
        reason = error.reason if isinstance(error, JsonError) else "no such file"
        raise ConfigError(
            f"{path}: cannot be read as a config ({reason}); correct it, or its _base_"
        ) from error


def refuse_unregistered(cfg: Config, name: str) -> None:
    """Refuse a config in which a type is the path of something to import, such as ``subprocess.Popen``.

    Args:
        cfg: the config.
        name: of its file, for the message.

    Raises:
        ConfigError: the first such type.
    """
    for at, kind in _types(cfg.to_dict(), ""):
        scope, dot, rest = kind.partition(".")
        if dot and (scope not in SCOPES or "." in rest or not is_registered(scope, rest)):
            raise ConfigError(
                f"{name}: {at} is {kind!r}, which names no class of a registry; expected a name such as "
                f"'ResNet' or 'mmdet.ResNet'"
            )


def refuse_image_size(cfg: Config, name: str) -> None:
    """Refuse a config whose ``model.image_size`` is no height and width in pixels.

    Args:
        cfg: the config.
        name: of its file, for the message.

    Raises:
        ConfigError: it is something else.
    """
    model = cfg.get("model")
    size = model.get("image_size") if isinstance(model, Mapping) else None
    whole = isinstance(size, list | tuple) and all(type(edge) is int and edge > 0 for edge in size)
    if size is not None and not (whole and len(size) == 2):
        raise ConfigError(
            f"{name}: model.image_size is {str(size)[:60]!r}; expected height and width, such as (320, 800)"
        )


def _types(node: Any, at: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every ``type``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{at}.{key}" if at else str(key)
            if key == "type" and isinstance(value, str):
                yield place, value
            yield from _types(value, place)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _types(value, f"{at}.{index}")
