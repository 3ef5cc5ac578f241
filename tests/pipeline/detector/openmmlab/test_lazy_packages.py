"""Modules of the mm libraries are imported when they are asked for, and all of them are there."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import mmdet3d.models
import pytest
from mmdet3d.registry import MODELS
from mmengine.registry import OPTIMIZERS, WEIGHT_INITIALIZERS
from mmengine.runner import Runner

from pipeline.config.sections import SECTIONS
from pipeline.detector.openmmlab.lazy_packages import REGISTERED_AS, exports_of

ROOT = Path(__file__).parents[4]


def test_the_sections_of_a_config_are_the_parameters_of_the_runner():
    assert set(inspect.signature(Runner.__init__).parameters) - {"self"} == set(SECTIONS) - {"custom_imports"}


@pytest.mark.parametrize("name", ["SECOND", "mmdet.ResNet", "naiveSyncBN1d", "mmdet.FrozenBN"])
def test_a_registry_imports_what_it_is_asked_for(name):
    assert inspect.isclass(MODELS.get(name))


def test_names_of_initialisers_are_not_those_of_their_classes():
    names = [name for name, module in REGISTERED_AS.items() if module.endswith("weight_init")]
    assert all(WEIGHT_INITIALIZERS.get(name).__name__ == f"{name}Init" for name in names)


def test_the_zero_optimizer_has_its_base_class_when_a_config_asks_for_it():
    found = OPTIMIZERS.get("ZeroRedundancyOptimizer")
    assert found.__mro__[1].__module__.startswith("torch.distributed.optim")


def test_a_name_that_no_module_has_is_not_found():
    assert not hasattr(mmdet3d.models, "Nope")
    assert "SECOND" in exports_of("mmdet3d.models")


EAGER = """
import importlib.machinery, sys, types
class Ops(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: None
sys.modules["mmcv._ext"] = Ops("mmcv._ext")
sys.modules["mmcv._ext"].__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
import mmdet.models, mmdet.datasets, mmdet3d.models, mmdet3d.structures, mmdet3d.datasets
import pipeline.detector.build
"""
LAZY = """
import pipeline.detector.build
pipeline.detector.build.MODELS.get("a name that nobody has")
"""
NAMES = """
from mmdet import registry as mmdet
from mmdet3d import registry as mmdet3d
every = ("MODELS", "TASK_UTILS", "TRANSFORMS", "DATASETS")
print(sorted(name for home in (mmdet, mmdet3d) for kind in every for name in getattr(home, kind).module_dict))
"""


def test_in_the_end_the_same_names_are_registered_as_by_an_eager_import():
    lists = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program + NAMES],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for program in (EAGER, LAZY)
    ]
    assert len(lists[0]) > 5000
    assert lists[0] == lists[1]


def test_a_package_that_does_more_than_re_export_is_imported_quietly(tmp_path, monkeypatch):
    import mmdet3d.models.layers

    package = tmp_path / "warns"
    package.mkdir()
    code = "import warnings\nwarnings.warn('`torch.cuda.amp.custom_fwd` is deprecated', FutureWarning)\n"
    (package / "__init__.py").write_text(code)
    monkeypatch.setattr(mmdet3d.models.layers, "__path__", [str(tmp_path)])
    importlib.import_module("mmdet3d.models.layers.warns")  # a warning is an error in tests
    del sys.modules["mmdet3d.models.layers.warns"]
