"""Box codes: against published numbers, and back and forth."""

import pytest
import torch

from pipeline.detector.head.box_coder import MultiTaskBBoxCoder, decode_boxes, encode_boxes

RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
KEPT = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]


def test_decoding_is_the_published_one(parity, published):
    data = parity.load("coder")
    coder = MultiTaskBBoxCoder(RANGE, KEPT, int(data["coder_max_num"]), 10)
    found = coder.decode(published.codes(data, "coder_in")[-1], data["coder_in_cls_logits"][-1])
    for b, decoded in enumerate(found):
        assert torch.equal(decoded.labels, data[f"coder_out{b}_labels"])
        torch.testing.assert_close(decoded.scores, data[f"coder_out{b}_scores"])
        torch.testing.assert_close(decoded.boxes, data[f"coder_out{b}_boxes_gravity"])


def test_decode_undoes_encode():
    boxes = torch.rand(20, 9) * 5 + 0.1
    boxes[:, 6] = torch.linspace(-3.1, 3.1, 20)
    torch.testing.assert_close(
        decode_boxes(encode_boxes(boxes)), boxes, rtol=1e-5, atol=1e-6
    )  # exp(log) in fp32


def test_channels_mean_what_the_checkpoints_mean():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5, 7.0, 8.0]])
    log = torch.log(box[0, 3:6])
    expected = torch.tensor([1.0, 2.0, log[0], log[1], 3.0, log[2], 0.4794255, 0.8775826, 7.0, 8.0])
    torch.testing.assert_close(encode_boxes(box)[0], expected)


def test_fewer_queries_than_max_num_are_all_kept():
    coder = MultiTaskBBoxCoder(RANGE, KEPT, 300, 10)
    (found,) = coder.decode(torch.zeros(1, 4, 10), torch.randn(1, 4, 10))
    assert len(found.scores) == 40
    assert (found.scores.diff() <= 0).all()


def test_a_box_that_is_no_number_is_not_hidden():
    """Without it a model that has diverged would detect nothing, and nobody would say so."""
    coder, codes = MultiTaskBBoxCoder(RANGE, KEPT, 300, 10), torch.zeros(1, 4, 10)
    codes[0, 1, 0] = torch.nan
    codes[0, 2, 0] = torch.inf
    (found,) = coder.decode(codes, torch.randn(1, 4, 10))
    assert len(found.boxes) == 30
    assert int(found.boxes.isnan().any(dim=1).sum()) == 10


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValueError, match=r"bbox_coder\.pc_range"):
        MultiTaskBBoxCoder(RANGE[3:] + RANGE[:3], KEPT, 300, 10)
