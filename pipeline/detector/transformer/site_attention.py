"""One attention site of the model: the projections, and between them the attention call that the plan chose.

Parameters are named as in CMT's checkpoints (``attn.in_proj_weight``, ...). The caller gives keys, values and
bias. ``SiteAttention.choice`` names the bias kind and the implementation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators import attention, objections
from operators.forms import Bias
from operators.registry import entry
from operators.spec import BIAS_KINDS, WEIGHTED_KINDS, Request
from operators.window_bias import LocalMask
from pipeline.config.plan import Choice, PlanError
from pipeline.detector.acceleration.recompute import recomputed
from pipeline.detector.transformer.initial_weights import align

ATTENTION_TYPES = ("MultiheadAttention", "PETRMultiheadAttention", "PETRMultiheadFlashAttention")
"""``type=`` names in users' configs. All build a ``SiteAttention``; the other keys give its choice."""

CHOICE_KEYS = {"use_flashbias", "bias", "impl", "rank", "window"}
"""Keys of an entry of ``attn_cfgs`` that a plan overrides."""

ATTENTION_KEYS = {"type", "embed_dims", "num_heads", "dropout"} | CHOICE_KEYS
"""Keys that an entry of ``attn_cfgs`` may have."""

DEFAULT_IMPL = "sdpa_math"  # serves every bias and gradient on every machine; GPU configs name a faster one


@dataclass(frozen=True)
class SiteSizes:
    """Sizes of the attention call at a site.

    Attributes:
        heads: H. head_size: D. queries: Q. keys: K.
        masked: whether training gives it a mask (self-attentions, with denoising queries).
    """

    heads: int
    head_size: int
    queries: int
    keys: int = 22_384
    masked: bool = False


def training_requests(choice: Choice, sizes: SiteSizes, device: str, dtype: str) -> list[Request]:
    """List the kinds of call that training makes at a site.

    Args:
        choice: the site's choice.
        sizes: sizes of its call.
        device: ``cpu`` or ``cuda``.
        dtype: of the attention inputs, such as ``bfloat16`` under autocast.
    """
    return [
        Request(
            kind=kind,
            dtype=dtype,
            device=device,
            heads=sizes.heads,
            queries=sizes.queries,
            keys=sizes.keys,
            head_size=sizes.head_size,
            bias_heads=0 if kind == "none" else 1,
            qkv_grad=True,
            bias_grad=kind in WEIGHTED_KINDS,
            rank=choice.rank,
        )
        for kind in sorted({choice.bias} | ({"dense"} if sizes.masked else set()))
    ]


def standing_objections(choice: Choice, sizes: SiteSizes, device: str) -> list[str]:
    """List why training at a site cannot run with a choice on any machine with a given device.

    Args:
        choice: the site's choice.
        sizes: sizes of its call.
        device: ``cuda`` (bfloat16, as under autocast) or ``cpu`` (float32).

    Returns:
        The objections, without those to a package that is not installed on this machine.
    """
    dtype = {"cuda": "bfloat16", "cpu": "float32"}[device]
    everything = [
        objection
        for request in training_requests(choice, sizes, device, dtype)
        for objection in objections(choice.impl, request)
    ]
    return [objection for objection in dict.fromkeys(everything) if "installed" not in objection]


