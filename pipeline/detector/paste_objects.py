"""``UnifiedObjectSample`` for mmengine's Runner: a module of its own, because its base class loads numba."""

from collections.abc import Callable
from typing import Any

from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import ObjectSample

from pipeline.data.augmentation.gt_sampling import UnifiedObjectSample


class PasteObjects(ObjectSample):
    """``UnifiedObjectSample`` as an ``ObjectSample``, so that DisableObjectSampleHook can disable it.

    Args:
        apply: applies a step to the results of one frame.
        keys: of ``UnifiedObjectSample``.
    """

    def __init__(self, apply: Callable[[Any, dict[str, Any]], dict[str, Any]], **keys: Any) -> None:
        BaseTransform.__init__(self)
        self.step, self._apply = UnifiedObjectSample(**keys), apply
        self.disabled = False

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Paste objects, unless the hook has disabled it."""
        return results if self.disabled else self._apply(self.step, results)

    def __repr__(self) -> str:
        return repr(self.step)
