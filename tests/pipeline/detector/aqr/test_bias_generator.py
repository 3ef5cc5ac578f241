"""The attention bias generator: formula, limits, options, and a scale that really learns."""

import copy
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from operators import Bias, TokenGrid, attention, objections
from operators.spec import IMPLEMENTATIONS, Request
from pipeline.detector.aqr.bias_generator import AttentionBiasGenerator, BiasConfigError
from pipeline.detector.aqr.projection import ProjectedQueries

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # `rects` on the CPU; read when triton is first imported

GRID = TokenGrid.bev_and_cameras((6, 6), (2, 4, 5))
KINDS = AttentionBiasGenerator.KINDS
RANK = 2  # of a local bias handed to `lowrank`: both queries' rows, so that nothing is cut off
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REACH = {1: (0, 0), 2: (0, 1), 3: (-1, 1), 4: (-1, 2), 7: (-3, 3)}  # first and last cell of a window
HEAD_SIZE = 16  # the narrowest that every implementation takes


def geometry(device: str = "cpu") -> ProjectedQueries:
    """Two queries: one at BEV (2, 3) and camera 1 (1, 4); one that nothing sees."""
    cells = torch.zeros(1, 2, 3, 2, dtype=torch.int64)
    visible = torch.zeros(1, 2, 3, dtype=torch.bool)
    cells[0, 0, 0], cells[0, 0, 2] = torch.tensor([2, 3]), torch.tensor([1, 4])
    visible[0, 0, 0] = visible[0, 0, 2] = True
    return ProjectedQueries(GRID, cells.to(device), visible.to(device))


def make(generator: AttentionBiasGenerator, kind: str, weights: Tensor) -> Bias:
    """The bias of a decoder of one layer."""
    (bias,) = generator([kind], weights, geometry(weights.device.type))
    assert bias is not None
    return bias


def expected(
    kind: str, weights: Tensor, scale: float, sigma: float, limit: float, windows: tuple[int, int] = (3, 2)
) -> Tensor:
    """The bias key by key; windows of so many BEV and camera cells (an even one reaches further after)."""
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
            reach = REACH[windows[0 if segment == 0 else 1]]
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
    bias = make(generator, kind, weights)
    # 1e-6: fp32 rounding of numbers up to 5, once in the product and once in the exponential
    torch.testing.assert_close(
        bias.dense(), expected(kind, weights, 2.5, 1.3, max_bias), rtol=1e-6, atol=1e-6
    )


LAYERS = (("window", None), ("window", 4), ("none", None), ("gaussian", 7), ("window", 1), ("global", None))


def layers(weights: Tensor) -> list[Bias | None]:
    generator = AttentionBiasGenerator(3, 2, sigma=1.3).to(weights.device)
    kinds, windows = zip(*LAYERS, strict=True)
    return generator(kinds, weights, geometry(weights.device.type), windows)


def test_each_layer_has_windows_of_its_own_size() -> None:
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]])
    for (kind, window), bias in zip(LAYERS, layers(weights), strict=True):
        if kind == "none":
            assert bias is None
            continue
        assert bias is not None
        sizes = (3, 2) if window is None else (window, window)
        wanted = expected(kind, weights, 2.5, 1.3, 5.0, sizes)
        torch.testing.assert_close(bias.dense(), wanted, rtol=1e-6, atol=1e-6)  # fp32 rounding, as above


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")  # as below
@pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning")
def test_the_kernel_sees_the_windows_of_each_layer() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = (2, GRID.num_keys, GRID.num_keys)
    q, k, v = (torch.randn(1, 2, n, HEAD_SIZE, generator=draw).to(DEVICE) for n in sizes)
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]], device=DEVICE)
    for (kind, _), bias in zip(LAYERS, layers(weights), strict=True):
        if kind == "window":
            one, two = (attention(q, k, v, bias, impl=impl) for impl in ("rects", "reference"))
            # TF32 products on a GPU err by 1e-3; another window moves the result by 1e-2 and more
            torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)


def dtype_of(impl: str) -> torch.dtype:
    """What an implementation computes in here; on a GPU the flash kernel of ``lowrank`` takes halves only."""
    return torch.float16 if impl == "lowrank" and DEVICE == "cuda" else torch.float32


