"""Shapes of the maps that the head reads, and pairs of numbers in a config that must agree.

Backbones and necks run on the meta device, where a tensor has a shape and no values. The sparse encoder does
not run: the shape of its output follows from ``sparse_shape`` by the arithmetic of mmdet3d's
    ``SparseEncoder``.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from pipeline.detector.inspection.meta_device import meta_device
from pipeline.detector.inspection.sites import HEAD, PARTS, Key


@dataclass(frozen=True)
class Join:
    """A number of the config that must equal the output of another part.

    Attributes:
        key: place of the number in the config.
        takes: the number in the config.
        gives: the number that it must be.
        giver: the part whose output it is, such as ``img_backbone``.
        what: the quantity, such as ``channels``.
    """

    key: Key
    takes: Any
    gives: Any
    giver: str
    what: str = "channels"

    @property
    def fits(self) -> bool:
        """Whether the two numbers agree."""
        return _listed(self.takes) == _listed(self.gives)


@dataclass(frozen=True)
class Canvas:
    """Channels and size (rows, columns) of the input of the LiDAR backbone."""

    channels: int
    size: tuple[int, int]


@dataclass
class Flow:
    """What is known of the maps from the first part to the head.

    Attributes:
        joins: all pairs of numbers that must agree.
        stuck: part that refuses its input -> what it says.
        bev: rows and columns of the BEV map; None if a part is missing or does not fit.
        camera: those of a camera map.
    """

    joins: list[Join]
    stuck: dict[Key, str] = field(default_factory=dict)
    bev: tuple[int, int] | None = None
    camera: tuple[int, int] | None = None


def flow(model: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> Flow:
    """Compute the shapes of both branches up to the head.

    Args:
        model: ``cfg.model`` as plain dicts.
        modules: its parts that could be built, on the meta device.
    """
    found = Flow(list(_widths(model["pts_bbox_head"])))
    found.camera = _image(model, modules, found)
    found.bev = _lidar(model, modules, found)
    return found


def _image(model: Mapping[str, Any], modules: Mapping[str, nn.Module], found: Flow) -> tuple[int, int] | None:
    backbone, neck, size = modules.get("img_backbone"), modules.get("img_neck"), model.get("image_size")
    if backbone is None or size is None:
        return None
    levels = _run(backbone, torch.zeros(1, 3, *size, device="meta"), ("img_backbone",), found)
    neck_cfg = model.get("img_neck") or {}
    if levels is None:
        return None
    fed = Join(
        ("model", "img_neck", "in_channels"), neck_cfg.get("in_channels"), _widths_of(levels), "img_backbone"
    )
    found.joins.append(fed)
    if neck is not None and fed.fits:
        levels = _run(neck, levels, ("img_neck",), found) or levels
        _into_head(model, "hidden_dim", levels[0].shape[1], "img_neck", found)
    return _size(levels[0])


@dataclass(frozen=True)
class _LidarParts:
    """The four LiDAR parts. They are in ``pts_branch`` or, with names ``pts_...``, in the model itself."""

    model: Mapping[str, Any]
    modules: Mapping[str, nn.Module]

    @property
    def branch(self) -> Mapping[str, Any] | None:
        return self.model.get("pts_branch")

    def name(self, part: str) -> tuple[str, ...]:
        return ("pts_branch", part) if self.branch else (f"pts_{part}",)

    def cfg(self, part: str) -> Mapping[str, Any]:
        return (self.branch or self.model).get(self.name(part)[-1]) or {}

    def module(self, part: str) -> nn.Module | None:
        if self.branch is None:
            return self.modules.get(self.name(part)[-1])
        return getattr(self.modules.get("pts_branch"), part, None)

    def join(self, part: str, gives: Any, giver: str) -> Join:
        key = ("model", *self.name(part), "in_channels")
        return Join(key, self.cfg(part).get("in_channels"), gives, ".".join(self.name(giver)))


def _lidar(model: Mapping[str, Any], modules: Mapping[str, nn.Module], found: Flow) -> tuple[int, int] | None:
    parts = _LidarParts(model, modules)
    encoded = _encoded_channels(parts.cfg("voxel_encoder"))
    if encoded is not None:
        found.joins.append(parts.join("middle_encoder", encoded, "voxel_encoder"))
    canvas = _canvas(parts.cfg("middle_encoder"), parts.branch or {})
    if canvas is None:
        return None
    levels: Any = torch.zeros(1, canvas.channels, *canvas.size, device="meta")
    gives: Any = canvas.channels
    for part, giver in (("backbone", "middle_encoder"), ("neck", "backbone")):
        found.joins.append(parts.join(part, gives, giver))
        module = parts.module(part)
        fits = module is not None and found.joins[-1].fits
        levels = _run(module, levels, parts.name(part), found) if fits else None
        if levels is None:
            return None
        gives = _widths_of(levels)
    _into_head(model, "in_channels", gives[0], ".".join(parts.name("neck")), found)
    return _size(levels[0])


def _canvas(middle: Mapping[str, Any], branch: Mapping[str, Any]) -> Canvas | None:
    """Return the output shape of the middle encoder: the grid of pillars, or the reduced sparse grid."""
    if "grid_shape" in branch:
        rows, cols = branch["grid_shape"]
        return Canvas(int(middle.get("in_channels", 0)), (rows, cols))
    if "output_shape" in middle:
        return Canvas(int(middle.get("in_channels", 0)), tuple(middle["output_shape"]))
    if "sparse_shape" not in middle:
        return None
    made = MODELS.get(str(middle.get("type")))
    parameters = inspect.signature(made.__init__).parameters if made is not None else {}
    middle = {**{name: one.default for name, one in parameters.items()}, **middle}
    levels, rows, cols = middle["sparse_shape"]
    paddings = middle.get("encoder_paddings", ())
    stages = [stage if isinstance(stage, Sequence) else (stage,) for stage in paddings]
    at_end = middle.get("block_type") == "basicblock"  # else each stage but the first begins with a stride
    for down in [stage[-1] for stage in stages[:-1]] if at_end else [stage[0] for stage in stages[1:]]:
        pad_z, pad_y, pad_x = down if isinstance(down, Sequence) else (down,) * 3
        levels, rows, cols = (_strided(n, pad) for n, pad in ((levels, pad_z), (rows, pad_y), (cols, pad_x)))
    return Canvas(int(middle.get("output_channels", 128)) * _strided(levels, 0), (rows, cols))


def _strided(cells: int, padding: int) -> int:
    """Return the number of output cells of a convolution with kernel 3 and stride 2."""
    return (cells + 2 * padding - 3) // 2 + 1


def _encoded_channels(encoder: Mapping[str, Any]) -> int | None:
    if "feat_channels" in encoder:
        return int(encoder["feat_channels"][-1])
    return int(encoder["num_features"]) if "num_features" in encoder else None


def _widths(head: Mapping[str, Any]) -> Iterator[Join]:
    """Yield all places that repeat the width of the model, ``hidden_dim``."""
    width = head.get("hidden_dim")
    generator = head.get("aqr_config") or {}
    if "embed_dims" in generator:
        yield Join((*HEAD, "aqr_config", "embed_dims"), generator["embed_dims"], width, "hidden_dim")
    for keys in PARTS.values():
        node: Any = head
        for key in keys:
            node = (node or {}).get(key)
        layers = (node or {}).get("transformerlayers") or ()
        many = (
            [((), layers)]
            if isinstance(layers, Mapping)
            else [((i,), layer) for i, layer in enumerate(layers)]
        )
        for number, layer in many:
            at = (*HEAD, *keys, "transformerlayers", *number)
            for j, attention in enumerate(layer.get("attn_cfgs", ())):
                if "embed_dims" in attention:
                    yield Join(
                        (*at, "attn_cfgs", j, "embed_dims"), attention["embed_dims"], width, "hidden_dim"
                    )
            ffn = layer.get("ffn_cfgs") or {}
            if "embed_dims" in ffn:
                yield Join((*at, "ffn_cfgs", "embed_dims"), ffn["embed_dims"], width, "hidden_dim")


def _into_head(model: Mapping[str, Any], key: str, gives: int, giver: str, found: Flow) -> None:
    found.joins.append(Join((*HEAD, key), model["pts_bbox_head"].get(key), gives, giver))


def _run(module: Any, given: Any, part: tuple[str, ...], found: Flow) -> Sequence[Tensor] | None:
    """Run a part on meta tensors, and return its maps; None, and a note, if it fails."""
    module.eval()  # mmdet's backbones return None
    try:
        with torch.no_grad(), meta_device():
            maps = module(given)
    except (RuntimeError, ValueError, AssertionError) as error:  # mostly sizes that do not fit
        # Some modules read values, which a meta tensor has not; they say nothing about the config.
        if not isinstance(error, NotImplementedError) and "meta" not in str(error).lower():
            found.stuck[("model", *part)] = str(error).partition("\n")[0] or type(error).__name__
        return None
    return maps if isinstance(maps, list | tuple) else [maps]


def _widths_of(levels: Sequence[Tensor]) -> list[int]:
    return [level.shape[1] for level in levels]


def _size(level: Tensor) -> tuple[int, int]:
    return int(level.shape[-2]), int(level.shape[-1])


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
