"""The biases: every form says the same, the dense one is checked key by key."""

import math
from dataclasses import replace

import pytest
import torch

from operators import (
    BIAS_KINDS,
    DenseBias,
    GaussianBias,
    GlobalBias,
    LocalMask,
    NoBias,
    TokenGrid,
    Unsupported,
    WindowBias,
)
from operators.spec import Form
from operators.testing.cases import Sizes, make_case

SIZES = Sizes(2, 3, 9, 8, bev=(5, 6), cameras=(2, 3, 4), window=(3, 2))
KINDS = [kind for kind in BIAS_KINDS if kind != "none"]


def drawn(kind, per_head=False, sizes=SIZES):
    case = make_case(kind, replace(sizes, bias_per_head=per_head), torch.float32)
    weight = case.leaves.get("weight")
    return case.bias(None if weight is None else weight.requires_grad_())


def expected(bias, b, h, q, s, segment, row, col):
    """One number of the dense form, from the formulas of the module's docstring."""
    first_row, last_row, first_col, last_col = (0, segment.rows - 1, 0, segment.cols - 1)
    if bias.kind != "global":
        first_row, last_row, first_col, last_col = bias.windows[b, q, s].tolist()
    inside = first_row <= row <= last_row and first_col <= col <= last_col
    if bias.kind == "local":
        return 0.0 if inside else -math.inf
    weight = bias.trainable
    h = h if weight.shape[1] > 1 else 0
    if bias.kind == "global":
        return weight[b, h, q, segment.modality].item()
    value = weight[b, h, q, s].item() if inside else 0.0
    if bias.kind == "gaussian":
        down, right = row - bias.centers[b, q, s, 0].item(), col - bias.centers[b, q, s, 1].item()
        value *= math.exp(-(down**2 + right**2) / (2 * bias.sigma**2))
        value = max(-bias.limit, min(bias.limit, value))
    return value


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("kind", ["global", "window", "gaussian", "local"])
def test_dense_follows_the_formula_key_by_key(kind, per_head):
    bias = drawn(kind, per_head)
    dense = bias.dense().detach()
    assert tuple(dense.shape) == bias.shape
    heads = dense.shape[1]
    for b, h, q in [(0, 0, 0), (1, heads - 1, 8), (1, 0, 4), (0, heads - 1, 7)]:
        for s, segment in enumerate(bias.grid.segments):
            for cell in range(segment.num_keys):
                row, col = divmod(cell, segment.cols)
                value = expected(bias, b, h, q, s, segment, row, col)
                # float32 exp against the C library's: both round once
                assert dense[b, h, q, segment.offset + cell].item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_score_mod_says_what_dense_says(kind, per_head):
    bias = drawn(kind, per_head)
    batch, heads, queries, keys = 2, 3, 9, SIZES.grid.num_keys
    index = [torch.arange(n) for n in (batch, heads, queries, keys)]
    b, h, q, k = torch.meshgrid(*index, indexing="ij")
    score = torch.zeros(batch, heads, queries, keys)
    # exp is evaluated on other shapes, so its vectorised and scalar forms may differ by a step
    torch.testing.assert_close(bias.score_mod()(score, b, h, q, k), bias.dense() + score)


@pytest.mark.parametrize("kind", ["global", "window", "gaussian"])
def test_rects_say_what_dense_says(kind):
    bias = drawn(kind)
    form = bias.rects_form()
    assert form.mode == "add"
    if form.gaussian is None:
        rebuilt = WindowBias(form.grid, form.rects.contiguous(), form.weight)
    else:
        rebuilt = GaussianBias(form.grid, form.rects, form.weight, *form.gaussian)
    assert torch.equal(rebuilt.dense(), bias.dense())


def test_local_mask_hands_over_rects_without_weight():
    form = drawn("local").rects_form()
    assert (form.mode, form.weight, form.gaussian) == ("mask", None, None)


@pytest.mark.parametrize("per_head", [False, True])
def test_global_factors_are_exact_and_of_rank_two(per_head):
    bias = drawn("global", per_head)
    factors = bias.factors()
    assert factors.u.shape[-1] == 2
    assert torch.equal(factors.u @ factors.w.mT, bias.dense())
    assert (factors.relative_error == 0).all()


