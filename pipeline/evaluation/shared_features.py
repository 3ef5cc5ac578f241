"""Features that detections of the same frames share: each part of a model runs once per input."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.evaluation.views import EMPTY, BranchInput


class FeatureCache:
    """Features of branches, each computed once per input; those of empty inputs are kept for good."""

    def __init__(self) -> None:
        self._of_frames: dict[tuple[str, tuple[BranchInput, ...]], Any] = {}
        self._of_nothing: dict[tuple[str, int], Any] = {}

    def forget_frames(self) -> None:
        """Forget all features but those of empty inputs."""
        self._of_frames.clear()

    def once(self, branch: str, read: Sequence[BranchInput], run: Callable[[], Any]) -> Any:
        """Run a branch, or a part of one, unless these frames were read before.

        Args:
            branch: ``images`` or ``points``.
            read: what it reads of each frame.
            run: runs it.
        """
        if all(one.content == EMPTY for one in read):
            if (branch, len(read)) not in self._of_nothing:
                self._of_nothing[branch, len(read)] = run()
            return self._of_nothing[branch, len(read)]
        key = (branch, tuple(read))
        if key not in self._of_frames:
            self._of_frames[key] = run()
        return self._of_frames[key]


class SharedFeatures:
    """What detectors share: features of the trunk, and of both branches of each model.

    The weights must stay as they are while it lives.
    """

    def __init__(self) -> None:
        self.of_trunk = FeatureCache()
        self._of_models: dict[int, FeatureCache] = {}

    def of(self, model: Any) -> FeatureCache:
        """Return those after the trunk of a model; those of other models are forgotten, to spare memory."""
        for other, features in self._of_models.items():
            if other != id(model):
                features.forget_frames()
        return self._of_models.setdefault(id(model), FeatureCache())

    def forget_frames(self) -> None:
        """Forget all features but those of empty inputs."""
        for features in (self.of_trunk, *self._of_models.values()):
            features.forget_frames()
