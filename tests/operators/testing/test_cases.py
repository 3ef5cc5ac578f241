"""Cases refuse a bias kind that they do not know, so that no new kind goes untested."""

import pytest
import torch

from operators.spec import BIAS_KINDS
from operators.testing.cases import Sizes, make_case

SIZES = Sizes(batch=1, heads=1, queries=3, head_size=16, bev=(3, 3), cameras=(1, 2, 2))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight of the kind 'stripes'"):
        make_case("stripes", SIZES, torch.float32)


@pytest.mark.parametrize("kind", [kind for kind in BIAS_KINDS if kind != "none"])
def test_every_kind_but_none_has_a_bias(kind: str) -> None:
    case = make_case(kind, SIZES, torch.float32)
    assert case.bias(case.leaves.get("weight")) is not None