@pytest.mark.parametrize("kind", ["window", "gaussian", "dense"])
def test_truncated_factors_report_their_error(kind):
    bias = drawn(kind)
    dense = bias.dense().detach().double()
    errors = []
    for rank in (1, 3, 9):
        u, w, reported = bias.factors(rank)
        true = torch.linalg.matrix_norm(u.double() @ w.double().mT - dense) / torch.linalg.matrix_norm(dense)
        best = torch.linalg.svdvals(dense)[..., rank:].square().sum(-1).sqrt() / torch.linalg.matrix_norm(
            dense
        )
        # Energies are squares: float32 rounding of the energy becomes its square root in the error.
        allowed = torch.finfo(torch.float32).eps ** 0.5
        assert torch.allclose(true.detach(), best, rtol=0, atol=allowed)
        assert torch.allclose(reported.double(), best, rtol=0, atol=allowed)
        errors.append(reported.max().item())
    assert errors == sorted(errors, reverse=True)


def test_truncated_factors_are_differentiable():
    bias = drawn("window")
    u, w, _ = bias.factors(9)  # the full rank: the projection changes nothing
    upstream = torch.randn(bias.shape)
    (by_factors,) = torch.autograd.grad(u @ w.mT, bias.weight, upstream)
    (by_dense,) = torch.autograd.grad(bias.dense(), bias.weight, upstream)
    torch.testing.assert_close(by_factors, by_dense)


@pytest.mark.parametrize("kind", ["window", "gaussian", "global", "dense"])
def test_dense_is_differentiable_in_the_weight(kind):
    bias = drawn(kind, True, Sizes(1, 2, 2, 8, bev=(2, 3), cameras=(2, 1, 2), window=(3, 2)))
    fields = {**vars(bias)}
    name = "values" if kind == "dense" else "weight"
    weight = fields.pop(name).detach().double().requires_grad_()
    if kind == "gaussian":
        fields["limit"] = 100.0  # away from the clamp's corner, where no difference quotient holds
    assert torch.autograd.gradcheck(lambda w: type(bias)(**{**fields, name: w}).dense(), weight)


def test_forms_are_what_the_design_says():
    assert drawn("window").forms == {Form.DENSE, Form.RECTS, Form.SCORE_MOD}
    assert drawn("global").forms == {Form.DENSE, Form.FACTORS, Form.RECTS, Form.SCORE_MOD}
    assert NoBias().forms == {Form.NONE}


def test_refuses_forms_it_does_not_have():
    with pytest.raises(Unsupported, match="window bias has no exact factors; name a rank"):
        drawn("window").factors()
    with pytest.raises(Unsupported, match="minus infinity is no sum of products"):
        drawn("local").factors(3)
    with pytest.raises(Unsupported, match="the dense bias is not made of rectangles"):
        drawn("dense").rects_form()
    with pytest.raises(Unsupported, match="rank 2, exactly and cheaply; got rank=1"):
        drawn("global").factors(1)
    with pytest.raises(ValueError, match="between 1 and the number of queries 9, got 10"):
        drawn("window").factors(10)
    with pytest.raises(ValueError, match="holds inf or NaN has no factors"):
        DenseBias(torch.full((1, 1, 2, 3), -math.inf)).factors(1)


def test_refuses_a_tensor_as_sigma():
    grid, windows = TokenGrid.of((3, 4, 0)), torch.zeros(1, 5, 1, 4, dtype=torch.int32)
    with pytest.raises(TypeError, match="sigma and limit are numbers"):
        GaussianBias(grid, windows, torch.zeros(1, 5, 1), torch.zeros(1, 5, 1, 2), torch.tensor(1.0), 1.0)


def test_refuses_wrong_shapes():
    grid = TokenGrid.bev_and_cameras((2, 2), (1, 1, 1))
    rects = torch.zeros(1, 3, 2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"WindowBias expects float weights \(1, 3, 2\) or \(1, H, 3, 2\)"):
        WindowBias(grid, rects, torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"expected int32 windows \(B, Q, 2, 4\), got torch.int64"):
        LocalMask(grid, rects.long())
    with pytest.raises(ValueError, match=r"GlobalBias expects float weights \(B, Q, 2\)"):
        GlobalBias(grid, torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="DenseBias expects float values"):
        DenseBias(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"expects sigma > 0 and limit > 0, got 0\.0 and 5\.0"):
        GaussianBias(grid, rects, torch.zeros(1, 3, 2), torch.zeros(1, 3, 2, 2), 0.0, 5.0)
    with pytest.raises(ValueError, match=r"expects float centers \(1, 3, 2, 2\)"):
        GaussianBias(grid, rects, torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), 1.0, 5.0)
