"""The placeholder for mmcv's compiled ops, and the version gates."""

import sys

import pytest
import torch
from mmengine.utils.dl_utils.misc import mmcv_full_available

import pipeline.detector  # noqa: F401  prepares the mm libraries
from pipeline.detector.openmmlab import compat
from pipeline.detector.openmmlab.quiet_imports import SPARED


def test_mm_libraries_import_without_compiled_ops() -> None:
    for name in compat.MM_MODULES:
        assert name in sys.modules


@pytest.mark.skipif(compat.has_compiled_ops(), reason="mmcv is installed with its compiled ops")
def test_a_missing_op_names_itself_when_called() -> None:
    from mmcv.ops import box_iou_rotated

    with pytest.raises(compat.MissingOpError, match="box_iou_rotated"):
        box_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))


@pytest.mark.skipif(compat.has_compiled_ops(), reason="mmcv is installed with its compiled ops")
def test_the_placeholder_has_no_magic_attributes() -> None:
    assert not hasattr(sys.modules[compat.EXTENSION], "__path__")


@pytest.mark.skipif(compat.has_compiled_ops(), reason="mmcv is installed with its compiled ops")
def test_mmengine_knows_that_there_are_no_compiled_ops() -> None:
    assert not mmcv_full_available()


def test_what_is_spared_can_be_imported_afterwards() -> None:
    assert all(sys.modules.get(name, True) is not None for name in SPARED)


def test_prepare_twice_keeps_the_modules() -> None:
    before = sys.modules[compat.EXTENSION]
    compat.prepare()
    assert sys.modules[compat.EXTENSION] is before


def test_an_unfit_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: "2.2.0")
    with pytest.raises(compat.CompatError, match=r"mmengine 2.2.0 is installed.*mmengine >= 0.8.0, < 1.0.0"):
        compat.check_versions()


def test_an_absent_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise compat.PackageNotFoundError(name)

    monkeypatch.setattr(compat, "version", absent)
    with pytest.raises(compat.CompatError, match="mmengine is not installed"):
        compat.check_versions()