def learning() -> list[Any]:
    """(implementation, kind, rank) of which the implementation says that the bias gets a gradient here."""
    asked = {"device": DEVICE, "heads": 2, "queries": 2, "keys": GRID.num_keys, "head_size": HEAD_SIZE}
    return [
        pytest.param(impl, kind, rank, id=f"{impl}-{kind}")
        for impl in IMPLEMENTATIONS
        for kind in KINDS
        for rank in [RANK if impl == "lowrank" and kind != "global" else None]
        for dtype in [str(dtype_of(impl)).removeprefix("torch.")]
        if not objections(
            impl, Request(kind, dtype, **asked, bias_heads=1, qkv_grad=True, bias_grad=True, rank=rank)
        )
    ]


def gradients(impl: str, kind: str, rank: int | None) -> tuple[Tensor, Tensor]:
    """Of a loss on attention with respect to ``bias_scale`` and the weights."""
    draw = torch.Generator().manual_seed(0)
    sizes = (2, GRID.num_keys, GRID.num_keys)
    q, k, v = (torch.randn(1, 2, n, HEAD_SIZE, generator=draw).to(DEVICE, dtype_of(impl)) for n in sizes)
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]], requires_grad=True, device=DEVICE)
    generator = AttentionBiasGenerator(3, 2).to(DEVICE)
    out = attention(q, k, v, make(generator, kind, weights), impl=impl, rank=rank)
    out.float().square().sum().backward()
    assert generator.bias_scale.grad is not None
    assert weights.grad is not None
    return generator.bias_scale.grad, weights.grad


def test_the_implementations_that_run_anywhere_claim_gradients() -> None:
    claimed = {case.values[:2] for case in learning()}
    for impl in ("reference", "sdpa_math", "lowrank", "rects"):
        assert {(impl, kind) for kind in KINDS} <= claimed


# What NumPy says in Triton's interpreter, and a GPU does not.
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize(("impl", "kind", "rank"), learning())
def test_the_scale_learns_under_every_implementation_that_claims_gradients(
    impl: str, kind: str, rank: int | None
) -> None:
    scale, weights = gradients(impl, kind, rank)
    assert scale.abs() > 1e-3  # the published scale did not move at all
    assert weights[0, 0].abs().min() > 0
    # The reference's own fp32 error is 1e-6, that of TF32 products on a GPU 1e-3; a lost window is 1e-1.
    near = 1e-4 if DEVICE == "cpu" else 1e-2
    if dtype_of(impl) == torch.float16:
        near = 3e-2  # on a CPU, float16 moved these gradients by 1.3 % at most
    for found, wanted in zip((scale, weights), gradients("reference", kind, None), strict=True):
        torch.testing.assert_close(found, wanted, rtol=near, atol=near / 10)


def test_a_step_on_the_scale_follows_its_finite_difference() -> None:
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float64) for n in (2, GRID.num_keys, GRID.num_keys))
    weights = torch.tensor([[[0.9, -0.6], [0.3, 0.2]]], dtype=torch.float64)

    def loss(scale: float) -> tuple[Tensor, AttentionBiasGenerator]:
        generator = AttentionBiasGenerator(3, 2).double()
        generator.bias_scale.data.fill_(scale)  # after the cast: fp32 cannot hold the step
        out = attention(q, k, v, make(generator, "window", weights), impl="sdpa_math")
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
    bias = make(generator, "global", torch.ones(1, 1, 2) * 0.1)
    low, high = generator.scale_range
    torch.testing.assert_close(bias.dense().max(), torch.tensor(0.1 * min(max(scale, low), high)))
    (bias.dense().sum() * gradient).backward()
    assert (generator.bias_scale.grad != 0) == passes


def test_a_scale_beyond_its_end_returns() -> None:
    generator = AttentionBiasGenerator(3, 2)
    generator.bias_scale.data.fill_(8.0)
    for _ in range(50):
        bias = make(generator, "global", torch.ones(1, 1, 2))
        (slope,) = torch.autograd.grad((bias.dense().mean() - 1.0).square(), generator.bias_scale)
        generator.bias_scale.data -= 0.1 * slope
    assert generator.bias_scale < 5.0


