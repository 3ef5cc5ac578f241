"""What is frozen runs folded and without autograd; what trains runs as it is."""

import copy
from typing import cast

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmdet3d.models.backbones import SECOND
from torch import Tensor, nn

from pipeline.detector.backbones.frozen import folded, is_frozen, run_part

MAPS = (2, 3, 10, 12)


def backbone() -> nn.Module:
    """Make a small backbone in double precision, whose batch norms have seen something."""
    torch.manual_seed(0)
    made = SECOND(3, [4, 6], [1, 1], [1, 2]).double()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(cast(Tensor, norm.running_mean))
        nn.init.uniform_(cast(Tensor, norm.running_var), 0.5, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return cast(nn.Module, made.eval())


@pytest.fixture
def maps() -> Tensor:
    """Return maps from a generator of their own."""
    return torch.randn(MAPS, generator=torch.Generator().manual_seed(1)).double()


def test_a_frozen_part_gives_the_same_maps_without_a_graph(maps: Tensor) -> None:
    part = backbone().requires_grad_(False)
    expected = part(maps)
    found = run_part(part, maps)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(part).modules())
    torch.testing.assert_close(found, expected)


def test_a_part_that_trains_gets_its_gradients(maps: Tensor) -> None:
    part = backbone()
    run_part(part, maps)[0].sum().backward()
    assert all(p.grad is not None for p in part.blocks[0].parameters())  # type: ignore[union-attr]


def test_maps_that_want_a_gradient_get_one_through_a_frozen_part(maps: Tensor) -> None:
    run_part(backbone().requires_grad_(False), maps.requires_grad_())[0].sum().backward()
    assert maps.grad is not None


def test_a_batch_norm_in_training_mode_collects_statistics(maps: Tensor) -> None:
    part = backbone().requires_grad_(False).train()
    before = [copy.deepcopy(b) for b in part.buffers()]
    assert not is_frozen(part)
    run_part(part, maps)
    assert not all(torch.equal(a, b) for a, b in zip(before, part.buffers(), strict=True))


def test_without_gradients_a_part_that_trains_runs_folded_too() -> None:
    part = backbone()
    with torch.no_grad():
        assert is_frozen(part)
    assert not is_frozen(part)


def test_the_copy_follows_the_weights(maps: Tensor) -> None:
    part = backbone().requires_grad_(False)
    kept = folded(part)
    assert folded(part) is kept
    part.load_state_dict({name: value * 1.5 for name, value in part.state_dict().items()})
    torch.testing.assert_close(run_part(part, maps), part(maps))
    norm = next(m for m in part.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean = torch.ones_like(norm.bias)
    torch.testing.assert_close(run_part(part, maps), part(maps))
    part.float()
    torch.testing.assert_close(run_part(part, maps.float()), part(maps.float()))


def test_a_copy_made_in_inference_mode_serves_a_training_step(maps: Tensor) -> None:
    part = backbone().requires_grad_(False)
    with torch.inference_mode():
        run_part(part, maps)
    weight = torch.ones((), requires_grad=True, dtype=torch.float64)
    (run_part(part, maps)[0] * weight).sum().backward()
    assert weight.grad is not None


def test_hooks_of_the_part_run(maps: Tensor) -> None:
    part, seen = backbone().requires_grad_(False), []
    run_part(part, maps)
    part.register_forward_hook(lambda module, *_: seen.append(module))
    run_part(part, maps)
    assert seen == [part]
    assert "forward" not in part.__dict__


@pytest.mark.parametrize("draws", [nn.Dropout(0.5), DropPath(0.5)])
def test_what_draws_in_training_mode_is_not_frozen(draws: nn.Module) -> None:
    part = nn.Sequential(nn.Conv2d(3, 3, 1), draws).requires_grad_(False)
    assert not is_frozen(part.train())
    assert is_frozen(part.eval())
