"""Transformer decoder of PETR (arXiv 2203.05625), as CMT uses it.

Module and parameter names are those of CMT's checkpoints. Layers are post-norm. All layers share a last norm:
it is applied to the states that are returned, not to the state that goes to the next layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from operators.bias import DenseBias
from operators.forms import Bias
from operators.spec import WEIGHTED_KINDS
from pipeline.config.plan import Choice
from pipeline.detector.transformer.config_keys import whole_number, without_type
from pipeline.detector.transformer.ffn import FFN
from pipeline.detector.transformer.initial_weights import pass_values
from pipeline.detector.transformer.site_attention import SiteAttention, build_attention

SELF_KINDS = ("none",)  # the keys are queries, which lie on no grid
CROSS_KINDS = ("none", *WEIGHTED_KINDS)  # those that the bias generator makes


class DecoderLayer(nn.Module):
    """One layer: attentions, norms and feed-forward in the order of the config.

    Attributes:
        attentions: the sites, in the order of the operations.
    """

    def __init__(
        self,
        attn_cfgs: Sequence[Mapping[str, Any]],
        ffn_cfgs: Mapping[str, Any],
        operation_order: Sequence[str],
        path: str,
        default_bias: str = "none",
        cross_kinds: tuple[str, ...] = CROSS_KINDS,
        with_cp: bool = False,
    ):
        """Build from ``transformerlayers``.

        Args:
            attn_cfgs: one entry per attention in ``operation_order``; see ``build_attention``.
            ffn_cfgs: ``dict(type='FFN', embed_dims, feedforward_channels, ffn_drop)``.
            operation_order: names self_attn, cross_attn, ffn and norm; a norm follows what it normalises.
            path: path of the layer, such as ``decoder.3``.
            default_bias: bias kind of cross-attentions whose entry names none.
            cross_kinds: bias kinds that the cross-attention takes.
            with_cp: recompute the layer in the backward pass instead of keeping its activations.

        Raises:
            ValueError: an order of operations that this layer cannot have, or that does not fit
                ``attn_cfgs``.
        """
        super().__init__()
        order = tuple(operation_order)
        unknown = set(order) - {"self_attn", "cross_attn", "norm", "ffn"}
        if unknown or not order or order[0] == "norm":
            raise ValueError(
                f"{path}.operation_order: expected self_attn, cross_attn, ffn, each followed by norm "
                f"(post-norm), got {order}"
            )
        names = [op.removesuffix("_attn") for op in order if op.endswith("_attn")]
        if len(attn_cfgs) != len(names) or len(set(names)) != len(names):
            raise ValueError(
                f"{path}: operation_order has {names}, attn_cfgs has {len(attn_cfgs)} entries; one each"
            )
        if "cross" not in names:
            raise ValueError(f"{path}.operation_order: expected a cross_attn, got {order}")
        self.order, self.with_cp = order, with_cp
        self.attentions = nn.ModuleList(
            build_attention(
                cfg,
                f"{path}.{name}",
                *((SELF_KINDS, "none") if name == "self" else (cross_kinds, default_bias)),
            )
            for cfg, name in zip(attn_cfgs, names, strict=True)
        )
        ffn = without_type(ffn_cfgs, f"{path}.ffn_cfgs", "FFN")
        dims = int(ffn["embed_dims"])
        self.ffns = nn.ModuleList(FFN(**ffn) for op in order if op == "ffn")
        self.norms = nn.ModuleList(nn.LayerNorm(dims) for op in order if op == "norm")

    @property
    def cross(self) -> SiteAttention:
        """The cross-attention of this layer."""
        return next(s for s in self.attentions if isinstance(s, SiteAttention) and s.site.endswith(".cross"))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        self_mask: DenseBias | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        """Run the layer.

        Args:
            query: (B, Q, C) state.
            key: (B, K, C) memory with its position embedding.
            value: (B, K, C) memory.
            query_pos: (B, Q, C).
            self_mask: mask of the self-attention (``denoising_mask``); None: no mask.
            bias: bias of the cross-attention; None: no bias.

        Returns:
            (B, Q, C).
        """
        if self.with_cp and self.training:
            return checkpoint(self._run, query, key, value, query_pos, self_mask, bias, use_reentrant=False)
        return self._run(query, key, value, query_pos, self_mask, bias)

    def _run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        self_mask: DenseBias | None,
        bias: Bias | None,
    ) -> Tensor:
        attentions, ffns, norms = iter(self.attentions), iter(self.ffns), iter(self.norms)
        for op in self.order:
            if op == "self_attn":
                query = next(attentions)(query, query_pos=query_pos, mask=self_mask)
            elif op == "cross_attn":
                query = next(attentions)(query, key, value, query_pos=query_pos, bias=bias)
            elif op == "ffn":
                query = next(ffns)(query)
            else:
                query = next(norms)(query)
        return query


class Decoder(nn.Module):
    """The layers, and the norm that all returned states share."""

    def __init__(
        self,
        num_layers: int,
        transformerlayers: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        default_bias: str = "none",
        return_intermediate: bool = True,
    ):
        """Build from ``transformer.decoder``.

        Args:
            num_layers: L.
            transformerlayers: one config for all layers, or a list with one per layer.
            default_bias: bias kind of cross-attentions whose config names none.
            return_intermediate: must be True, because every layer has a loss.
        """
        super().__init__()
        if not return_intermediate:
            raise ValueError("decoder.return_intermediate=False: every layer has a loss; leave it at True")
        per_layer = layer_configs(transformerlayers, num_layers, "decoder")
        self.layers = nn.ModuleList(
            DecoderLayer(**cfg, path=path, default_bias=default_bias) for path, cfg in per_layer
        )
        self.post_norm = nn.LayerNorm(per_layer[0][1]["attn_cfgs"][0]["embed_dims"])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for site in self.cross_attentions:
            pass_values(site.attn.in_proj_weight, site.attn.out_proj.weight)
        # The content of the queries is zero at first, so a first self-attention gives its bias alone. With a
        # bias of zero, the norm after it multiplies gradients by 1 / sqrt(1e-5) = 316.
        first = self.layers[0]
        if isinstance(first, DecoderLayer) and first.order[0] == "self_attn":
            nn.init.normal_(first.get_parameter("attentions.0.attn.out_proj.bias"))

    @property
    def cross_attentions(self) -> list[SiteAttention]:
        """The cross-attention of every layer."""
        return [layer.cross for layer in self.layers if isinstance(layer, DecoderLayer)]

    @property
    def choices(self) -> list[Choice]:
        """What the cross-attention of every layer does now: the biases that ``forward`` must be given."""
        return [site.choice for site in self.cross_attentions]

    def forward(
        self,
        keys: Tensor,
        memory: Tensor,
        query_pos: Tensor,
        self_mask: DenseBias | None = None,
        biases: Sequence[Bias | None] | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Decode.

        Args:
            keys: (B, K, C) memory with its position embedding.
            memory: (B, K, C).
            query_pos: (B, Q, C); the content of the queries starts at zero.
            self_mask: mask of the self-attentions; None: no mask.
            biases: bias of every layer's cross-attention, of the kinds in ``choices``; None: no bias
                anywhere.
            last_only: return only the state of the last layer.

        Returns:
            (L or 1, B, Q, C).
        """
        states, query = [], torch.zeros_like(query_pos)
        for layer, bias in zip(self.layers, biases or [None] * len(self.layers), strict=True):
            query = layer(query, keys, memory, query_pos, self_mask, bias)
            states.append(query)
        return self.post_norm(torch.stack(states[-1:] if last_only else states))


