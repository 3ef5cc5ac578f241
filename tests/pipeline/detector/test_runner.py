"""mmengine's own Runner trains and tests the mini config, and computes what our loop computes."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, HOOKS, TRANSFORMS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from pipeline.config.plan import Plan
from pipeline.data.augmentation.object_database_writer import write_database
from pipeline.data.augmentation.pipeline_steps import LoadAnnotations3D
from pipeline.data.augmentation.train_pipeline import STEPS
from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import Sample
from pipeline.data.synthetic import generate
from pipeline.detector.build import build_model
from pipeline.detector.inspection.plan_config import print_config
from pipeline.detector.openmmlab.data_samples import to_detections
from pipeline.detector.openmmlab.optimizer import build_optimizer
from pipeline.detector.runner import to_sample
from pipeline.detector.weights import load_weights, save_weights
from pipeline.evaluation.inference import Predictor
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.storage.paths import ROOT
from pipeline.training.step import TrainStep, loss_of

CONFIG = ROOT / "experiments/configs/cmt_aqr_pillar_mini_runner.py"
STEPS_RUN = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runner")
    generate(path, seed=5, frames_per_scene=2, scenes_per_split={"mini_train": 2, "mini_val": 1}, workers=1)
    for split in ("train", "val"):
        frames = read_frames(path, "v1.0-mini", f"mini_{split}")
        write_infos(frames, path / f"nuscenes_infos_{split}.pkl", "v1.0-mini")
    return path


@pytest.fixture
def config(root, tmp_path) -> Config:
    cfg = Config.fromfile(CONFIG)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.batch_size = 2
        loader.dataset.data_root = str(root)
    cfg.test_evaluator.update(data_root=str(root), ann_file=str(root / "nuscenes_infos_val.pkl"))
    cfg.train_cfg.update(max_epochs=1)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # the test loop does the same
    cfg.update(work_dir=str(tmp_path), log_level="WARNING", experiment_name=tmp_path.name)
    return cfg


class Watch(Hook):
    """Seeds each step as our loop does; keeps batches, losses and predictions."""

    def __init__(self):
        self.batches, self.losses, self.found = [], [], {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(copy.deepcopy(data_batch))
        seed_everything(3, batch_idx)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs["loss"]))

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        places = [sample.sample_idx for sample in outputs]
        self.found |= dict(zip(places, to_detections(outputs), strict=True))


@pytest.mark.filterwarnings("ignore")  # mmengine's, mmdet3d's and the devkit's own
def test_the_runner_computes_what_our_loop_computes(config, root):
    deterministic(torch.device("cpu"), threads=1)
    runner = Runner.from_cfg(config)
    watch = Watch()
    runner.register_hook(watch)
    seed_everything(0)
    ours = build_model(CONFIG)
    runner.model.load_state_dict(ours.state_dict())
    runner.model._is_init = True  # or the Runner would draw the weights anew
    runner.train()
    assert len(watch.losses) == STEPS_RUN
    optimiser = TrainStep(ours, build_optimizer(ours, config.optim_wrapper), clip_norm=35.0)
    for step, (batch, loss) in enumerate(zip(watch.batches, watch.losses, strict=True)):
        seed_everything(3, step)
        ours.train()
        expected = loss_of(optimiser.step(batch, factor=1.0))  # the Runner's schedule begins at its peak
        assert loss == pytest.approx(expected, rel=1e-6)  # float32; the second follows an update
    scores = runner.test()
    assert {key.rpartition("_")[2] for key in scores} >= {"NuScenes/NDS", "NuScenes/mAP"}
    ours.load_state_dict(runner.model.state_dict())
    samples = list(FileSource(read_frames(root, "v1.0-mini", "mini_val")))
    detector = Predictor(ours, ours.image_size)
    for place, expected in enumerate(detector.run(detector.prepare(samples))):
        np.testing.assert_array_equal(watch.found[place].labels, expected.labels)
        np.testing.assert_allclose(watch.found[place].boxes, expected.boxes, rtol=1e-5, atol=1e-5)
    _same_from_its_checkpoint(Path(runner.work_dir) / "epoch_1.pth", runner.model, samples)


@pytest.mark.filterwarnings("ignore")
def test_a_printed_plan_trains_as_it_stands(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini").symlink_to(root)  # where the config looks for its frames
    rest = {"aqr.*": "local/sdpa_math", "decoder.*.self": "none/sdpa_math"}
    plan = Plan.of(rest | {"decoder.[01].cross": "none/sdpa_math", "decoder.2.cross": "window:5/sdpa_math"})
    text = print_config("experiments/configs/cmt_aqr_pillar_mini.py", plan, tmp_path)
    (tmp_path / "recommended.py").write_text(text)
    cfg = Config.fromfile("recommended.py")
    cfg.train_cfg.update(max_epochs=1)
    cfg.train_dataloader.batch_size = 2
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.update(work_dir=str(tmp_path), log_level="WARNING", experiment_name=tmp_path.name)
    watch, runner = Watch(), Runner.from_cfg(cfg)
    runner.register_hook(watch)
    runner.train()
    assert len(watch.losses) == STEPS_RUN
    assert str(runner.model.plan["decoder.2.cross"]) == "window:5/sdpa_math"


def _same_from_its_checkpoint(path: Path, trained: torch.nn.Module, samples: list[Sample]) -> None:
    """The Runner's own file, with message hub and history buffers, is as good as the weights saved by us."""
    save_weights(trained, path.with_name("ours.safetensors"))
    found = []
    for file in (path, path.with_name("ours.safetensors")):
        model = build_model(CONFIG)
        assert load_weights(model, file).fresh == ()
        detector = Predictor(model, model.image_size)
        found.append(detector.run(detector.prepare(samples)))
    for one, other in zip(*found, strict=True):
        for field in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        assert len(one.boxes)


