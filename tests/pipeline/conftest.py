"""A tiny generated dataset, and settings of a trial on it that takes seconds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
from pipeline.data.synthetic import generate
from tests.smallest import SMALLEST

CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"
OVERRIDES = (*SMALLEST, ("optim_wrapper.optimizer.lr", "1e-3"))
PLAN = Plan.of(
    {
        "aqr.0.cross": "local/sdpa_math",
        "decoder.*.self": "none/sdpa_math",
        "decoder.0.cross": "window/sdpa_math",
        "decoder.[12].cross": "none/sdpa_math",
    }
)


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    generate(root, seed=5, frames_per_scene=2, scenes_per_split={"mini_train": 2, "mini_val": 1}, workers=1)
    return root


def settings_on(root: Path, **given: object) -> TrialSettings:
    """Make settings; keywords go to ``TrainSettings`` or, if it has none such, to ``TrialSettings``."""
    train = {"steps": 4, "batch_size": 2, "warmup_steps": 2, "checkpoint_every": 2, "log_every": 1}
    train |= {key: given.pop(key) for key in list(given) if key in TrainSettings.__dataclass_fields__}
    whole = {
        "study": "test",
        "config": CONFIG,
        "plan": PLAN,
        "data": DataSettings(train=(str(root),), val=str(root)),
        "overrides": OVERRIDES,
        "torch_threads": 1,
    }
    return TrialSettings(**{**whole, **given}, train=TrainSettings(**train))


@pytest.fixture
def trial(small_dataset: Path) -> Callable[..., TrialSettings]:
    """``settings_on`` the small dataset."""
    return partial(settings_on, small_dataset)
