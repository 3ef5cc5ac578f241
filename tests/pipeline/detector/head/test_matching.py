"""Matching: against published numbers, and the laws it obeys."""

import pytest
import torch

from pipeline.detector.head.box_coder import encode_boxes
from pipeline.detector.head.matching import HungarianAssigner3D
from pipeline.detector.head.targets import Targets

WEIGHTS = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
COST = 5e-5  # largest difference between the published costs in fp32 and fp64


def assigner(**more):
    return HungarianAssigner3D(
        {"type": "FocalLossCost", "weight": 2.0}, {"type": "BBox3DL1Cost", "weight": 0.25}, WEIGHTS, **more
    )


def pairs(matched):
    """Return the matched queries of a sample, ascending, and their boxes."""
    query = (matched >= 0).nonzero().squeeze(1)
    return query, matched[query]


@pytest.mark.parametrize("places", [1, 16])
@pytest.mark.parametrize("name", ["loss", "loss_nanvel", "loss_empty"])
def test_costs_and_matchings_are_the_published_ones(parity, published, name, places):
    data = parity.load(name)
    boxes, labels = published.ground_truth(data)
    codes, logits = published.codes(data, "pred"), data["pred_cls_logits"]
    matched = assigner().assign(codes, logits, Targets.of(boxes, labels, places))
    for b in (0, 1):
        cls, reg = assigner().costs(codes[:, b], logits[:, b], encode_boxes(boxes[b])[None], labels[b][None])
        for layer in range(6):
            query, box = pairs(matched[layer, b])
            assert torch.equal(query, data[f"match_l{layer}_s{b}_query"])
            assert torch.equal(box, data[f"match_l{layer}_s{b}_gt"])
            if len(boxes[b]):
                assert (cls[layer].mT - data[f"cost_cls_l{layer}_s{b}"]).abs().max() <= COST
                assert (reg[layer].mT - data[f"cost_reg_l{layer}_s{b}"]).abs().max() <= COST


def case(queries=9, boxes=4):
    codes, logits = torch.randn(1, 1, queries, 10), torch.randn(1, 1, queries, 10)
    return codes, logits, [torch.rand(boxes, 9) + 0.5], [torch.randint(0, 10, (boxes,))]


def matched_pairs(codes, logits, boxes, labels):
    return pairs(assigner().assign(codes, logits, Targets.of(boxes, labels))[0, 0])


def test_queries_may_come_in_any_order():
    codes, logits, *truth = case()
    order = torch.randperm(9)
    first = set(zip(*(x.tolist() for x in matched_pairs(codes, logits, *truth)), strict=True))
    query, box = matched_pairs(codes[:, :, order], logits[:, :, order], *truth)
    assert set(zip(order[query].tolist(), box.tolist(), strict=True)) == first


def test_no_permutation_costs_less():
    from itertools import permutations

    codes, logits, boxes, labels = case(queries=5, boxes=3)
    cost = sum(assigner().costs(codes[:, 0], logits[:, 0], encode_boxes(boxes[0])[None], labels[0][None]))[0]
    best = min(sum(cost[g, q] for g, q in enumerate(p)) for p in permutations(range(5), 3))
    query, box = matched_pairs(codes, logits, boxes, labels)
    torch.testing.assert_close(cost[box, query].sum(), best)


def test_velocity_takes_no_part():
    codes, logits, boxes, labels = case()
    boxes[0][:, 7:] = torch.nan
    assert len(matched_pairs(codes, logits, boxes, labels)[0]) == 4


def test_more_boxes_than_queries_match_every_query():
    query, box = matched_pairs(*case(queries=3, boxes=5))
    assert query.tolist() == [0, 1, 2]
    assert len(set(box.tolist())) == 3


def test_a_cost_that_is_not_finite_is_refused():
    codes, logits, boxes, labels = case()
    boxes[0][1, 3] = torch.inf
    with pytest.raises(FloatingPointError, match="sample 0 is not finite"):
        matched_pairs(codes, logits, boxes, labels)


def test_an_iou_cost_with_weight_is_refused():
    with pytest.raises(ValueError, match="expected weight 0"):
        assigner(iou_cost={"type": "IoUCost", "weight": 1.0})