@pytest.fixture
def results(config, root):
    """What mmdet3d's loaders make of a training frame."""
    init_default_scope("mmdet3d")
    dataset = DATASETS.build(config.train_dataloader.dataset)
    loaded = dataset.get_data_info(1)
    loaded["box_type_3d"], loaded["box_mode_3d"] = dataset.box_type_3d, dataset.box_mode_3d
    for transform in dataset.pipeline.transforms[:4]:
        loaded = transform(loaded)
    return loaded


@pytest.mark.filterwarnings("ignore")
def test_mmdet3d_loads_what_our_source_reads(results, root):
    sample = FileSource(read_frames(root, "v1.0-mini", "mini_train"))[1]
    sample = LoadAnnotations3D()(sample, np.random.default_rng(0))
    made = to_sample(results)
    np.testing.assert_array_equal(made.images, sample.images)
    np.testing.assert_array_equal(made.points, sample.points)
    np.testing.assert_allclose(made.lidar2img, sample.lidar2img, rtol=1e-9)
    np.testing.assert_array_equal(made.labels, sample.labels)
    np.testing.assert_allclose(made.boxes, sample.boxes, atol=1e-5)  # z goes to the bottom and back
    assert made.token == sample.token


@pytest.mark.filterwarnings("ignore")
def test_registered_steps_do_what_ours_do(results):
    conf = {"rot_range": [0.3, 0.3], "scale_ratio_range": [1.1, 1.1], "translation_std": [0, 0, 0]}
    built = TRANSFORMS.build({"type": "GlobalRotScaleTransAll", **conf})
    made = to_sample(built(results))
    expected = STEPS["GlobalRotScaleTransAll"](**conf)(to_sample(results), np.random.default_rng(0))
    np.testing.assert_allclose(made.boxes, expected.boxes, atol=1e-5)
    np.testing.assert_array_equal(made.points, expected.points)
    np.testing.assert_array_equal(made.lidar2img, expected.lidar2img)
    assert "lidar2cam" not in built(results)  # it would be wrong now


@pytest.mark.filterwarnings("ignore")
def test_the_hook_of_mmdet3d_ends_pasting(config, root, tmp_path):
    write_database(FileSource(read_frames(root, "v1.0-mini", "mini_train")), tmp_path / "database")
    groups = dict.fromkeys(("car", "bus", "pedestrian"), 30)
    sampler = {"info_path": str(tmp_path / "database"), "sample_groups": groups}
    config.train_dataloader.dataset.pipeline.insert(
        4, {"type": "UnifiedObjectSample", "sample_2d": True, "db_sampler": sampler}
    )
    init_default_scope("mmdet3d")
    dataset = DATASETS.build(config.train_dataloader.dataset)
    count = [len(dataset[0]["data_samples"].gt_instances_3d)]
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(epoch=15, train_dataloader=loader, model=None, logger=logging.getLogger())
    HOOKS.build({"type": "DisableObjectSampleHook"}).before_train_epoch(runner)
    count.append(len(dataset[0]["data_samples"].gt_instances_3d))
    assert count[1] < count[0] - 10
