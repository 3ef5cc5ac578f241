"""Every implementation, on every bias it does not object to, equals the fp64 reference and obeys the laws.

Cases come from the implementations' own objections: a new one adds no line here.
"""

import pytest
import torch

from operators.spec import BIAS_KINDS, IMPLEMENTATIONS
from operators.testing import Sizes, check_case, gradients_served, make_case

ODD = Sizes(2, 3, 65, 32, bev=(7, 9), cameras=(2, 3, 5), window=(4, 3))  # K = 93: no multiple of any tile
SIZES = [
    ODD,
    Sizes(1, 2, 33, 16, bev=(7, 9), cameras=(2, 3, 5), window=(3, 2), bias_per_head=True),
    Sizes(1, 1, 1, 64, bev=(4, 5), cameras=(1, 2, 3), window=(5, 5)),  # one query
    Sizes(1, 2, 40, 32, bev=(6, 6), cameras=(2, 4, 4), window=(15, 8), placement="borders"),
    Sizes(1, 2, 70, 32, bev=(9, 9), cameras=(2, 4, 4), window=(3, 3), placement="one_cell"),
    Sizes(2, 1, 20, 24, bev=(5, 5), cameras=(3, 3, 3), placement="nowhere"),
    Sizes(1, 2, 30, 128, bev=(16, 9), cameras=(0, 1, 1), window=(5, 5)),  # no cameras, the largest head
]
REAL = [
    Sizes(1, 8, 900, 32, bev=(128, 128), cameras=(6, 20, 50), window=(8, 8)),  # r50
    Sizes(
        1, 4, 1730, 32, bev=(180, 180), cameras=(6, 40, 100), window=(15, 15)
    ),  # vov, with denoising queries
]
DTYPES = {
    "cpu": [torch.float32, torch.bfloat16, torch.float16],
    "cuda": [torch.float32, torch.bfloat16, torch.float16],
}
PAIRS = [pytest.param(impl, kind, id=f"{impl}-{kind}") for impl in IMPLEMENTATIONS for kind in BIAS_KINDS]


def served(impl, kind, sizes, dtype, device):
    """Draw the case, or skip with the implementation's own reasons."""
    from operators.registry import objections

    case = make_case(kind, sizes, dtype, device)
    grads = gradients_served(impl, case)
    if grads is None:
        pytest.skip("; ".join(objections(impl, case.request(False, False))))
    return case, grads


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("impl", "kind"), PAIRS)
def test_equals_the_reference(impl, kind, sizes, device):
    for dtype in DTYPES[device]:
        case = make_case(kind, sizes, dtype, device)
        grads = gradients_served(impl, case)
        if grads is not None:
            check_case(case, impl, grads)