class CmtTransformer(nn.Module):
    """A module that holds the decoder, so that parameters are named ``transformer.decoder...`` as in CMT."""

    def __init__(self, decoder: Mapping[str, Any], default_bias: str = "none"):
        """Build from ``transformer`` without its ``type``."""
        super().__init__()
        cfg = without_type(decoder, "transformer.decoder", "PETRTransformerDecoder")
        self.decoder = Decoder(**cfg, default_bias=default_bias)


def layer_configs(
    transformerlayers: Mapping[str, Any] | Sequence[Mapping[str, Any]], num_layers: int, part: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return the config of every layer from ``transformerlayers``: one config for all, or a list.

    Args:
        transformerlayers: as in the config.
        num_layers: L.
        part: ``decoder`` or ``aqr``.

    Returns:
        (path such as ``decoder.3``, arguments of ``DecoderLayer``) per layer.
    """
    whole_number(f"{part}.num_layers", num_layers)
    if isinstance(transformerlayers, Mapping):
        per_layer: list[Mapping[str, Any]] = [transformerlayers] * num_layers
    else:
        per_layer = list(transformerlayers)
    if len(per_layer) != num_layers:
        raise ValueError(f"{part}: num_layers={num_layers}, but transformerlayers lists {len(per_layer)}")
    return [(f"{part}.{i}", read_layer(cfg, f"{part}.{i}")) for i, cfg in enumerate(per_layer)]


def read_layer(cfg: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Read an entry of ``transformerlayers``; drop ``type``, and the hidden width if it is given twice."""
    given = without_type(cfg, path, "PETRTransformerDecoderLayer")
    attentions, ffn = given.get("attn_cfgs"), given.get("ffn_cfgs", {})
    if not isinstance(attentions, list | tuple) or not isinstance(ffn, Mapping):
        raise ValueError(f"{path}: expected a list as attn_cfgs, one entry each, and a dict as ffn_cfgs")
    for i, attention in enumerate(attentions):
        if not {"type", "embed_dims", "num_heads"} <= set(attention):
            raise ValueError(f"{path}.attn_cfgs.{i}: expected the keys type, embed_dims and num_heads")
    hidden = given.pop("feedforward_channels", None)
    if "ffn_cfgs" not in given:
        dims = given["attn_cfgs"][0]["embed_dims"]
        given["ffn_cfgs"] = {
            "embed_dims": dims,
            "feedforward_channels": hidden or 4 * dims,
        }  # 1024 for 256, as in CMT
    width = given["ffn_cfgs"].get("feedforward_channels")
    if width is None or "embed_dims" not in given["ffn_cfgs"]:
        raise ValueError(f"{path}.ffn_cfgs: expected the keys embed_dims and feedforward_channels")
    if hidden not in (None, width):
        raise ValueError(f"{path}: feedforward_channels={hidden}, but ffn_cfgs.feedforward_channels={width}")
    return given
