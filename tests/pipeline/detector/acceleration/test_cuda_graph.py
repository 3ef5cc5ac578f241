"""What a CUDA graph captures is a function of tensors; replayed, it detects the same bits."""

import logging
from typing import Any

import pytest
import torch

from pipeline.config.plan import Plan
from pipeline.detector.acceleration.cuda_graph import CAPTURED, Graphs
from pipeline.detector.build import build_model
from pipeline.detector.deployment import for_inference, use_graphs
from pipeline.detector.openmmlab.data_samples import collate, read_meta
from pipeline.detector.transformer.position_encoding import Cameras
from pipeline.evaluation.inference import Predictor
from pipeline.training.benchmark import named_plans

CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"

PLANS = named_plans(cuda=True)


def test_what_is_captured_is_a_function_of_tensors(make_sample: Any) -> None:
    model = build_model(CONFIG)
    head, calls = model.pts_bbox_head, []
    with torch.inference_mode():
        for seed in (0, 1):
            batch = model.data_preprocessor(collate([make_sample(seed)]), False)
            features, meta = model.extract_feat(batch["inputs"]), read_meta(batch["data_samples"])
            cameras = Cameras.of(meta[0], torch.device("cpu"))
            inputs = (*features, cameras.lidar2img, cameras.inverse)
            output = head(*features, *meta, last_only=True).matching
            (expected,) = head.bbox_coder.decode(output.codes[-1], output.logits[-1])
            (found,) = head.predict(*features, batch["data_samples"])
            calls.append((inputs, meta[1], head.detect(*inputs, meta[1])))
            (kept,) = head.bbox_coder.keep(*calls[-1][2])
            for boxes, scores in (
                (found.bboxes_3d.tensor[:, 3:], found.scores_3d),
                (kept.boxes[:, 3:], kept.scores),
            ):
                assert torch.equal(boxes, expected.boxes[:, 3:])
                assert torch.equal(scores, expected.scores)
        for inputs, pad_hw, before in calls:  # nothing else than the inputs decides
            again = head.detect(*inputs, pad_hw)
            assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True))
    assert not torch.equal(calls[0][2][1], calls[1][2][1])


def test_a_cpu_has_no_graphs() -> None:
    model = use_graphs(build_model(CONFIG))
    assert model.graphs is None
    assert model.pts_bbox_head.graphs is None


def test_what_was_never_captured_is_refused_in_a_line_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Graphs()
    with caplog.at_level(logging.WARNING):
        assert graphs.admit(sorted(CAPTURED))
        assert not caplog.records
        assert not graphs.admit(["rects", "flex"])
        assert not graphs.admit(["flex", "rects"])
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == [
        "the head runs without a CUDA graph: no test has captured flex"
    ]


def on_gpu(plan: Plan) -> Any:
    """A detector made for inference on the GPU, without graphs."""
    model = build_model(CONFIG, plan=plan, device="cuda", dtype="bfloat16").cuda()
    model.pts_bbox_head.bias_generator.bias_scale.data.fill_(5.0)
    return for_inference(model, torch.bfloat16)


def same(found: Any, expected: Any) -> bool:
    """Whether two detections have the same bits, and boxes at all."""
    pairs = [(getattr(found, n), getattr(expected, n)) for n in ("boxes", "scores", "labels")]
    return len(found.scores) > 0 and all(a.shape == b.shape and (a == b).all() for a, b in pairs)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SDPA = {impl: Plan.of({"*": f"none/{impl}"}) for impl in ("sdpa_cudnn", "sdpa_math")}
"""What no plan of a race has."""


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", [*PLANS, *SDPA])
def test_a_replay_detects_the_same_bits(name: str, make_sample: Any) -> None:
    model = on_gpu((PLANS | SDPA)[name])
    detector = Predictor(model, model.image_size, amp=True)
    batches = [collate([make_sample(seed)]) for seed in (0, 1, 2)]
    expected = [detector.run(batch)[0] for batch in batches]
    assert not same(expected[0], expected[1])
    use_graphs(model)
    for i in (0, 1, 2, 1, 0):
        assert same(detector.run(batches[i])[0], expected[i])
    assert len(model.graphs) == 2  # the images and the head; PillarBranch is not captured


@needs_gpu
@pytest.mark.gpu
def test_another_plan_and_another_batch_are_captured_anew(make_sample: Any) -> None:
    model = on_gpu(PLANS["rects"])
    detector = Predictor(model, model.image_size, amp=True)
    batches = [collate([make_sample(0)]), collate([make_sample(1), make_sample(2)])]
    expected = {}
    for name in ("rects", "plain"):
        model.apply_plan(PLANS[name], "cuda", "bfloat16")
        expected[name] = [detector.run(batch) for batch in batches]
    assert not same(expected["rects"][0][0], expected["plain"][0][0])
    use_graphs(model)
    for name in ("plain", "rects", "plain"):
        model.apply_plan(PLANS[name], "cuda", "bfloat16")
        for batch, wanted in zip(batches, expected[name], strict=True):
            assert all(same(f, e) for f, e in zip(detector.run(batch), wanted, strict=True))
    assert len(model.graphs) == 2 + 4


@needs_gpu
@pytest.mark.gpu
def test_the_oldest_graph_goes_first() -> None:
    graphs, x = Graphs(most=2), torch.ones(3, device="cuda")
    for key in (1, 2, 1, 3, 2, 1):  # 3 drops 2, 2 drops 1, 1 drops 3
        (found,) = graphs.run("part", key, lambda a, key=key: (a * key,), (x * key,))
        assert found.tolist() == [key * key] * 3
    assert len(graphs) == 2
