"""Which box a BEV cell lies in and a camera cell shows; and the losses of the keys that follow from it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from operators.grid import CAMERA, LIDAR, TokenGrid
from pipeline.detector.build import build_model
from pipeline.detector.head.box_coder import encode_boxes
from pipeline.detector.head.cell_targets import CellTargets, cell_targets
from pipeline.detector.head.predictions import Predictions
from pipeline.detector.head.targets import Targets
from pipeline.detector.openmmlab.data_samples import collate

CLASSES, CELLS, ROWS, COLS = 10, 20, 8, 12
RANGE = torch.tensor([-10.0, -10.0, -5.0, 10.0, 10.0, 3.0])  # cells of 1 m


def memory(views: int = 1) -> Any:
    """Keys of a BEV map and of cameras that look along x, 96 x 64 pixels, a focal length of 48."""
    matrix = torch.tensor([[48.0, -48, 0, 0], [32, 0, -48, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    grid = TokenGrid.of((CELLS, CELLS, LIDAR), *[(ROWS, COLS, CAMERA)] * views)
    return SimpleNamespace(grid=grid, lidar2img=matrix.expand(1, views, 4, 4), pad_hw=(64, 96))


def truth(*boxes: list[float], labels: tuple[int, ...]) -> Targets:
    """Ground truth of one sample from x, y, z, length, width, height, yaw."""
    rows = torch.tensor([[*box, 0.0, 0.0] for box in boxes])
    return Targets.of([rows], [torch.tensor(labels)], places=len(boxes) + 2)


def maps(found: CellTargets) -> tuple[Tensor, Tensor]:
    """Labels of the BEV map and of the first camera."""
    bev = CELLS * CELLS
    return found.labels[0, :bev].view(CELLS, CELLS), found.labels[0, bev:].view(-1, ROWS, COLS)[0]


def test_a_box_covers_the_cells_whose_centres_lie_in_it() -> None:
    """4 x 2 m at x = 3, y = -5, turned by 90 degrees: 2 columns and 4 rows."""
    found = cell_targets(memory(), RANGE, truth([3, -5, 0, 4, 2, 1, math.pi / 2], labels=(7,)), CLASSES)
    bev, _ = maps(found)
    expected = torch.full((CELLS, CELLS), CLASSES)
    expected[3:7, 12:14] = 7  # y from -7 to -3, x from 2 to 4
    assert torch.equal(bev, expected)
    share = found.share[0, : CELLS * CELLS].view(CELLS, CELLS)
    assert (share[expected == 7] == 1 / 8).all()
    assert (share[expected == CLASSES] == 0).all()


def test_a_box_turns_with_its_yaw() -> None:
    """Along the diagonal towards x and y, it covers cells there, and none towards x and minus y."""
    found = cell_targets(memory(), RANGE, truth([0, 0, 0, 10, 2, 1, math.pi / 4], labels=(7,)), CLASSES)
    bev, _ = maps(found)
    assert bev[12, 12] == bev[7, 7] == 7
    assert bev[7, 12] == bev[12, 7] == CLASSES


def test_the_smallest_box_has_a_cell() -> None:
    cells_of_80_cm = RANGE * 0.8
    for at in torch.rand(50, 2) * 14 - 7:
        box = [float(at[0]), float(at[1]), 0, 0.3, 0.3, 1, math.pi / 4]
        bev, _ = maps(cell_targets(memory(), cells_of_80_cm, truth(box, labels=(1,)), CLASSES))
        assert 1 <= (bev == 1).sum() <= 5


def test_a_cell_in_two_boxes_belongs_to_the_nearer_centre() -> None:
    found = cell_targets(
        memory(), RANGE, truth([0, 0, 0, 8, 4, 1, 0], [3, 0, 0, 4, 2, 1, 0], labels=(2, 5)), CLASSES
    )
    bev, _ = maps(found)
    assert bev[10, 13] == 5
    assert bev[10, 7] == 2
    assert found.share[0, : CELLS * CELLS].sum() == pytest.approx(2, abs=1e-5)


def test_a_camera_cell_shows_the_nearest_box_of_its_rectangle() -> None:
    """Cells have 8 pixels. The near box fills 36 to 60 by 20 to 44, the far one 21 to 75 by 27 to 37."""
    near, far = [5, 0, 0, 2, 2, 2, 0], [9.5, 0, 0, 1, 10, 2, 0]
    _, camera = maps(cell_targets(memory(2), RANGE, truth(near, far, labels=(3, 4)), CLASSES))
    expected = torch.full((ROWS, COLS), CLASSES)
    expected[3:5, 3:9] = 4
    expected[2:6, 4:8] = 3
    assert torch.equal(camera, expected)
    behind = cell_targets(memory(), RANGE, truth([-5, 0, 0, 2, 2, 2, 0], labels=(3,)), CLASSES)
    assert (maps(behind)[1] == CLASSES).all()


def test_without_a_box_nothing_is_shown() -> None:
    empty = Targets.of([torch.zeros(0, 9)], [torch.zeros(0, dtype=torch.long)])
    found = cell_targets(memory(), RANGE, empty, CLASSES)
    assert (found.labels == CLASSES).all()
    assert (found.share == 0).all()


def test_perfect_predictions_cost_nothing_and_each_box_counts_once(make_sample: Any) -> None:
    criterion = build_model("experiments/configs/cmt_aqr_pillar_mini.py").pts_bbox_head.criterion
    given = truth([3, -5, 0, 4, 2, 1, 0.3], [-4, 4, 0, 8, 4, 2, 0], labels=(7, 2))
    cells = cell_targets(memory(), RANGE, given, CLASSES)
    codes = encode_boxes(given.boxes).nan_to_num().take_along_dim(cells.box[..., None], dim=1)
    logits = torch.where(torch.arange(CLASSES) == cells.labels[..., None], 20.0, -20.0)
    count = torch.tensor(2.0)
    terms = criterion.token_terms(Predictions(codes[None], logits[None]), cells, given, count)
    assert terms.abs().max() < 1e-6
    moved = codes.clone()
    moved[..., 0] += 1  # m, with a weight of 2 in the box loss of weight 0.25
    _, box = criterion.token_terms(Predictions(moved[None], logits[None]), cells, given, count)
    assert box == pytest.approx(2 * 0.25, rel=1e-5)
    layers = Predictions(torch.stack([moved, codes]), torch.stack([logits, -logits]))
    wrong, _ = criterion.token_terms(Predictions(codes[None], -logits[None]), cells, given, count)
    torch.testing.assert_close(
        criterion.token_terms(layers, cells, given, count), torch.stack([wrong / 2, box / 2])
    )


@pytest.mark.parametrize("alone", [False, True])
def test_a_model_trains_with_losses_of_its_keys(alone: bool, make_sample: Any) -> None:
    options = {"pts_bbox_head.token_loss_weight": 1.0, "pts_bbox_head.query_losses": not alone}
    overrides = tuple((f"model.{key}", str(value).lower()) for key, value in options.items())
    overrides += (("optim_wrapper.paramwise_cfg.custom_keys", "{}"),)  # nothing is frozen
    model = build_model("experiments/configs/cmt_aqr_pillar_mini.py", overrides=overrides).train()
    data = collate([make_sample(0), make_sample(1)])
    ran = []
    model.pts_bbox_head.transformer.decoder.register_forward_hook(lambda *_: ran.append(True))
    losses = model(**model.data_preprocessor(data, training=True), mode="loss")
    assert {"token_loss_cls", "token_loss_bbox"} <= losses.keys()
    assert ("loss_cls" in losses) == bool(ran) == (not alone)
    sum(losses.values()).backward()
    for branch in ("img_backbone", "pts_branch"):
        assert any(
            p.grad is not None and p.grad.abs().max() > 0 for p in model.get_submodule(branch).parameters()
        )
    learns = model.pts_bbox_head.transformer.decoder.layers[0].ffns[0].layers[1].weight.grad
    assert (learns is None) == alone
    heads = model.pts_bbox_head.task_heads[0].cls_logits[-1].weight.grad
    per_layer = heads.unflatten(0, (3, -1)).flatten(1).abs().amax(dim=1)
    assert (per_layer > 0).all(), "the heads of every layer learn"
    model.pts_bbox_head.train_graphs = SimpleNamespace(admit=lambda used: True)
    assert (model.pts_bbox_head._active_train_graphs() is None) == alone  # there is no decoder to capture


def test_no_losses_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="query_losses=False needs a token_loss_weight above 0"):
        build_model(
            "experiments/configs/cmt_aqr_pillar_mini.py",
            overrides=(("model.pts_bbox_head.query_losses", "false"),),
        )
