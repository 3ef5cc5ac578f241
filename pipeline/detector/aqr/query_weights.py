"""Adaptive query weights (AQR): the weights of LiDAR and cameras for each query.

A small cross-attention encoder attends, for every query, to the memory around the query's projection (a local
mask). It ends in two numbers in [-1, 1]. Mask and encoder are those of MoME (repository konyul/MoME,
``multi_expert.py``).
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from operators.window_bias import LocalMask
from pipeline.detector.aqr.projection import ProjectedQueries
from pipeline.detector.transformer.config_keys import whole_number
from pipeline.detector.transformer.decoder import DecoderLayer, layer_configs
from pipeline.detector.transformer.ffn import FFN
from pipeline.detector.transformer.site_attention import SiteAttention

AQR_KINDS = ("local", "none")  # the encoder's attention has the local mask or none; it takes no other bias
INITIAL_LOGIT = 1.5  # both weights start at tanh(1.5) = 0.905 (published AQR)


class AqrEncoder(nn.Module):
    """Cross-attention layers and a final norm; parameter names are those of MoME's checkpoint."""

    def __init__(
        self,
        embed_dims: int,
        transformerlayers: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        num_layers: int = 1,
    ) -> None:
        """Build from ``encoder_config``; the site of layer i is ``aqr.<i>.cross``."""
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(**cfg, path=path, default_bias="local", cross_kinds=AQR_KINDS)
            for path, cfg in layer_configs(transformerlayers, num_layers, "aqr")
        )
        self._large = [m for m in self.modules() if isinstance(m, SiteAttention | FFN)]
        self.post_norm = nn.LayerNorm(embed_dims)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith("in_proj_weight"):
                nn.init.xavier_uniform_(parameter)

    def forward(self, keys: Tensor, memory: Tensor, query_pos: Tensor, mask: LocalMask) -> Tensor:
        """Attend from queries without content, and return (B, Q, C); shapes as in ``AqrWeightGenerator``."""
        query = torch.zeros_like(query_pos)
        for module in self._large:
            # A layer here would keep as many activations as one of the decoder. A CPU has the memory.
            module.recompute = keys.is_cuda
        for layer in self.layers:
            masked = cast(DecoderLayer, layer).cross.choice.bias == "local"
            query = layer(query, keys, memory, query_pos, bias=mask if masked else None)
        return cast(Tensor, self.post_norm(query))


@MODELS.register_module()
class AqrWeightGenerator(BaseModule):
    """Two weights per query, LiDAR and camera, from the memory around its projection.

    Args:
        embed_dims: C, of queries and memory.
        encoder_config: ``dict(transformerlayers=..., num_layers=1)`` with one layer or a list of layers in
            the syntax of PETR's decoder, with ``operation_order=('cross_attn', 'norm', 'ffn', 'norm')``.
        window_lidar, window_camera: window sizes of the local mask, in cells.
        init_cfg: see mmengine.
    """

    def __init__(
        self,
        embed_dims: int,
        encoder_config: Mapping[str, Any],
        window_lidar: int = 5,
        window_camera: int = 15,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.window_sizes = (
            whole_number("aqr_config.window_lidar", window_lidar),
            whole_number("aqr_config.window_camera", window_camera),
        )
        self.encoder = AqrEncoder(embed_dims, **encoder_config)
        self.weight_head = nn.Linear(embed_dims, 2)
        nn.init.constant_(self.weight_head.bias, INITIAL_LOGIT)
        # Both are added to the query embedding and not to the keys, as in MoME.
        self.bev_type_embed = nn.Parameter(torch.randn(embed_dims))
        self.rv_type_embed = nn.Parameter(torch.randn(embed_dims))

    @property
    def attentions(self) -> list[SiteAttention]:
        """The attention sites, from the first layer to the last."""
        return [module for module in self.encoder.modules() if isinstance(module, SiteAttention)]

    def forward(self, keys: Tensor, memory: Tensor, query_pos: Tensor, geometry: ProjectedQueries) -> Tensor:
        """Compute the weights of the sensors.

        Args:
            keys: (B, K, C) memory with its position embedding.
            memory: (B, K, C) BEV tokens, then camera tokens.
            query_pos: (B, Q, C) query embedding of the decoder.
            geometry: where the queries project to.

        Returns:
            (B, Q, 2) float32 in [-1, 1]: LiDAR, camera.
        """
        mask = LocalMask(geometry.grid, geometry.windows(self.window_sizes))
        position = query_pos + self.bev_type_embed + self.rv_type_embed
        return torch.tanh(self.weight_head(self.encoder(keys, memory, position, mask)).float())
