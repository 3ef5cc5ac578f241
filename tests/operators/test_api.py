"""The border of ``attention``: what it refuses and how, and that it works where models call it from."""

import math
import subprocess
import sys

import pytest
import torch

from operators import DenseBias, LocalMask, NoBias, TokenGrid, Unsupported, WindowBias, attention
from operators.api import describe
from operators.testing.cases import Sizes, make_case

SIZES = Sizes(2, 2, 7, 16, bev=(4, 5), cameras=(2, 2, 3), window=(3, 3))


@pytest.fixture
def case():
    return make_case("window", SIZES, torch.float32)


@pytest.fixture
def qkv(case):
    return [case.leaves[name] for name in "qkv"]


def test_none_and_no_bias_are_the_same(qkv):
    assert torch.equal(attention(*qkv, None, impl="reference"), attention(*qkv, NoBias(), impl="reference"))


def test_scale_is_the_root_of_the_head_size_unless_given(qkv):
    out = attention(*qkv, impl="reference")
    assert torch.equal(out, attention(*qkv, impl="reference", scale=16**-0.5))
    assert not torch.equal(out, attention(*qkv, impl="reference", scale=0.3))


@pytest.mark.parametrize("impl", ["sdpa_math", "sdpa_flash"])
def test_scale_reaches_every_implementation(qkv, impl):
    # float32 results of two orders of summation; assert_close's own bounds for the dtype
    torch.testing.assert_close(
        attention(*qkv, impl=impl, scale=0.7), attention(*qkv, impl="reference", scale=0.7)
    )


def test_unsupported_lists_the_request_and_every_objection(case, qkv):
    weight = case.leaves["weight"].clone().requires_grad_()
    with pytest.raises(Unsupported) as error:
        attention(*qkv, case.bias(weight), impl="sdpa_cudnn", rank=3)
    text = str(error.value)
    assert (
        "sdpa_cudnn cannot serve window bias on cpu, float32, B2 H2 Q7 K32 D16, gradients to the bias, rank 3"
        in text
    )
    assert "computes the exact bias, got rank=3; a rank goes with lowrank" in text
    assert "PyTorch has no cudnn kernel on the CPU, only math and flash" in text


def test_refuses_an_unknown_implementation(qkv):
    message = r"^unknown implementation 'flashy'; expected one of reference, sdpa_math.*, or auto in a call$"
    with pytest.raises(ValueError, match=message):
        attention(*qkv, impl="flashy")


NOT_A_BIAS = "^bias: expected a Bias or None, got "


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(2, 2, 7, 32), r"Tensor; wrap it: DenseBias\(values\)$"),
        (torch.ones(2, 2, 7, 32, dtype=torch.bool), "Tensor; .*, where values are 0 for True and -inf for"),
        ("window", "str; make one, such as WindowBias"),
    ],
)
def test_refuses_a_bias_of_another_type(qkv, bias, message):
    with pytest.raises(TypeError, match=NOT_A_BIAS + message):
        attention(*qkv, bias, impl="gathered")


def test_refuses_shapes_that_do_not_fit(case, qkv):
    q, k, v = qkv
    with pytest.raises(ValueError, match=r"q: expected \(B, H, Q, D\) with no empty axis, got \(2, 7, 16\)"):
        attention(q[:, 0], k, v, impl="reference")
    with pytest.raises(
        ValueError, match=r"k: expected \(B, H, K, D\) with no empty axis, got \(2, 2, 0, 16\)"
    ):
        attention(q, k[:, :, :0], v, impl="reference")
    with pytest.raises(ValueError, match=r"expected k and v of \(2, 2 or 1, K, 16\)"):
        attention(q, k, v[:, :, :-1], impl="reference")
    with pytest.raises(ValueError, match=r"window bias: expected \(B, H or 1, Q, K\) = \(2, 2, 6, 32\)"):
        attention(q[:, :, :6], k, v, case.bias(case.leaves["weight"]), impl="reference")
    with pytest.raises(ValueError, match=r"dense bias: expected .* got \(3, 1, 7, 32\)"):
        attention(q, k, v, DenseBias(torch.zeros(3, 1, 7, 32)), impl="reference")


