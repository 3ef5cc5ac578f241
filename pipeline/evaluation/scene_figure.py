"""Draws the query weights of one frame: weight maps and windows over the BEV and one camera's image.

Drawn once per trial with a bias, always of the same frame, so that the figures of two trials can be compared.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from operators.spec import WINDOWED_KINDS
from pipeline.data.augmentation.transforms import resize_crop
from pipeline.data.sample import CAMERAS, Sample
from pipeline.detector.aqr.weight_maps import weight_maps
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.precision import autocast

SHOWN = 8
"""Queries whose windows are drawn, highest score first; more would cover the figure."""
SPREAD_CELLS = 2.0
"""Width of a query's vote in a weight map: wide enough to read on a phone."""
WEIGHT_COLOURS = "cividis"
"""Made for people with any colour vision, and growing in lightness: it is legible in grey."""
WINDOW_COLOURS = ("#ffffff", "#d62a00")
"""Rim and line of a window: one of them is seen on any background."""
DPI = 150
"""735 pixels wide: a phone's column at two pixels a CSS pixel, in 200 to 400 kB."""


@dataclass(frozen=True)
class SceneFigure:
    """One frame and what the model computed from it; Q queries, S segments (BEV, then V cameras).

    Attributes:
        images: (V, h, w, 3) uint8 RGB, as the model gets them.
        points: (N, 2) x and y in m. boxes: (M, 4, 2) corners of the true boxes, seen from above, m.
        area: x and y minimum, x and y maximum in m of the BEV.
        maps: per segment the weight map, (rows, cols) in [-1, 1].
        rects: (Q, S, 4) windows of the last layer that has some: row first, row last, column first, column
            last.
        surest: queries by falling score.
    """

    images: NDArray[np.uint8]
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    area: tuple[float, float, float, float]
    maps: Sequence[NDArray[np.float32]]
    rects: NDArray[np.int32]
    surest: NDArray[np.int64]


def capture_scene(model: Any, sample: Sample, amp: bool = False) -> SceneFigure | None:
    """Run the detector on one frame and keep its query weights.

    Args:
        model: the bare detector, on its device.
        sample: a frame of native size.
        amp: bfloat16 autocast.

    Returns:
        None if no site has a bias: then there are no weights. Neither is there a figure of one sensor.
    """
    head, frame = model.pts_bbox_head, resize_crop(sample, model.image_size)
    if head.aqr is None or len(head.SENSORS) < 2:
        return None
    kept: list[tuple[Any, torch.Tensor]] = []
    hook = head.aqr.register_forward_hook(lambda _, given, weights: kept.append((given[3], weights)))
    was_training, device = model.training, next(model.parameters()).device.type
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, amp):
            output = model(**model.data_preprocessor(collate([frame]), False), mode="tensor")
            if not kept:
                return None
            geometry, weights = kept[0]
            maps = weight_maps(weights, geometry, SPREAD_CELLS)
            rects = geometry.windows(_window_sizes(head))[0]
            surest = output.matching.logits[-1][0].amax(dim=-1).argsort(descending=True)
    finally:
        hook.remove()
        model.train(was_training)
    low, high = model.point_range[:2], model.point_range[3:5]
    return SceneFigure(
        images=np.ascontiguousarray(frame.images[..., ::-1]),
        points=frame.points[:, :2],
        boxes=_corners(frame.boxes),
        area=(low[0], low[1], high[0], high[1]),
        maps=[part[0].float().cpu().numpy() for part in maps],
        rects=rects.cpu().numpy(),
        surest=surest.cpu().numpy(),
    )


def _window_sizes(head: Any) -> tuple[int, int]:
    """Return the sizes of the windows to draw: of the last layer that has some, else the config's."""
    choices = [choice for choice in head.transformer.decoder.choices if choice.bias in WINDOWED_KINDS]
    sizes: tuple[int, int] = head.bias_generator.window_sizes_of(choices[-1].window if choices else None)
    return sizes


def save_scene_figure(view: SceneFigure, path: Path) -> None:
    """Draw a view and write it as a PNG, 735 pixels wide, for light and dark pages alike."""
    figure = Figure(figsize=(4.9, 7.9), layout="constrained", facecolor="white")
    height = view.images.shape[1] / view.images.shape[2]
    above, below = figure.subplots(2, 1, height_ratios=[1.0, height])
    least = min(float(part.min()) for part in view.maps)
    scale = {"cmap": WEIGHT_COLOURS, "vmin": min(least, 0.99), "vmax": 1.0}
    drawn = _draw_bev(above, view, scale)
    _draw_camera(below, view, _camera(view), scale)
    bar = figure.colorbar(drawn, ax=[above, below], location="bottom", shrink=0.9, aspect=40, pad=0.02)
    bar.set_label("weight of the sensor; far from all queries 1", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    path.write_bytes(buffer.getvalue())


def _draw_bev(axes: Axes, view: SceneFigure, scale: dict[str, Any]) -> Any:
    x0, y0, x1, y1 = view.area
    drawn = axes.imshow(view.maps[0], origin="lower", extent=(x0, x1, y0, y1), **scale)
    axes.scatter(view.points[:, 0], view.points[:, 1], s=0.25, color="black", alpha=0.35, linewidths=0)
    for corners in view.boxes:
        axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor="black", linewidth=0.9))
    rows, cols = view.maps[0].shape
    unit = ((x1 - x0) / cols, (y1 - y0) / rows)
    _draw_windows(axes, view.rects[view.surest[:SHOWN], 0], (x0, y0), unit)
    axes.set(xlim=(x0, x1), ylim=(y0, y1), title="From above: LiDAR weight", xlabel="x, m", ylabel="y, m")
    return drawn


def _draw_camera(axes: Axes, view: SceneFigure, camera: int, scale: dict[str, Any]) -> None:
    height, width = view.images.shape[1:3]
    rows, cols = view.maps[1 + camera].shape
    axes.imshow(view.images[camera])
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(view.maps[1 + camera], extent=extent, alpha=0.4, interpolation="bilinear", **scale)
    rects = view.rects[view.surest[:SHOWN], 1 + camera]
    _draw_windows(axes, rects, (-0.5, -0.5), (width / cols, height / rows))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_title(f"{CAMERAS[camera]}: camera weight")


def _draw_windows(
    axes: Axes, rects: NDArray[np.int32], origin: tuple[float, float], cell: tuple[float, float]
) -> None:
    """Frame windows, (n, 4) in cells; empty ones are left out."""
    for first_row, last_row, first_col, last_col in rects:
        if last_row < first_row:
            continue
        corner = (origin[0] + first_col * cell[0], origin[1] + first_row * cell[1])
        sides = ((last_col - first_col + 1) * cell[0], (last_row - first_row + 1) * cell[1])
        for colour, width in zip(WINDOW_COLOURS, (2.6, 1.2), strict=True):
            axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=width))


def _camera(view: SceneFigure) -> int:
    """Return the camera that sees most of the surest queries; of equals the first."""
    windows = view.rects[view.surest[:SHOWN], 1:]
    return int((windows[..., 1] >= windows[..., 0]).sum(axis=0).argmax())


def _corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the corners (M, 4, 2), seen from above, of boxes as in ``Sample.boxes``."""
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)], dtype=np.float32)
    local = signs * boxes[:, None, 3:5] / 2
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    corners: NDArray[np.float32] = local @ turn.swapaxes(1, 2) + boxes[:, None, :2]
    return corners
