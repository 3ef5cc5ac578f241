"""The image neck against published numbers."""

from typing import Any

import pytest
import torch

from pipeline.detector.image import CPFPN, ChannelError


@pytest.mark.parametrize(("setting", "channels"), [("vov", [768, 1024]), ("r50", [1024, 2048])])
def test_cpfpn_gives_the_published_numbers(parity: Any, setting: str, channels: list[int]) -> None:
    golden = parity.load("cpfpn")
    neck = parity.fill(CPFPN(channels, 256), "img_neck.")
    with torch.no_grad():
        out = neck((golden[f"{setting}_in0"], golden[f"{setting}_in1"]))
    # 1e-4: the tolerance that the golden data suggest for activations of this size
    torch.testing.assert_close(out[0], golden[f"{setting}_out0"], rtol=0, atol=1e-4)
    torch.testing.assert_close(out[1], golden[f"{setting}_out1"], rtol=0, atol=1e-4)


def test_cpfpn_has_the_published_keys(parity: Any) -> None:
    published = {
        k.removeprefix("img_neck."): v for k, v in parity.keys("vov").items() if k.startswith("img_neck.")
    }
    assert {k: tuple(v.shape) for k, v in CPFPN([768, 1024], 256).state_dict().items()} == published


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
