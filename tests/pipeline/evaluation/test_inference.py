"""Sharing features between conditions and plans changes no detection."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.config.plan import Choice, Plan
from pipeline.data.corruptions import CONDITIONS
from pipeline.data.formats.open import open_source
from pipeline.detector.build import build_model
from pipeline.detector.head.cmt_head import CmtAqrHead
from pipeline.evaluation import inference
from pipeline.evaluation.evaluator import FAILURE_SEED
from pipeline.evaluation.inference import Predictor, compare, predict, predict_each
from pipeline.evaluation.views import EvaluationViews
from pipeline.runtime.determinism import deterministic
from pipeline.runtime.session import LocalSession


@pytest.fixture
def detector(trial):
    settings = trial()
    deterministic(torch.device("cpu"), 1)
    torch.manual_seed(0)
    model = build_model(settings.config, settings.overrides, settings.plan)
    return Predictor(model, model.image_size)


@pytest.fixture
def views(trial):
    data = trial().data
    return EvaluationViews(
        open_source(data.val, data.nuscenes_version, data.val_split), tuple(CONDITIONS), FAILURE_SEED
    )


def plans(detector) -> list[Plan]:
    plan = detector.model.plan
    swaps = ("none", "window", "global")
    return [Plan((*plan.choices[:-1], (plan.choices[-1][0], Choice(bias)))) for bias in swaps]


def under(detector, plans) -> list[Predictor]:
    return [Predictor(detector.model, detector.model.image_size, plan=plan) for plan in plans]


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a, b, strict=True)
        for name in ("boxes", "scores", "labels")
    )


def test_shared_features_give_what_a_pass_per_condition_and_plan_gives(detector, views):
    samples = next(views.chunks(0, 1))
    shown = detector.resize(views.of(samples))
    found = compare(under(detector, plans(detector)), shown)
    for plan, by_condition in zip(plans(detector), found, strict=True):
        detector.model.apply_plan(plan)
        for condition, detections in by_condition.items():
            # corrupted at native size, nothing shared: the plain way
            alone = detector.run(detector.prepare([view.sample for view in views.of(samples)[condition]]))
            assert same(detections, alone), (str(plan), condition)
    assert not same(found[0]["clean"], found[1]["clean"])
    assert not same(found[0]["clean"], found[0]["no_lidar"])


def test_views_that_are_decoded_together_keep_their_own_detections(detector, views, monkeypatch):
    """As on a GPU, where the order of sums may depend on how many there are."""
    samples = next(views.chunks(0, 1))
    shown = detector.resize(views.of(samples))
    several = under(detector, plans(detector))
    apart = compare(several, shown)
    decoded = []
    monkeypatch.setattr(inference, "_groups", lambda features: iter([features]))
    monkeypatch.setattr(Predictor, "decode", watched(Predictor.decode, decoded))
    together = compare(several, shown)
    assert decoded == [len(CONDITIONS) * len(samples)] * len(several)
    for one, other in zip(apart, together, strict=True):
        assert list(one) == list(other)
        for condition, detections in one.items():
            for frame, same_frame in zip(detections, other[condition], strict=True):
                assert np.array_equal(frame.labels, same_frame.labels)
                assert np.allclose(frame.boxes, same_frame.boxes, rtol=1e-4, atol=1e-4)
                assert np.allclose(frame.scores, same_frame.scores, rtol=1e-4, atol=1e-6)


def test_what_cameras_and_weights_decide_is_computed_once_for_all_conditions(detector, views, monkeypatch):
    calls = []
    for name in ("_embed_keys", "_embed_queries"):
        monkeypatch.setattr(CmtAqrHead, name, counted(getattr(CmtAqrHead, name), calls))
    samples = next(views.chunks(0, 1))
    compare([detector], detector.resize(views.of(samples)))
    assert sorted(calls) == ["_embed_keys", "_embed_queries"]
    compare([detector], detector.resize(views.of(samples)))
    assert len(calls) == 4, "weights may have changed in between"
    detector.run(detector.prepare(samples))
    assert len(calls) == 6, "and after it"


def test_other_cameras_have_position_embeddings_of_their_own(detector, views):
    one = next(views.chunks(0, 1))[0]
    other = replace(one, lidar2img=one.lidar2img * np.array([[1.1], [1], [1], [1]]))
    alone = [detector.run(detector.prepare([frame])) for frame in (one, other)]
    with detector.same_weights():
        together = [detector.run(detector.prepare([frame])) for frame in (one, other)]
    assert all(map(same, alone, together))
    assert not same(*alone)


def counted(method, calls):
    def count(self, *given):
        calls.append(method.__name__)
        return method(self, *given)

    return count


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_all_views_of_a_small_model_at_once(trial, views, monkeypatch):
    settings, decoded = trial(), []
    torch.manual_seed(0)
    model = build_model(settings.config, settings.overrides, settings.plan, "cuda").to("cuda")
    detector = Predictor(model, model.image_size)
    samples = next(views.chunks(0, 1))
    shown = detector.resize(views.of(samples))
    alone = {name: detector.run(detector.prepare([v.sample for v in one])) for name, one in shown.items()}
    monkeypatch.setattr(Predictor, "decode", watched(Predictor.decode, decoded))
    (together,) = compare([detector], shown)
    assert decoded == [len(CONDITIONS) * len(samples)]
    for condition, frames in alone.items():
        for frame, same_frame in zip(frames, together[condition], strict=True):
            assert np.allclose(frame.scores, same_frame.scores, atol=1e-3), "sums in another order"


def watched(decode, decoded):
    def watch(self, points, images, samples):
        decoded.append(len(samples))
        return decode(self, points, images, samples)

    return watch


@pytest.mark.parametrize(
    ("on_gpu", "keys", "groups"),
    [
        (True, 100, [["a", "b", "c"]]),
        (True, 40, [["a", "b"], ["c"]]),
        (True, 1, [["a"], ["b"], ["c"]]),
        (False, 100, [["a"], ["b"], ["c"]]),
    ],
)
def test_views_are_decoded_together_on_a_gpu_within_a_number_of_keys(monkeypatch, on_gpu, keys, groups):
    monkeypatch.setattr(inference, "MOST_KEYS", keys)

    def maps(*shape):
        empty = torch.empty(shape)
        return SimpleNamespace(shape=empty.shape, numel=empty.numel, is_cuda=on_gpu)

    view = maps(2, 8, 2, 3), maps(2 * 2, 8, 1, 2)  # 2 frames with 6 BEV cells and 2 cameras of 2 cells
    found = list(inference._groups(dict.fromkeys("abc", view)))
    assert [list(group) for group in found] == groups


def test_each_branch_runs_once_per_input(detector, views):
    runs = {"points": 0, "images": 0}

    def count(name):
        def hook(*_):
            runs[name] += 1

        return hook

    detector.model.pts_branch.register_forward_hook(count("points"))
    detector.model.img_backbone.register_forward_hook(count("images"))
    source = views.source
    joined = replace(views, source=[source[i] for i in (0, 1, 0, 1, 0, 1, 0, 1)])
    predict_each(under(detector, plans(detector)), joined, LocalSession(None))
    # two chunks, each with the points as they are and those of four failures, the images as they are, one
    # camera lost and dirt on all; seen once for all: no points, black
    assert runs == {"points": 2 * 5 + 1, "images": 2 * 3 + 1}


def test_every_frame_is_there_under_every_condition(detector, views):
    found = predict(detector, views, LocalSession(None))
    assert list(found) == list(CONDITIONS)
    for poses, detections in found.values():
        assert [pose.token for pose in poses] == list(views.source.tokens)
        assert len(detections) == len(poses)