def test_refuses_mixed_dtypes_and_devices(case, qkv):
    q, k, v = qkv
    with pytest.raises(
        TypeError, match=r"k: expected one float dtype .* got torch.bfloat16 and torch.float32 for q"
    ):
        attention(q, k.bfloat16(), v, impl="reference")
    with pytest.raises(TypeError, match="q: expected one float dtype"):
        attention(q.long(), k.long(), v.long(), impl="reference")
    with pytest.raises(ValueError, match="v: expected device cpu as for q, got meta"):
        attention(q, k, v.to("meta"), impl="reference")
    with pytest.raises(ValueError, match=r"bias.values: expected device cpu as for q, got meta"):
        attention(q, k, v, DenseBias(torch.zeros(1, 1, 7, 32, device="meta")), impl="reference")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_senseless_scale(qkv, scale):
    with pytest.raises(ValueError, match="scale: expected a positive finite number"):
        attention(*qkv, impl="reference", scale=scale)


def test_refuses_a_scale_whose_gradient_would_be_lost(qkv):
    with pytest.raises(TypeError, match="scale: expected a number, got a tensor"):
        attention(*qkv, impl="reference", scale=torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize("rank", [2.0, True, "2"])
def test_refuses_a_rank_that_is_no_whole_number(case, qkv, rank):
    with pytest.raises(TypeError, match="rank: expected a whole number or None"):
        attention(*qkv, case.bias(case.leaves["weight"]), impl="lowrank", rank=rank)


def test_refuses_heads_without_elements(qkv):
    with pytest.raises(ValueError, match=r"q: expected .* with no empty axis"):
        attention(*(tensor[..., :0] for tensor in qkv), impl="reference")


def test_refuses_float8(case, qkv):
    weight = case.leaves["weight"].to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="WindowBias expects float weights"):
        case.bias(weight)
    with pytest.raises(ValueError, match="DenseBias expects float values"):
        DenseBias(torch.zeros(1, 1, 7, 32).to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match="expected one float dtype of 16 to 64 bits"):
        attention(*(tensor.to(torch.float8_e4m3fn) for tensor in qkv), impl="reference")


@pytest.mark.parametrize("kind", ["window", "global", "dense"])
def test_validate_refuses_a_bias_that_the_dtype_cannot_hold(kind):
    case = make_case(kind, SIZES, torch.float16)
    case.leaves["weight"].view(-1)[3] = 1e5  # float16 ends at 65504
    call = [case.leaves[name] for name in "qkv"]
    with pytest.raises(ValueError, match=rf"{kind} bias: expected values that torch.float16 holds"):
        attention(*call, case.bias(case.leaves["weight"]), impl="reference", validate=True)


def test_a_weight_that_the_dtype_cannot_hold_stays_in_its_window():
    case = make_case("window", SIZES, torch.float16)
    inside = case.bias(torch.ones_like(case.leaves["weight"])).dense(torch.float16) != 0
    dense = case.bias(torch.full_like(case.leaves["weight"], 1e5)).dense(torch.float16)
    assert (dense[inside] == math.inf).all()
    assert (dense[~inside] == 0).all()


def test_validate_refuses_factors_that_the_dtype_cannot_hold():
    case = make_case("global", SIZES, torch.float16)
    weight = case.leaves["weight"].fill_(3e4)  # held by float16; divided by a scale of 0.25 it is not
    with pytest.raises(
        ValueError, match=r"the factor u of the bias reaches 120000, and torch\.float16 holds"
    ):
        attention(*(case.leaves[n] for n in "qkv"), case.bias(weight), impl="lowrank", validate=True)


