"""Losses: against published numbers, and the laws they obey."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from pipeline.detector.head.denoising import DenoisingQueries, DenoisingSettings
from pipeline.detector.head.losses import SetCriterion
from pipeline.detector.head.matching import HungarianAssigner3D
from pipeline.detector.head.predictions import Predictions

LOSS = 1e-5  # relative; an independent fp64 recomputation came within 1e-6
WEIGHTS = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]


def criterion():
    assigner = HungarianAssigner3D(
        {"type": "FocalLossCost", "weight": 2.0}, {"type": "BBox3DL1Cost", "weight": 0.25}, WEIGHTS
    )
    share = DenoisingSettings().positive_share
    cls = {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 2.0}
    return SetCriterion(assigner, cls, {"type": "L1Loss", "loss_weight": 0.25}, WEIGHTS, 1.0, share)


def random_case(counts=(3, 2), layers=2, queries=7):
    boxes = [torch.rand(n, 9) * 4 + 0.5 for n in counts]
    labels = [torch.randint(0, 10, (n,)) for n in counts]
    codes = torch.randn(layers, len(counts), queries, 10, requires_grad=True)
    logits = torch.randn(layers, len(counts), queries, 10, requires_grad=True)
    return Predictions(codes, logits), boxes, labels


@pytest.mark.parametrize("name", ["loss", "loss_nanvel", "loss_empty"])
def test_losses_are_the_published_ones(parity, published, name):
    data = parity.load(name)
    boxes, labels = published.ground_truth(data)
    matching = Predictions(published.codes(data, "pred"), data["pred_cls_logits"])
    queries = DenoisingQueries(
        int(data["dn_groups"]),
        int(data["dn_slots_per_group"]),
        data["dn_known_batch"],
        data["dn_known_slot"],
        data["dn_known_labels"],
        data["dn_known_boxes_gravity"],
        torch.empty(0),
    )
    noised = Predictions(published.codes(data, "dnpred"), data["dnpred_cls_logits"])
    losses = criterion()(matching, boxes, labels, (noised, queries))
    for key in ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox"):
        got = torch.stack([losses[key if layer == 5 else f"d{layer}.{key}"] for layer in range(6)])
        torch.testing.assert_close(got, data[key], rtol=LOSS, atol=0)


def test_keys_name_every_layer():
    losses = criterion()(*random_case(layers=3))
    kinds = ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox")
    assert set(losses) == {prefix + kind for prefix in ("", "d0.", "d1.") for kind in kinds}


def test_a_batch_without_boxes_charges_classes_alone():
    predictions, boxes, labels = random_case(counts=(0, 0))
    losses = criterion()(predictions, boxes, labels)
    assert losses["loss_cls"] > 0
    assert losses["loss_bbox"] == 0
    sum(losses.values()).backward()
    assert predictions.logits.grad.abs().min() > 0
    assert not predictions.codes.grad.any()


def test_gradient_reaches_all_logits_and_matched_codes_alone():
    predictions, boxes, labels = random_case(counts=(3, 2), layers=2, queries=7)
    sum(criterion()(predictions, boxes, labels).values()).backward()
    assert predictions.logits.grad.abs().min() > 0
    touched = predictions.codes.grad.abs().sum(dim=-1) > 0
    assert touched.sum(dim=-1).tolist() == [[3, 2], [3, 2]]


def test_a_perfect_prediction_costs_no_box_loss():
    from pipeline.detector.head.box_coder import encode_boxes

    _, boxes, labels = random_case(counts=(4,))
    codes = encode_boxes(boxes[0])[None, None]
    logits = torch.full((1, 1, 4, 10), -20.0)
    logits[0, 0, torch.arange(4), labels[0]] = 20.0
    losses = criterion()(Predictions(codes, logits), boxes, labels)
    assert losses["loss_bbox"] == 0
    assert losses["loss_cls"] < 1e-12  # (1 - p)^2 log p at a logit of 20


def test_a_nan_velocity_leaves_only_the_box_loss_of_its_own_box():
    predictions, boxes, labels = random_case(counts=(3,))
    boxes[0][1, 7:] = torch.nan
    losses = criterion()(predictions, boxes, labels)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert predictions.codes.grad.isfinite().all()
    assert (predictions.codes.grad.abs().sum(dim=-1) > 0).sum().item() == 2 * 2  # two boxes, two layers


@pytest.mark.parametrize("part", ["codes", "logits"])
def test_nan_predictions_are_refused_and_not_replaced(part):
    predictions, boxes, labels = random_case(layers=3)
    getattr(predictions, part).data[1, 0, 2, 9] = torch.nan
    with pytest.raises(FloatingPointError, match="decoder layer 1 predicts NaN"):
        criterion()(predictions, boxes, labels)


def test_order_of_boxes_does_not_matter():
    predictions, boxes, labels = random_case()
    order = torch.tensor([2, 0, 1])
    once = criterion()(predictions, boxes, labels)
    again = criterion()(predictions, [boxes[0][order], boxes[1]], [labels[0][order], labels[1]])
    for key, value in once.items():
        torch.testing.assert_close(again[key], value)


def test_configs_nobody_reads_are_refused():
    with pytest.raises(ValueError, match="unknown keys beta"):
        SetCriterion(
            criterion().assigner, {"type": "FocalLoss", "beta": 1}, {"type": "L1Loss"}, WEIGHTS, 1.0, 0.2
        )
    with pytest.raises(ValueError, match="expected 10 numbers"):
        SetCriterion(criterion().assigner, {"type": "FocalLoss"}, {"type": "L1Loss"}, WEIGHTS[:8], 1.0, 0.2)


def charge(samples):
    """Losses of some samples of a batch of four, one of them without boxes."""
    torch.manual_seed(0)
    predictions, boxes, labels = random_case(counts=(5, 0, 2, 1), queries=8)
    part = Predictions(predictions.codes[:, samples], predictions.logits[:, samples])
    with torch.no_grad():
        losses = criterion()(part, boxes[samples], labels[samples])
    return torch.stack([losses[key] for key in sorted(losses)])


def charge_as_rank(rank, folder):
    torch.set_num_threads(1)  # a forked process cannot use its parent's thread pool
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(charge(slice(2 * rank, 2 * rank + 2)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, in a process with threads
def test_two_ranks_charge_on_average_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    fork = multiprocessing.get_context("fork")  # importing the mm libraries anew would take ten seconds
    ranks = [fork.Process(target=charge_as_rank, args=(rank, tmp_path), daemon=True) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [0, 0]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(sum(halves) / 2, charge(slice(0, 4)))
    assert not torch.allclose(halves[0], halves[1])


def test_each_number_of_a_box_costs_its_own_factor():
    """A box that is wrong in one number alone: its loss is the L1 weight times that number's factor."""
    from pipeline.detector.head.box_coder import encode_boxes

    _, boxes, labels = random_case(counts=(1,))
    logits = torch.full((1, 1, 1, 10), -20.0)
    logits[0, 0, 0, labels[0]] = 20.0
    exact = encode_boxes(boxes[0])[None, None]
    for place, factor in enumerate(WEIGHTS):
        codes = exact.clone()
        codes[..., place] += 0.125
        losses = criterion()(Predictions(codes, logits), boxes, labels)
        assert losses["loss_bbox"].item() == pytest.approx(0.25 * factor * 0.125, rel=1e-4), place
