"""VoVNet with eSE blocks (arXiv 1911.06667): the image backbone of CMT's large model.

Our own code, written after youngwanLEE/vovnet-detectron2 and junjie18/CMT, ``vovnet.py``. Module names,
slashes included, are those of the published weights.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class VoVNetError(ValueError):
    """There is no VoVNet of that name, or it has no such stage."""


@dataclass(frozen=True)
class Spec:
    """Sizes of one network of the family.

    Attributes:
        blocks: number of OSA blocks in stages 2 to 5.
        convs: number of 3x3 convolutions per block.
        widths: channels of those convolutions, per stage.
        outputs: output channels, per stage.
        stem: channels of the three convolutions of the stem.
    """

    blocks: tuple[int, ...]
    convs: int = 5
    widths: tuple[int, ...] = (128, 160, 192, 224)
    outputs: tuple[int, ...] = (256, 512, 768, 1024)
    stem: tuple[int, ...] = (64, 64, 128)


SPECS = {
    "V-39-eSE": Spec(blocks=(1, 1, 2, 2)),
    "V-57-eSE": Spec(blocks=(1, 1, 4, 3)),
    "V-99-eSE": Spec(blocks=(1, 3, 9, 3)),
}
STAGES = ("stem", "stage2", "stage3", "stage4", "stage5")


def conv(name: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> OrderedDict[str, Any]:
    """Return convolution, batch norm and ReLU, with the published names ``<name>/conv``, ..."""
    return OrderedDict(
        {
            f"{name}/conv": nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            f"{name}/norm": nn.BatchNorm2d(outputs),
            f"{name}/relu": nn.ReLU(inplace=True),
        }
    )


class EffectiveSE(nn.Module):
    """Scale the channels by a hard sigmoid of a linear map of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of (N, C, H, W)."""
        return x * F.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class OSABlock(nn.Module):
    """One-shot aggregation: a chain of convolutions whose input and outputs are concatenated at the end."""

    def __init__(self, name: str, inputs: int, width: int, outputs: int, convs: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        widths = [inputs] + [width] * convs
        self.layers = nn.ModuleList(
            nn.Sequential(conv(f"{name}_{i}", widths[i], width)) for i in range(convs)
        )
        self.concat = nn.Sequential(conv(f"{name}_concat", sum(widths), outputs, kernel=1))
        self.ese = EffectiveSE(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        mixed = self.ese(self.concat(torch.cat(maps, dim=1)))
        return mixed + x if self.residual else mixed


def stage(number: int, spec: Spec, inputs: int) -> nn.Sequential:
    """Return a stage: max-pooling from stage 3 on, then blocks. All but the first have a residual."""
    i = number - 2
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if number > 2:
        parts["Pooling"] = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
    for block in range(spec.blocks[i]):
        name = f"OSA{number}_{block + 1}"
        into = spec.outputs[i] if block else inputs
        parts[name] = OSABlock(name, into, spec.widths[i], spec.outputs[i], spec.convs, residual=block > 0)
    return nn.Sequential(parts)


@MODELS.register_module()
class VoVNet(BaseModule):
    """VoVNetV2. The strides of stem and stages are 4, 4, 8, 16, 32.

    Args:
        spec_name: a name in ``SPECS``.
        input_ch: channels of the images.
        out_features: names of the returned maps, from ``STAGES`` and in that order.
        frozen_stages: stages up to this one are frozen: 0: the stem, 1: also stage 2, ...; -1: none.
        norm_eval: whether all batch norms keep their statistics in training.
        with_cp: recompute each stage in the backward pass instead of keeping its activations; ours.
        init_cfg: see mmengine; Kaiming for the convolutions by default.

    Raises:
        VoVNetError: an unknown network, or unknown stages.
    """

    def __init__(
        self,
        spec_name: str = "V-99-eSE",
        input_ch: int = 3,
        out_features: Sequence[str] = ("stage4", "stage5"),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Kaiming", "layer": "Conv2d", "mode": "fan_in"})
        if spec_name not in SPECS:
            raise VoVNetError(f"VoVNet.spec_name: expected one of {', '.join(SPECS)}, got {spec_name!r}")
        if not out_features or list(out_features) != [name for name in STAGES if name in out_features]:
            raise VoVNetError(
                f"VoVNet.out_features: expected some of {', '.join(STAGES)} in this order, "
                f"got {list(out_features)}"
            )
        if not -1 <= frozen_stages < len(STAGES):
            raise VoVNetError(f"VoVNet.frozen_stages: expected -1 to {len(STAGES) - 1}, got {frozen_stages}")
        spec = SPECS[spec_name]
        self.out_features = tuple(out_features)
        self.frozen_stages, self.norm_eval, self.with_cp = frozen_stages, norm_eval, with_cp
        first, second, third = spec.stem
        self.stem = nn.Sequential(
            conv("stem_1", input_ch, first, stride=2)
            | conv("stem_2", first, second)
            | conv("stem_3", second, third, stride=2)
        )
        inputs = third
        for number, outputs in enumerate(spec.outputs, start=2):
            self.add_module(f"stage{number}", stage(number, spec, inputs))
            inputs = outputs
        for name in STAGES[: frozen_stages + 1]:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of ``out_features`` for images (N, input_ch, H, W)."""
        maps = []
        for name in STAGES:
            part = self.get_submodule(name)
            if self.with_cp and self.training and x.requires_grad:
                x = checkpoint(part, x, use_reentrant=False)
            else:
                x = part(x)
            if name in self.out_features:
                maps.append(x)
            if len(maps) == len(self.out_features):
                break
        return tuple(maps)

    def train(self, mode: bool = True) -> "VoVNet":
        """Set the mode. With ``norm_eval``, and in frozen stages, batch norms keep their statistics."""
        super().train(mode)
        frozen = [self.get_submodule(name) for name in STAGES[: self.frozen_stages + 1]]
        for module in self.modules() if self.norm_eval else (m for part in frozen for m in part.modules()):
            if isinstance(module, _BatchNorm):
                module.training = False
        return self
