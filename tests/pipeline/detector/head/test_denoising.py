"""Denoising queries: against published numbers, and the laws they obey."""

import pytest
import torch

from pipeline.detector.head.denoising import DenoisingSettings, make_denoising_queries

RANGE = torch.tensor([-54.0, -54.0, -5.0, 54.0, 54.0, 3.0])


def make(counts, num_queries=100, rand01=None, **settings):
    boxes = [torch.rand(n, 9) * 4 + 0.5 for n in counts]
    for box in boxes:
        box[:, 2] = -1  # the middle of the range: no noise is cut off
    labels = [torch.randint(0, 10, (n,)) for n in counts]
    made = make_denoising_queries(
        boxes, labels, num_queries, 10, RANGE, DenoisingSettings(**settings), rand01
    )
    return boxes, labels, made


@pytest.fixture
def golden(parity, published):
    data = parity.load("dn")
    boxes, labels = published.ground_truth(data)
    made = make_denoising_queries(boxes, labels, 100, 10, RANGE, DenoisingSettings(), data["rand01"])
    return data, made


def test_bookkeeping_is_the_published_one(golden):
    data, made = golden
    assert (made.groups, made.slots_per_group, made.num_slots) == (9, 11, 99)
    for name in ("batch", "slot", "labels"):
        assert torch.equal(getattr(made, name), data[f"known_{name}"]), name
    assert torch.equal(made.boxes, data["known_boxes_gravity"])


def test_points_and_mask_are_the_published_ones(golden):
    data, made = golden
    torch.testing.assert_close(made.points, data["padded_reference_points"][:, :99], rtol=0, atol=1e-6)
    # atol: one rounding of a centre of 54 m, over the range of 108 m, is 4e-8 in single precision
    assert torch.equal(made.blocked(100), data["attn_mask"])


def test_matching_queries_cannot_see_denoising_ones_but_are_seen():
    _, _, made = make([3, 2], num_queries=12, scalar=4)
    blocked = made.blocked(12)
    p = made.num_slots
    assert blocked[p:, :p].all()
    assert not blocked[:, p:].any()


def test_groups_see_themselves_alone():
    _, _, made = make([3, 2], num_queries=12, scalar=4)
    group = torch.arange(made.num_slots) // made.slots_per_group
    inside = made.blocked(12)[: made.num_slots, : made.num_slots]
    assert torch.equal(inside, group[:, None] != group[None, :])


def test_no_noise_gives_the_ground_truth_back():
    boxes, labels, made = make([3, 2], rand01=torch.full((50, 3), 0.5))
    centre = RANGE[:3] + made.points[made.batch, made.slot] * (RANGE[3:] - RANGE[:3])
    torch.testing.assert_close(
        centre, torch.cat(boxes)[:, :3].repeat(10, 1), rtol=0, atol=1e-4
    )  # 108 m in fp32
    assert torch.equal(made.labels, torch.cat(labels).repeat(10))


def test_noise_stays_in_the_box_and_far_draws_become_background():
    _, labels, made = make([40, 30], num_queries=400)
    centre = RANGE[:3] + made.points[made.batch, made.slot] * (RANGE[3:] - RANGE[:3])
    shift = (centre - made.boxes[:, :3]) / (made.boxes[:, 3:6] / 2)
    assert shift.abs().max() <= 1 + 1e-4  # 108 m in single precision, over half a box of 0.25 m
    background = made.labels == 10
    assert torch.equal(background, shift.norm(dim=1) > 0.75)
    assert 0 < background.sum() < len(background)
    assert torch.equal(made.labels[~background], torch.cat(labels).repeat(made.groups)[~background])


@pytest.mark.parametrize("counts", [[], [0, 0], [101]])
def test_no_boxes_or_too_many_make_no_queries(counts):
    assert make(counts, num_queries=100)[2] is None


def test_a_sample_without_boxes_keeps_empty_slots():
    _, _, made = make([0, 5], num_queries=100)
    assert set(made.batch.tolist()) == {1}
    assert not made.points[0].any()


def test_expected_positive_share_holds():
    _, _, made = make([500], num_queries=5000)
    share = (made.labels != 10).double().mean().item()
    spread = (0.22 * 0.78 / len(made.labels)) ** 0.5
    assert abs(share - DenoisingSettings().positive_share) < 4 * spread  # four standard errors: 1 in 16000