@pytest.mark.parametrize("name", ["q", "k", "v", "bias.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_validate_refuses_nan_and_infinity(case, name, value):
    leaves = {n: leaf.clone() for n, leaf in case.leaves.items()}
    leaves[name.removeprefix("bias.")].view(-1)[5] = value
    with pytest.raises(ValueError, match=rf"{name}: expected finite values, got NaN or infinity"):
        attention(
            leaves["q"],
            leaves["k"],
            leaves["v"],
            case.bias(leaves["weight"]),
            impl="reference",
            validate=True,
        )


def test_validate_allows_minus_infinity_in_a_dense_bias_alone(qkv):
    values = torch.zeros(1, 1, 7, 32)
    values[..., 3] = -math.inf
    attention(*qkv, DenseBias(values), impl="reference", validate=True)
    values[..., 3] = math.inf
    with pytest.raises(ValueError, match=r"bias.values: expected finite values or -inf"):
        attention(*qkv, DenseBias(values), impl="reference", validate=True)


def test_validate_refuses_rects_off_the_map(case, qkv):
    rects = case.windows.clone()
    rects[0, 0, 1] = torch.tensor([0, 2, 0, 0])  # the camera has two rows
    bias = WindowBias(SIZES.grid, rects, case.leaves["weight"])
    with pytest.raises(ValueError, match=r"expected windows within segment 1 \(2 x 3 cells\)"):
        attention(*qkv, bias, impl="reference", validate=True)


def test_dense_bias_may_be_shared_by_samples_and_heads(qkv):
    values = torch.randn(1, 1, 7, 32)
    out = attention(*qkv, DenseBias(values), impl="sdpa_math")
    assert torch.equal(out, attention(*qkv, DenseBias(values.expand(2, 2, -1, -1)), impl="sdpa_math"))


def test_a_row_of_minus_infinity_gives_zero_and_zero_gradients():
    grid = TokenGrid.bev_and_cameras((2, 2), (0, 1, 1))
    rects = torch.tensor([[0, 0, 0, 1], [0, -1, 0, -1]], dtype=torch.int32).view(1, 2, 1, 4)
    for impl in ("reference", "sdpa_math", "sdpa_flash"):
        q, k, v = (torch.randn(1, 1, n, 8, requires_grad=True) for n in (2, 4, 4))
        out = attention(q, k, v, LocalMask(grid, rects), impl=impl)
        out.sum().backward()
        assert (out[0, 0, 1] == 0).all()
        assert (q.grad[0, 0, 1] == 0).all()
        assert (v.grad[0, 0, 2:] == 0).all()
        assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


def test_autocast_casts_as_pytorch_does(case, qkv):
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*qkv, case.bias(case.leaves["weight"]), impl="sdpa_math")
        theirs = torch.nn.functional.scaled_dot_product_attention(*qkv)
    assert out.dtype == theirs.dtype == torch.bfloat16
    by_hand = attention(*(t.bfloat16() for t in qkv), case.bias(case.leaves["weight"]), impl="sdpa_math")
    assert torch.equal(out, by_hand)


def test_checkpointing_gives_the_same_gradients(case):
    def run(checkpointed):
        leaves = {n: leaf.clone().requires_grad_() for n, leaf in case.leaves.items()}

        def call(q, k, v, weight):
            return attention(q, k, v, case.bias(weight), impl="sdpa_math")

        args = [leaves[n] for n in ("q", "k", "v", "weight")]
        out = (
            torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False)
            if checkpointed
            else call(*args)
        )
        out.square().sum().backward()
        return [leaf.grad for leaf in leaves.values()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_dynamo_traces_it_whole(case, qkv):
    weight = case.leaves["weight"]
    call = torch.compile(
        lambda q, k, v, w: attention(q, k, v, case.bias(w), impl="sdpa_math"), backend="eager", fullgraph=True
    )
    assert torch.equal(call(*qkv, weight), attention(*qkv, case.bias(weight), impl="sdpa_math"))


def test_describe_says_what_is_asked(case, qkv):
    weight = case.leaves["weight"].clone().requires_grad_()
    request = describe(*qkv, case.bias(weight))
    assert request == case.request(qkv_grad=False, bias_grad=True)
    with torch.no_grad():
        assert not describe(*qkv, case.bias(weight)).bias_grad


def test_a_call_says_whether_its_kernel_has_to_be_deterministic(qkv):
    before = torch.get_deterministic_debug_mode()
    try:
        for mode, expected in (("default", False), ("warn", False), ("error", True), ("default", False)):
            torch.set_deterministic_debug_mode(mode)
            assert describe(*qkv, None).deterministic is expected
            with pytest.raises(
                Unsupported
            ) as refusal:  # and not what the same call was told under another mode
                attention(*qkv, impl="sdpa_cudnn")
            assert (", deterministic" in str(refusal.value)) is expected
    finally:
        torch.set_deterministic_debug_mode(before)


def test_importing_the_package_loads_no_kernel():
    heavy = "('triton', 'flash_attn', 'torch._inductor', 'torch.nn.attention.flex_attention')"
    code = f"import sys, operators; sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing operators also imported {done.stderr}"
