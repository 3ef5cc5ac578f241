"""The image neck against published numbers, and the grid mask."""

from typing import Any

import pytest
import torch
from mmcv.cnn import ConvModule

from pipeline.detector.backbones.image import CPFPN, ChannelError, GridMask

CNN = 1e-5  # relative to the largest value, as for VoVNet


@pytest.mark.parametrize(("setting", "channels"), [("vov", [768, 1024]), ("r50", [1024, 2048])])
def test_cpfpn_gives_the_published_numbers(
    parity: Any, published: Any, setting: str, channels: list[int]
) -> None:
    golden = parity.load("cpfpn")
    neck = parity.fill(CPFPN(channels, 256), "img_neck.")
    with torch.no_grad():
        out = neck((golden[f"{setting}_in0"], golden[f"{setting}_in1"]))
    for level, value in enumerate(out):
        assert published.relative_error(value, golden[f"{setting}_out{level}"]) <= CNN


def test_cpfpn_has_the_published_keys(parity: Any) -> None:
    published = {
        k.removeprefix("img_neck."): v for k, v in parity.keys("vov").items() if k.startswith("img_neck.")
    }
    assert {k: tuple(v.shape) for k, v in CPFPN([768, 1024], 256).state_dict().items()} == published


def test_a_norm_follows_every_convolution_named_as_in_mmcv() -> None:
    norm = {"type": "BN"}
    neck, reference = CPFPN([4, 8], 6, norm_cfg=norm), ConvModule(4, 6, 1, norm_cfg=norm)
    first = {k.removeprefix("lateral_convs.0.") for k in neck.state_dict() if "lateral_convs.0." in k}
    assert first == set(reference.state_dict())
    finest, _ = neck((100 * torch.randn(3, 4, 8, 8), torch.randn(3, 8, 4, 4)))
    torch.testing.assert_close(finest.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(finest.std(dim=(0, 2, 3)), torch.ones(6), atol=1e-2, rtol=0)


def test_another_number_of_levels_is_refused() -> None:
    with pytest.raises(ChannelError, match="built for 2 levels, got 1"):
        CPFPN([4, 8], 4)((torch.zeros(1, 4, 2, 2),))


def test_the_coarse_level_is_added_by_nearest_neighbour_also_at_odd_sizes() -> None:
    neck = CPFPN([1, 1], 1)
    with torch.no_grad():
        for conv in (*neck.lateral_convs, *neck.fpn_convs):
            conv.conv.bias.zero_()
            conv.conv.weight.zero_()
            conv.conv.weight[0, 0, conv.conv.weight.shape[2] // 2, conv.conv.weight.shape[3] // 2] = (
                1.0  # identity
            )
    fine, coarse = torch.zeros(1, 1, 3, 5), torch.arange(6.0).reshape(1, 1, 2, 3)
    merged, raw = neck((fine, coarse))
    expected = coarse[:, :, [0, 0, 1]][..., [0, 0, 1, 1, 2]]  # floor(i * 2 / 3) and floor(j * 3 / 5)
    assert torch.equal(merged, expected)
    assert torch.equal(raw, coarse)


def test_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(ChannelError, match=r"CPFPN.num_outs: expected 2, one per level, got 4"):
        CPFPN([4, 8], 4, num_outs=4)


def test_the_grid_mask_hides_rectangles_between_stripes_in_training_alone() -> None:
    images = torch.ones(2, 3, 40, 60)
    mask = GridMask(probability=1.0)
    hidden = mask(images)[:, :, :, :]
    assert torch.equal(mask.eval()(images), images)
    assert ((hidden == 0) | (hidden == 1)).all()
    assert torch.equal(hidden, hidden[:1, :1].expand_as(hidden)), "all images and channels alike"
    seen = hidden[0, 0].bool()
    rows, cols = seen.all(dim=1), seen.all(dim=0)  # the stripes
    assert torch.equal(seen, rows[:, None] | cols)


def test_the_grid_mask_hides_a_quarter_and_leaves_three_batches_in_ten() -> None:
    images, mask = torch.ones(1, 1, 64, 64), GridMask()
    shares = torch.stack([mask(images).mean() for _ in range(3000)])
    whole = (shares == 1).double().mean().item()
    # 0.7 * 3000 draws: one standard error is 0.008; a period beyond the image may show no rectangle either
    assert 0.27 < whole < 0.34
    assert abs(1 - shares[shares < 1].mean().item() - 0.25) < 0.04
