"""Laws of the position encodings; the published numbers are in test_head_parity."""

import pytest
import torch

from pipeline.detector.transformer.position_encoding import (
    Cameras,
    PositionMlp,
    Rays,
    embed_bev_cells,
    inverse_sigmoid,
    project,
    sine_embedding,
    sine_embedding_2d,
)

RANGE = torch.tensor([-54.0, -54.0, -5.0, 54.0, 54.0, 3.0])
DEPTHS = 8
PAD = (96, 240)
RELATIVE = 1e-5  # sums of up to 64 products in single precision: 64 * 6e-8 = 4e-6


def cameras(views=2):
    """A camera looking along x and one looking along -x; 240 x 96 pixels, focal length 150."""
    intrinsics = torch.eye(4, dtype=torch.float64)
    intrinsics[0, 0] = intrinsics[1, 1] = 150
    intrinsics[0, 2], intrinsics[1, 2] = 120, 48
    forward = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0.2], [1, 0, 0, 0.5], [0, 0, 0, 1]]).double()
    backward = torch.tensor([[0.0, 1, 0, 0], [0, 0, -1, 0.2], [-1, 0, 0, 0.5], [0, 0, 0, 1]]).double()
    return torch.stack([intrinsics @ forward, intrinsics @ backward])[None, :views]


@pytest.mark.parametrize("x", [0.3, 0.99, 1e-3])
def test_inverse_sigmoid_undoes_sigmoid(x):
    value = torch.tensor(x)
    torch.testing.assert_close(inverse_sigmoid(value).sigmoid(), value)


def test_inverse_sigmoid_stays_finite_outside():
    assert inverse_sigmoid(torch.tensor([-0.5, 0.0, 1.0, 1.5])).isfinite().all()


def test_sine_embedding_by_hand():
    got = sine_embedding(torch.tensor(0.25), 4)
    quarter = torch.tensor([1.0, 1.0, 1.5, 1.5])
    phase = 2 * torch.pi * 0.25 / quarter
    expected = torch.stack([phase[0].sin(), phase[1].cos(), phase[2].sin(), phase[3].cos()])
    torch.testing.assert_close(got, expected)


def test_bev_cells_are_embedded_like_points_at_their_centres():
    mlp = PositionMlp(32, 16, 16)
    rows, cols = 3, 5
    xy = torch.tensor([[(c + 0.5) / cols, (r + 0.5) / rows] for r in range(rows) for c in range(cols)])
    torch.testing.assert_close(
        embed_bev_cells(mlp, rows, cols), mlp(sine_embedding_2d(xy, 16)), rtol=RELATIVE, atol=RELATIVE
    )


def rays_of(matrices):
    """The rays of cameras (B, V, 4, 4)."""
    return Rays(Cameras.of(matrices, torch.device("cpu")).inverse, RANGE, DEPTHS)


def samples_of(u, v, matrix):
    """The depth samples of a pixel's ray, from the definition: (DEPTHS, 3) normalised."""
    depth = 1 + torch.arange(DEPTHS).double() * 53 / DEPTHS
    pixel = torch.stack([u * depth, v * depth, depth, torch.ones_like(depth)])
    points = (torch.linalg.inv(matrix) @ pixel)[:3].T
    return (points - RANGE[:3]) / (RANGE[3:] - RANGE[:3])


def test_camera_cells_are_embedded_by_their_rays():
    matrices = cameras()
    mlp = PositionMlp(3 * DEPTHS, 32, 16)
    got = rays_of(matrices).embed_cells(mlp, 4, 10, PAD).view(2, 4, 10, 16)
    for view, row, col in [(0, 0, 0), (1, 3, 9), (0, 2, 5)]:
        ray = samples_of(col * 24.0, row * 24.0, matrices[0, view])  # 240 / 10 and 96 / 4 pixels a cell
        expected = mlp(ray.flatten().float())
        torch.testing.assert_close(got[view, row, col], expected, rtol=RELATIVE, atol=RELATIVE)


def test_a_ray_projects_back_onto_its_pixel():
    matrices = cameras()
    points = samples_of(60.0, 30.0, matrices[0, 0]) * (RANGE[3:] - RANGE[:3]) + RANGE[:3]
    pixels, visible = project(points[None], matrices, PAD)
    expected = torch.tensor([60.0, 30.0]).double().expand(DEPTHS, 2)
    torch.testing.assert_close(pixels[0, 0, :, :2], expected, rtol=2e-6, atol=0)  # the guard: 1e-6 m of 1 m
    assert visible[0, 0].all()
    assert not visible[0, 1].any()  # behind the other camera


def test_a_query_that_no_camera_sees_gets_no_camera_embedding():
    rays, mlp = rays_of(cameras()), PositionMlp(3 * DEPTHS, 32, 16)
    points = torch.tensor([[[20.0, 0.0, 0.0], [0.0, 30.0, 0.0]]])  # ahead; beside both cameras
    pixels, visible = project(points, cameras(), PAD)
    got = rays.embed_points(mlp, pixels, visible)
    assert got[0, 0].any()
    assert not got[0, 1].any()


def test_views_are_summed():
    once, twice = cameras(1), cameras(1).expand(1, 2, 4, 4)
    mlp, points = PositionMlp(3 * DEPTHS, 32, 16), torch.tensor([[[20.0, 1.0, 0.0]]])
    embedded = [rays_of(m).embed_points(mlp, *project(points, m, PAD)) for m in (once, twice)]
    torch.testing.assert_close(embedded[1], 2 * embedded[0])


def test_gradient_does_not_pass_through_the_division_by_depth():
    points = torch.tensor([[[20.0, 2.0, 0.0]]], requires_grad=True)
    pixels, _ = project(points, cameras(1), PAD)
    (slope,) = torch.autograd.grad(pixels[0, 0, 0, 0], points)
    depth = 20.5
    # u = (-150 y + 120 depth) / detached depth: moving along x changes the numerator alone
    torch.testing.assert_close(slope[0, 0], torch.tensor([120 / depth, -150 / depth, 0.0]))
