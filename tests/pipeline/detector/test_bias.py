"""The attention bias generator: formula, limits, and a scale that really learns."""

import pytest
import torch
from torch import Tensor

from operators import TokenGrid, attention
from pipeline.detector.aqr import ProjectedQueries
from pipeline.detector.bias import AttentionBiasGenerator, BiasConfigError

GRID = TokenGrid.bev_and_cameras((6, 6), (2, 4, 5))


def geometry() -> ProjectedQueries:
    """Two queries: one at BEV (2, 3) and camera 1 (1, 4); one that nothing sees."""
    cells = torch.zeros(1, 2, 3, 2, dtype=torch.int64)
    visible = torch.zeros(1, 2, 3, dtype=torch.bool)
    cells[0, 0, 0], cells[0, 0, 2] = torch.tensor([2, 3]), torch.tensor([1, 4])
    visible[0, 0, 0] = visible[0, 0, 2] = True
    return ProjectedQueries(GRID, cells, visible)


def expected(kind: str, weights: Tensor, scale: float, sigma: float, limit: float) -> Tensor:
    """The bias key by key; windows of 3 BEV cells and 2 camera cells (an even one reaches further after)."""
    out = torch.zeros(1, 1, 2, GRID.num_keys)
    for query in range(2):
        for key in range(GRID.num_keys):
            segment = next(i for i, s in enumerate(GRID.segments) if s.offset <= key < s.offset + s.num_keys)
            part = GRID.segments[segment]
            row, col = divmod(key - part.offset, part.cols)
            weight = float(weights[0, query, part.modality]) * scale
            if kind == "global":
                out[0, 0, query, key] = max(-limit, min(limit, weight))
                continue
            if query == 1 or segment == 1:
                continue
            centre = (2, 3) if segment == 0 else (1, 4)
            down, right = row - centre[0], col - centre[1]
            reach = (-1, 1) if segment == 0 else (0, 1)
            if reach[0] <= down <= reach[1] and reach[0] <= right <= reach[1]:
                fall = (
                    torch.exp(torch.tensor(-(down**2 + right**2) / (2 * sigma**2)))
                    if kind == "gaussian"
                    else 1.0
                )
                out[0, 0, query, key] = max(-limit, min(limit, weight * float(fall)))
    return out


@pytest.mark.parametrize("kind", ["global", "window", "gaussian"])
@pytest.mark.parametrize("max_bias", [5.0, 1.0])
def test_the_bias_is_the_formula(kind: str, max_bias: float) -> None:
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]])
    generator = AttentionBiasGenerator(3, 2, sigma=1.3, scale=2.5, max_bias=max_bias)
    bias = generator(kind, weights, geometry())
    assert bias is not None
    # 1e-6: fp32 rounding of numbers up to 5, once in the product and once in the exponential
    torch.testing.assert_close(
        bias.dense(), expected(kind, weights, 2.5, 1.3, max_bias), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("impl", ["sdpa_math", "reference"])
@pytest.mark.parametrize("kind", ["global", "window", "gaussian"])
def test_the_scale_gets_a_gradient_through_attention(impl: str, kind: str) -> None:
    generator = AttentionBiasGenerator(3, 2)
    q, k, v = (torch.randn(1, 2, n, 8) for n in (2, GRID.num_keys, GRID.num_keys))
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]], requires_grad=True)
    attention(q, k, v, generator(kind, weights, geometry()), impl=impl).square().sum().backward()
    assert generator.bias_scale.grad is not None
    assert weights.grad is not None
    assert generator.bias_scale.grad.abs() > 0
    assert weights.grad[0, 0].abs().min() > 0


def test_a_step_on_the_scale_follows_its_finite_difference() -> None:
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float64) for n in (2, GRID.num_keys, GRID.num_keys))
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]], dtype=torch.float64)

    def loss(scale: float) -> tuple[Tensor, AttentionBiasGenerator]:
        generator = AttentionBiasGenerator(3, 2).double()
        generator.bias_scale.data.fill_(scale)  # after the cast: fp32 cannot hold the step
        out = attention(q, k, v, generator("window", weights, geometry()), impl="sdpa_math")
        return out.square().sum(), generator

    value, generator = loss(2.5)
    value.backward()
    step = 1e-6  # fp64: truncation and rounding of a central difference both stay near 1e-9
    slope = (loss(2.5 + step)[0] - loss(2.5 - step)[0]) / (2 * step)
    torch.testing.assert_close(generator.bias_scale.grad, slope.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("scale", "gradient", "passes"),
    [
        (9.0, 1.0, True),
        (9.0, -1.0, False),
        (5.0, -1.0, False),
        (0.1, -1.0, True),
        (0.1, 1.0, False),
        (2.0, 1.0, True),
    ],
)
def test_the_clamp_lets_gradients_through_that_lead_inside(
    scale: float, gradient: float, passes: bool
) -> None:
    generator = AttentionBiasGenerator(3, 2)
    generator.bias_scale.data.fill_(scale)
    bias = generator("global", torch.ones(1, 1, 2) * 0.1, geometry())
    assert bias is not None
    low, high = generator.scale_range
    torch.testing.assert_close(bias.dense().max(), torch.tensor(0.1 * min(max(scale, low), high)))
    (bias.dense().sum() * gradient).backward()
    assert (generator.bias_scale.grad != 0) == passes


def test_a_scale_beyond_its_end_returns() -> None:
    generator = AttentionBiasGenerator(3, 2)
    generator.bias_scale.data.fill_(8.0)
    for _ in range(50):
        bias = generator("global", torch.ones(1, 1, 2), geometry())
        assert bias is not None
        (slope,) = torch.autograd.grad((bias.dense().mean() - 1.0).square(), generator.bias_scale)
        generator.bias_scale.data -= 0.1 * slope
    assert generator.bias_scale < 5.0


def test_no_bias_is_none_and_unknown_kinds_are_refused() -> None:
    generator = AttentionBiasGenerator(3, 2)
    assert generator("none", torch.zeros(1, 2, 2), geometry()) is None
    with pytest.raises(BiasConfigError, match="got 'dense'"):
        generator("dense", torch.zeros(1, 2, 2), geometry())


@pytest.mark.parametrize(
    "numbers",
    [{"window_lidar": 0}, {"sigma": 0.0}, {"scale": 6.0}, {"scale_range": (0.0, 5.0)}, {"max_bias": -1.0}],
)
def test_contradicting_numbers_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(BiasConfigError, match="expected windows >= 1 cell"):
        AttentionBiasGenerator(**{"window_lidar": 3, "window_camera": 3, **numbers})
