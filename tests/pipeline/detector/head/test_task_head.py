"""Task heads: their initial boxes, and products in TF32 with the same gradients."""

import torch

from pipeline.detector.head.box_coder import HEADS, decode_boxes
from pipeline.detector.head.task_head import GroupedLinear, SeparateTaskHead, tf32_products


def test_tf32_products_have_the_gradients_of_plain_ones() -> None:
    layer = GroupedLinear(3, 5, 4, bias=True)
    torch.nn.init.normal_(layer.bias)
    found = []
    for wanted in (False, True):  # on a CPU nothing is rounded
        x = torch.randn(2, 1, 7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layer.zero_grad()
        with tf32_products(wanted):
            y = layer(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, layer.weight.grad, layer.bias.grad])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain)


def test_the_switch_comes_back() -> None:
    switch = torch.backends.cuda.matmul
    for before in (False, True):
        switch.allow_tf32 = before
        with tf32_products(False):
            assert switch.allow_tf32 == before
        with tf32_products():
            assert switch.allow_tf32
        assert switch.allow_tf32 == before
    switch.allow_tf32 = False


def test_every_query_starts_with_the_same_box_at_its_reference_point() -> None:
    torch.manual_seed(0)
    head = SeparateTaskHead(256, 10, 6, {name: (channels, 2) for name, channels in HEADS.items()})
    codes, logits = head(torch.randn(6, 1, 100, 256))
    boxes = decode_boxes(codes)
    assert codes[..., :2].abs().max() * 108 / 4 < 1  # m: the range, and the steepest slope of the sigmoid
    torch.testing.assert_close(
        boxes[..., 2:6].mean(dim=(0, 1, 2)), torch.tensor([-0.8, 3.0, 1.5, 1.6]), atol=0.05, rtol=0.05
    )
    assert boxes[..., 2:6].std(dim=2).max() < 0.1
    torch.testing.assert_close(logits, torch.full_like(logits, -2.19), atol=0.1, rtol=0)
