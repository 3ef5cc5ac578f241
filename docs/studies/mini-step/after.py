"""The demo's first trial as this version trains it; ``before`` has the same in the names of da22db2."""

import copy
from dataclasses import replace
from pathlib import Path

from experiments.recipes.mini import cross_plan, demo
from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.detector.deployment import for_inference
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.evaluation.inference import Predictor
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, Cohort, run_cohort
from pipeline.training.step import loss_of
from pipeline.training.trial import run_trial

__all__ = ["Model", "plan_of", "run", "run_together", "seed_everything"]

plan_of = cross_plan


def settings_of(data: Path, plan: Plan, steps: int | None = None) -> TrialSettings:
    """Return the settings of one of the demo's trials on a dataset; ``steps`` shortens its training."""
    first = demo().trials[0]
    train = first.train if steps is None else replace(first.train, steps=steps)
    place = replace(first.data, train=(str(data),), val=str(data))
    return replace(first, plan=plan, train=train, data=place)


def run(data: Path, plan: Plan, folder: Path, steps: int) -> None:
    """Run a whole trial in this process."""
    run_trial(settings_of(data, plan, steps), LocalSession(folder))


def run_together(data: Path, plans: list[Plan], folder: Path, steps: int) -> None:
    """Run whole trials in this process as a cohort, as the demo runs eight."""
    settings = [settings_of(data, plan, steps) for plan in plans]
    ends = run_cohort([Arm(one, LocalSession(folder / str(i))) for i, one in enumerate(settings)])
    if failed := [end.error for end in ends if end.error]:
        raise SystemExit(failed[0])


class Model:
    """The trial's model in training, and a copy that is prepared for inference."""

    def __init__(self, data: Path, plan: Plan, folder: Path, batches: int) -> None:
        settings, session = settings_of(data, plan), LocalSession(folder)
        deterministic(session.device, settings.torch_threads)
        cohort = Cohort([Arm(settings, session)])
        (trainer,) = cohort.trainers
        self.model, self._train_step, self._predictor = trainer.model, trainer.train_step, trainer.detector
        self._batches = [collate(samples) for samples in cohort.batches(0, batches)]
        source = cohort.split.source
        self._frame = self._predictor.prepare([source[len(source) // 2]])
        self._deployed = for_inference(copy.deepcopy(self.model))
        self._deployed_predictor = Predictor(self._deployed, self._deployed.image_size)

    def use(self, plan: Plan) -> None:
        """Put a plan on both models."""
        for model in (self.model, self._deployed):
            model.apply_plan(plan)

    def step(self, index: int) -> float:
        """Train on a batch at a learning rate of 0; return the loss."""
        return loss_of(self._train_step.step(self._batches[index % len(self._batches)], 0.0))

    def detect(self) -> object:
        """Detect in a frame with the prepared copy."""
        return self._deployed_predictor.run(self._frame)

    def evaluate(self) -> object:
        """Detect in a frame with the model that trains, as the trial's evaluation does."""
        return self._predictor.run(self._frame)