class PackedProjections(nn.Module):
    """Parameters of multi-head attention with q, k and v in one matrix, as PyTorch and CMT store them."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims))
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        nn.init.xavier_uniform_(self.in_proj_weight)  # CMT initialises the three as one matrix
        align(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def qkv(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the projections of query, key and value, (B, N, C) each."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v


class SiteAttention(nn.Module):
    """Multi-head attention at a named site, with a residual and dropout on the residual branch.

    There is no dropout on the attention weights. CMT's cross-attention has none either: the 0.1 of its config
    goes into another argument. CMT's self-attention drops one weight in ten in training. Ours drops none, so
    that all implementations compute the same there too.

    Attributes:
        site: path of the site, such as ``decoder.3.cross``.
        kinds: bias kinds that are possible here.
        choice: bias kind and implementation. Assigning another kind than ``kinds`` raises PlanError.
        recompute: project and attend again in the backward pass instead of keeping intermediate results.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        site: str,
        dropout: float = 0.1,
        kinds: tuple[str, ...] = BIAS_KINDS,
        choice: Choice | None = None,
    ):
        """Make the parameters.

        Args:
            embed_dims: C, channels of queries, keys and values.
            num_heads: H; divides C.
            site: path of the site.
            dropout: probability of dropout on the residual branch.
            kinds: bias kinds that are possible here.
            choice: bias kind and implementation; None: no bias, with ``DEFAULT_IMPL``.

        Raises:
            ValueError: ``num_heads`` does not divide ``embed_dims``.
            PlanError: the bias kind of the choice is not in ``kinds``.
        """
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f"{site}: num_heads={num_heads} does not divide embed_dims={embed_dims}")
        self.site, self.num_heads, self.kinds = site, num_heads, kinds
        self.attn = PackedProjections(embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.choice = choice or Choice("none", DEFAULT_IMPL)
        self.recompute = False

    @property
    def choice(self) -> Choice:
        """Bias kind and implementation of this site."""
        return self._choice

    @choice.setter
    def choice(self, choice: Choice) -> None:
        if choice.bias not in self.kinds:
            raise PlanError(
                f"site {self.site} cannot have the bias {choice.bias!r}; it takes {', '.join(self.kinds)}"
            )
        self._choice = choice

    def sizes(self, queries: int, denoising: bool) -> SiteSizes:
        """Return the sizes of a call with ``queries`` queries; denoising gives a self-attention a mask."""
        width = self.attn.out_proj.in_features
        masked = denoising and self.site.endswith(".self")
        return SiteSizes(self.num_heads, width // self.num_heads, queries, masked=masked)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        bias: Bias | None = None,
        mask: Bias | None = None,
    ) -> Tensor:
        """Attend, and add the result to the query.

        Args:
            query: (B, Q, C).
            key: (B, K, C); None attends to the queries themselves.
            value: (B, K, C); None means ``key``.
            query_pos: (B, Q, C) added to the queries, and to the keys if ``key`` is None; never to values.
            key_pos: (B, K, C) added to the keys.
            bias: of the kind that the choice names; None for ``none``.
            mask: the denoising mask; possible only at a site without a bias.

        Returns:
            (B, Q, C).

        Raises:
            ValueError: the bias is not of the chosen kind, or both a bias and a mask are given.
            operators.Unsupported: the implementation cannot serve the call; lists the objections.
        """
        kind = "none" if bias is None else bias.kind
        if kind != self.choice.bias:
            raise ValueError(f"site {self.site}: expected the bias {self.choice.bias!r}, got {kind!r}")
        if bias is not None and mask is not None:
            raise ValueError(f"site {self.site}: the bias {kind!r} and a mask cannot be combined")
        if key is None:
            key, value, key_pos = query, query, query_pos
        value = key if value is None else value
        with torch.profiler.record_function(f"site:{self.site}"):
            given = (add(query, query_pos), add(key, key_pos), value, bias if mask is None else mask)
            out = recomputed(self._attend, *given) if self.recompute else self._attend(*given)
        return query + self.dropout(out)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Bias | None) -> Tensor:
        """Project, attend, and project back: (B, Q, C)."""
        if isinstance(bias, LocalMask) and bias.kind in entry(self.choice.impl).shared_keys:
            return self._attend_to_few(query, key, value, bias)
        q, k, v = (self._heads(x) for x in self.attn.qkv(query, key, value))
        out = attention(q, k, v, bias, impl=self.choice.impl, rank=self.choice.rank)
        return cast(Tensor, self.attn.out_proj(out.transpose(1, 2).flatten(2)))

    def _attend_to_few(self, query: Tensor, key: Tensor, value: Tensor, mask: LocalMask) -> Tensor:
        """Do as ``_attend``, and project queries and results instead of all keys and values.

        With W_k and W_v of a head, q (W_k x + b_k) = (W_k^T q) x + q b_k, where the last term is the same
        for all keys of a query and falls out of the softmax; and the sum of p (W_v x + b_v) over the keys is
        W_v (sum of p x) + b_v, if there is a key.
        """
        heads, channels = self.num_heads, query.shape[-1]
        of_q, of_k, of_v = self.attn.in_proj_weight.chunk(3)
        bias_q, _, bias_v = self.attn.in_proj_bias.chunk(3)
        size = channels // heads
        q = self._heads(F.linear(query, of_q, bias_q)) @ of_k.view(heads, size, channels)
        seen = attention(
            q, key[:, None], value[:, None], mask, impl=self.choice.impl, scale=size**-0.5
        )  # (B, H, Q, C)
        out = (seen @ of_v.view(heads, size, channels).mT).transpose(1, 2).flatten(2)
        return cast(Tensor, self.attn.out_proj(out + bias_v * mask.reaches[..., None]))

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (B, N, C) to (B, H, N, D)."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


def add(x: Tensor, position: Tensor | None) -> Tensor:
    """Return ``x`` plus a position embedding; ``x`` itself if that is None."""
    return x if position is None else x + position


def build_attention(
    cfg: Mapping[str, Any], site: str, kinds: tuple[str, ...], default_bias: str
) -> SiteAttention:
    """Build a site from an entry of ``attn_cfgs``.

    Args:
        cfg: ``dict(type, embed_dims, num_heads, dropout=.1, use_flashbias=False, bias=, impl=, rank=,
            window=)``. ``type`` is one of ``ATTENTION_TYPES``. ``use_flashbias=True`` means
            ``impl='lowrank'``.
        site: path of the site.
        kinds: bias kinds that are possible there.
        default_bias: bias kind if ``bias`` is not given.

    Raises:
        ValueError: an unknown type or key, or keys that contradict each other.
        PlanError: the bias kind is not possible at the site.
    """
    given = dict(cfg)
    kind = given.pop("type")
    if kind not in ATTENTION_TYPES:
        raise ValueError(
            f"{site}: unknown attention type {kind!r}; expected one of {', '.join(ATTENTION_TYPES)}"
        )
    flashbias, impl = given.pop("use_flashbias", False), given.pop("impl", None)
    if flashbias and impl not in (None, "lowrank"):
        raise ValueError(
            f"{site}: use_flashbias=True means impl='lowrank', but impl={impl!r} is given; drop one of them"
        )
    impl = impl or ("lowrank" if flashbias else DEFAULT_IMPL)
    choice = Choice(given.pop("bias", default_bias), impl, given.pop("rank", None), given.pop("window", None))
    unknown = sorted(set(given) - ATTENTION_KEYS)
    if unknown:
        raise ValueError(f"{site}: unknown keys {', '.join(unknown)} in attn_cfgs")
    return SiteAttention(site=site, kinds=kinds, choice=choice, **given)