def test_no_bias_is_none_and_unknown_kinds_are_refused() -> None:
    generator = AttentionBiasGenerator(3, 2)
    assert generator(["none"], torch.zeros(1, 2, 2), geometry()) == [None]
    with pytest.raises(BiasConfigError, match="got 'dense'"):
        generator(["window", "dense"], torch.zeros(1, 2, 2), geometry())


def loss_of(generator: AttentionBiasGenerator, kinds: list[str]) -> Tensor:
    """A loss in which layer i counts i + 1 times."""
    made = generator(kinds, torch.tensor([[[0.2, -0.3], [0.3, 0.2]]]), geometry())
    return torch.stack([(i + 1) * b.dense().square().sum() for i, b in enumerate(made) if b]).sum()


def test_the_slopes_tell_what_each_layer_would_do_to_a_shared_scale() -> None:
    kinds = ["window", "none", "global", "gaussian"]
    generator = AttentionBiasGenerator(3, 2)
    loss_of(generator, kinds).backward()
    slopes = generator.slopes
    assert slopes is not None
    torch.testing.assert_close(slopes.sum(), generator.bias_scale.grad)
    for i, kind in enumerate(kinds):
        alone = AttentionBiasGenerator(3, 2)
        only = [kind if j == i else "none" for j in range(len(kinds))]
        if kind != "none":
            loss_of(alone, only).backward()
            torch.testing.assert_close(slopes[i], alone.bias_scale.grad)
    assert slopes[1] == 0
    copy.deepcopy(generator)  # averaging hooks copy models; a tensor with a graph could not be


def test_layers_may_have_scales_of_their_own() -> None:
    generator = AttentionBiasGenerator(3, 2, num_scales=3)
    generator.bias_scale.data = torch.tensor([1.0, 2.0, 9.0])
    weights = torch.full((1, 2, 2), 0.1)
    made = generator(["global"] * 3, weights, geometry())
    peaks = [float(bias.dense().detach().max()) for bias in made]
    assert peaks == pytest.approx([0.1, 0.2, 0.5])  # the last at the end of its range
    loss_of(generator, ["window", "none", "global"]).backward()
    assert (generator.bias_scale.grad != 0).tolist() == [True, False, True]
    with pytest.raises(BiasConfigError, match=r"num_scales=3, but the decoder has 2 layers; expected 1 "):
        generator(["window"] * 2, weights, geometry())


def test_a_scale_that_shall_not_learn_is_no_parameter() -> None:
    generator = AttentionBiasGenerator(3, 2, scale=1.5, learnable_scale=False)
    assert not list(generator.parameters())
    assert list(generator.state_dict()) == ["bias_scale"]
    assert not make(generator, "global", torch.ones(1, 2, 2)).dense().requires_grad
    assert make(generator, "global", torch.ones(1, 2, 2)).dense().max() == 1.5


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "window"),
        ({"fall_off": "gaussian"}, "gaussian"),
        ({"use_local_bias": False}, "global"),
        ({"use_local_bias": False, "fall_off": "gaussian"}, "global"),
    ],
)
def test_the_options_name_the_kind_of_a_layer_that_names_none(options: dict[str, Any], kind: str) -> None:
    assert AttentionBiasGenerator(3, 2, **options).default_kind == kind


def test_layers_share_the_windows() -> None:
    one, two = AttentionBiasGenerator(3, 2)(["window", "gaussian"], torch.ones(1, 2, 2), geometry())
    assert one is not None
    assert two is not None
    assert one.windows is two.windows  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "numbers",
    [{"window_lidar": 0}, {"sigma": 0.0}, {"scale": 6.0}, {"scale_range": (0.0, 5.0)}, {"max_bias": -1.0}],
)
def test_contradicting_numbers_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(BiasConfigError, match="expected windows >= 1 cell"):
        AttentionBiasGenerator(**{"window_lidar": 3, "window_camera": 3, **numbers})


def test_an_unknown_fall_off_and_no_scale_are_refused() -> None:
    for given in ({"fall_off": "linear"}, {"num_scales": 0}):
        with pytest.raises(BiasConfigError, match="expected fall_off 'uniform' or 'gaussian' and num_scales"):
            AttentionBiasGenerator(3, 2, **given)
