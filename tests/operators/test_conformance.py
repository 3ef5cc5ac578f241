"""Every implementation, on every bias it does not object to, equals the fp64 reference and obeys the laws.

Cases come from the implementations' own objections: a new one adds no line here.
"""

from dataclasses import replace

import pytest
import torch

from operators.registry import objections
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS
from operators.testing import laws
from operators.testing.cases import Sizes, check_case, gradients_served, make_case, outputs_and_grads
from operators.testing.oracle import make_oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ODD = Sizes(2, 3, 65, 32, bev=(7, 9), cameras=(2, 3, 5), window=(4, 3))  # K = 93: no multiple of any tile
SMALL = Sizes(1, 2, 19, 16, bev=(5, 4), cameras=(2, 3, 3), window=(3, 2))
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
    Sizes(1, 4, 900, 32, bev=(128, 128), cameras=(6, 20, 50), window=(8, 8)),  # r50
    Sizes(1, 2, 1730, 32, bev=(180, 180), cameras=(6, 40, 100), window=(15, 15)),  # vov, denoising queries
]
# Triton's interpreter takes seconds for what a GPU does in microseconds: small cases there (the kernel
# has tests of its own).
INTERPRETED = [
    SMALL,
    replace(SMALL, placement="borders", bias_per_head=True, batch=2, heads=1),
    replace(SMALL, placement="nowhere", queries=1),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MARKS = {"flash": pytest.mark.filterwarnings("ignore")}  # flash-attn-4's packages warn about one another
WEIGHTED = ("global", "window", "gaussian", "dense")


def served(impl, kind, sizes, dtype=torch.float32):
    """Say whether an implementation gives anything for a case."""
    return gradients_served(impl, make_case(kind, sizes, dtype, DEVICE)) is not None


def pairs(kinds, dtypes=DTYPES):
    """List (implementation, kind) without an objection in some dtype."""
    return [
        pytest.param(impl, kind, id=f"{impl}-{kind}", marks=MARKS.get(impl, ()))
        for impl in IMPLEMENTATIONS
        for kind in kinds
        if any(served(impl, kind, SMALL, dtype) for dtype in dtypes)
    ]


def case_of(impl, kind, sizes, seed=0):
    """Draw a case in the first dtype that the implementation takes."""
    dtype = next((dtype for dtype in DTYPES if served(impl, kind, sizes, dtype)), None)
    if dtype is None:
        pytest.skip(f"{impl} objects to {sizes}")
    return make_case(kind, sizes, dtype, DEVICE, seed)


def interpreted(impl):
    return impl == "rects" and DEVICE == "cpu"


@pytest.mark.parametrize(
    ("impl", "kind", "sizes"),
    [
        pytest.param(*pair.values, sizes, id=f"{pair.id}-{sizes}", marks=pair.marks)
        for pair in pairs(BIAS_KINDS)
        for sizes in (INTERPRETED if interpreted(pair.values[0]) else SIZES)
    ],
)
def test_equals_the_reference(impl, kind, sizes):
    for dtype in DTYPES[:1] if interpreted(impl) else DTYPES:
        case = make_case(kind, sizes, dtype, DEVICE)
        grads = gradients_served(impl, case)
        if grads is not None:
            check_case(case, impl, grads)


@pytest.mark.parametrize(("impl", "kind"), pairs(WEIGHTED))
def test_a_bias_learns_where_nothing_else_does(impl, kind):
    """With the decoder frozen, the bias is all that requires a gradient."""
    case = case_of(impl, kind, SMALL)
    if objections(impl, case.request(qkv_grad=False)):
        pytest.skip(f"{impl} gives the {kind} bias no gradient")
    check_case(case, impl, "bias")


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the decoder's real shapes take a GPU")
@pytest.mark.parametrize("sizes", REAL, ids=str)
@pytest.mark.parametrize(("impl", "kind"), pairs(BIAS_KINDS))
def test_equals_the_reference_at_real_shapes(impl, kind, sizes):
    case = make_case(kind, sizes, torch.bfloat16, DEVICE)
    grads = gradients_served(impl, case)
    if grads is None:
        pytest.skip(f"{impl} does not take bfloat16")
    check_case(case, impl, grads)


@pytest.mark.parametrize(("impl", "kind"), pairs(WEIGHTED))
def test_zero_weight_is_no_bias(impl, kind):
    laws.zero_weight_is_no_bias(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(("global", "window", "dense")))
def test_equal_weights_are_no_bias(impl, kind):
    laws.equal_weights_are_no_bias(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(BIAS_KINDS))
def test_key_order_does_not_matter(impl, kind):
    laws.key_order_does_not_matter(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(BIAS_KINDS))
def test_key_splits_unite(impl, kind):
    laws.key_splits_unite(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(("window",)))
def test_whole_windows_are_global(impl, kind):
    laws.whole_windows_are_global(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(("local",)))
def test_local_mask_is_a_gather(impl, kind):
    laws.local_mask_is_a_gather(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize("placement", ["spread", "nowhere"])
@pytest.mark.parametrize(("impl", "kind"), pairs(("local",)))
def test_queries_without_keys_give_zero(impl, kind, placement):
    laws.queries_without_keys_give_zero(impl, case_of(impl, kind, replace(SMALL, placement=placement)))


@pytest.mark.parametrize(("impl", "kind"), pairs(WEIGHTED))
def test_shared_weights_are_repeated_weights(impl, kind):
    laws.shared_weights_are_repeated_weights(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(("global", "window", "dense", "local")))
def test_largest_score_can_be_ruled_out(impl, kind):
    laws.largest_score_can_be_ruled_out(impl, case_of(impl, kind, SMALL))


@pytest.mark.parametrize(("impl", "kind"), pairs(BIAS_KINDS))
def test_one_key_is_copied(impl, kind):
    sizes = Sizes(1, 2, 5, 16, bev=(1, 1), cameras=(0, 1, 1), placement="one_cell")
    case = case_of(impl, kind, sizes)
    out = outputs_and_grads(case, impl, grads="none")["out"]
    make_oracle(case.leaves, case.bias).check({"out": out})


@pytest.mark.parametrize(("impl", "kind"), pairs(BIAS_KINDS))
def test_takes_tensors_that_are_not_contiguous(impl, kind):
    case = case_of(impl, kind, SMALL)
    turned = {n: leaf.mT.contiguous().mT if n in "qkv" else leaf for n, leaf in case.leaves.items()}
    heads_last = {n: leaf.transpose(1, 2).contiguous().transpose(1, 2) for n, leaf in case.leaves.items()}
    for leaves in (turned,) if interpreted(impl) else (turned, heads_last):
        check_case(replace(case, leaves=leaves), impl, gradients_served(impl, case))
