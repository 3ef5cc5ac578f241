"""Matching: against published numbers, and the laws it obeys."""

import pytest
import torch

from pipeline.detector.head.box_coder import encode_boxes
from pipeline.detector.head.matching import HungarianAssigner3D

WEIGHTS = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
COST = 5e-5  # largest difference between the published costs in fp32 and fp64


def assigner(**more):
    return HungarianAssigner3D(
        {"type": "FocalLossCost", "weight": 2.0}, {"type": "BBox3DL1Cost", "weight": 0.25}, WEIGHTS, **more
    )


@pytest.mark.parametrize("name", ["loss", "loss_nanvel", "loss_empty"])
def test_costs_and_matchings_are_the_published_ones(parity, published, name):
    data = parity.load(name)
    boxes, labels = published.ground_truth(data)
    codes, logits = published.codes(data, "pred"), data["pred_cls_logits"]
    targets = [encode_boxes(b) for b in boxes]
    matched = assigner().assign(codes, logits, targets, labels)
    for b in (0, 1):
        cls, reg = assigner().costs(codes[:, b], logits[:, b], targets[b], labels[b])
        for layer in range(6):
            pair = matched[layer][b]
            assert torch.equal(pair.query, data[f"match_l{layer}_s{b}_query"])
            assert torch.equal(pair.gt, data[f"match_l{layer}_s{b}_gt"])
            if len(boxes[b]):
                assert (cls[layer] - data[f"cost_cls_l{layer}_s{b}"]).abs().max() <= COST
                assert (reg[layer] - data[f"cost_reg_l{layer}_s{b}"]).abs().max() <= COST


def case(queries=9, boxes=4):
    codes, logits = torch.randn(1, 1, queries, 10), torch.randn(1, 1, queries, 10)
    return codes, logits, [torch.randn(boxes, 10)], [torch.randint(0, 10, (boxes,))]


def test_queries_may_come_in_any_order():
    codes, logits, targets, labels = case()
    order = torch.randperm(9)
    first = assigner().assign(codes, logits, targets, labels)[0][0]
    again = assigner().assign(codes[:, :, order], logits[:, :, order], targets, labels)[0][0]
    pairs = set(zip(first.query.tolist(), first.gt.tolist(), strict=True))
    assert {(int(order[q]), g) for q, g in zip(again.query.tolist(), again.gt.tolist(), strict=True)} == pairs


def test_no_permutation_costs_less():
    from itertools import permutations

    codes, logits, targets, labels = case(queries=5, boxes=3)
    cost = sum(assigner().costs(codes[:, 0], logits[:, 0], targets[0], labels[0]))[0]
    best = min(sum(cost[q, g] for g, q in enumerate(p)) for p in permutations(range(5), 3))
    pair = assigner().assign(codes, logits, targets, labels)[0][0]
    torch.testing.assert_close(cost[pair.query, pair.gt].sum(), best)


def test_velocity_takes_no_part():
    codes, logits, targets, labels = case()
    targets[0][:, 8:] = torch.nan
    assert len(assigner().assign(codes, logits, targets, labels)[0][0].query) == 4


def test_more_boxes_than_queries_match_every_query():
    pair = assigner().assign(*case(queries=3, boxes=5))[0][0]
    assert pair.query.tolist() == [0, 1, 2]
    assert len(set(pair.gt.tolist())) == 3


def test_a_cost_that_is_not_finite_is_refused():
    codes, logits, targets, labels = case()
    targets[0][1, 3] = torch.inf
    with pytest.raises(FloatingPointError, match="sample 0 is not finite"):
        assigner().assign(codes, logits, targets, labels)


def test_an_iou_cost_with_weight_is_refused():
    with pytest.raises(ValueError, match="expected weight 0"):
        assigner(iou_cost={"type": "IoUCost", "weight": 1.0})
