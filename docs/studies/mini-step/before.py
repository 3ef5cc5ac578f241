"""The demo's first trial as commit da22db2 trains it; ``after`` has the same in the names of today."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.detector.batch import collate
from pipeline.detector.deploy import for_inference
from pipeline.optimise import deterministic, seed_everything
from pipeline.plan import Plan
from pipeline.predict import Detector
from pipeline.rungs import Rungs
from pipeline.session import LocalSession
from pipeline.settings import TrialSettings
from pipeline.train import Trial, run_trial

from experiments.recipes import cross_plan, recipe

__all__ = ["Model", "plan_of", "run", "seed_everything"]

plan_of = cross_plan


def settings_of(data: Path, plan: Plan, steps: int | None = None) -> TrialSettings:
    """Return the settings of one of the demo's trials on a dataset; ``steps`` shortens its training."""
    first = recipe("demo").trials[0]
    train = first.train if steps is None else replace(first.train, steps=steps)
    place = replace(first.data, train=(str(data),), val=str(data))
    return replace(first, plan=plan, train=train, data=place)


def run(data: Path, plan: Plan, folder: Path, steps: int) -> None:
    """Run a whole trial in this process."""
    run_trial(settings_of(data, plan, steps), LocalSession(folder))


class Model:
    """The trial's model in training, and a copy that is prepared for inference."""

    def __init__(self, data: Path, plan: Plan, folder: Path, batches: int) -> None:
        settings, session = settings_of(data, plan), LocalSession(folder)
        deterministic(session.device, settings.threads)
        trial = Trial(settings, session, Rungs())
        self.model, self._optimiser, self._detector = trial.model, trial.optimiser, trial.detector
        self._batches = [collate(samples) for samples in trial.batches(0, batches)]
        source = trial.assessment.views.source
        self._frame = self._detector.prepare([source[len(source) // 2]])
        self._deployed = for_inference(copy.deepcopy(self.model))
        self._deployed_detector = Detector(self._deployed, self._deployed.image_size)

    def use(self, plan: Plan) -> None:
        """Put a plan on both models."""
        for model in (self.model, self._deployed):
            model.apply_plan(plan)

    def step(self, index: int) -> float:
        """Train on a batch at a learning rate of 0; return the loss."""
        found: dict[str, Any] = self._optimiser.step(self._batches[index % len(self._batches)], 0.0)
        return float(found["loss"])

    def detect(self) -> object:
        """Detect in a frame with the prepared copy."""
        return self._deployed_detector.run(self._frame)

    def evaluate(self) -> object:
        """Detect in a frame with the model that trains, as the trial's evaluation does."""
        return self._detector.run(self._frame)
