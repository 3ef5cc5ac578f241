"""Rules about attention sites: which bias a site receives, what computes it, and what would be dropped."""

from collections.abc import Iterator
from typing import Any

from experiments.lint.finding import Finding
from operators.registry import entry
from operators.spec import (
    BIAS_KINDS,
    IMPLEMENTATIONS,
    TRUNCATABLE_KINDS,
    WEIGHTED_KINDS,
    WINDOWED_KINDS,
    Form,
    Request,
)
from pipeline.config.plan import Choice, PlanError
from pipeline.detector.inspection.sites import Site
from pipeline.detector.inspection.survey import Survey
from pipeline.detector.transformer.site_attention import (
    ATTENTION_KEYS,
    ATTENTION_TYPES,
    DEFAULT_IMPL,
    standing_objections,
)

DROPOUT_KEYS = ("attn_drop", "proj_drop", "dropout_layer")
"""The dropout arguments of mmcv's attention. ``SiteAttention`` has only ``dropout``."""


def check_site(site: Site, survey: Survey, device: str) -> Iterator[Finding]:
    """Yield the findings about one attention site.

    Args:
        site: an attention site of the config.
        survey: the survey of the whole config.
        device: ``cuda`` or ``cpu``, where the model will train.
    """
    yield from _check_keys(site)
    kind, impl, flag = read_choice(site)
    if flag and kind in ("none", "local"):
        yield _dead_flag(site, kind)
        return
    if flag and site.cfg.get("impl") not in (None, "lowrank"):
        yield Finding(
            "contradiction",
            (*site.key, "use_flashbias"),
            f"use_flashbias=True means impl='lowrank', but impl={site.cfg['impl']!r} is set too",
            "keep one of the two",
            (site.name,),
        )
        return
    name_findings = list(_check_names(site, kind, impl, survey))
    yield from name_findings or _check_impl(site, kind, impl, flag, device)


def read_choice(site: Site) -> tuple[str, str, bool]:
    """Return a site's bias kind, its implementation, and whether ``use_flashbias`` is set in the config."""
    flag = bool(site.cfg.get("use_flashbias", False))
    impl = site.cfg.get("impl") or ("lowrank" if flag else DEFAULT_IMPL)
    return str(site.cfg.get("bias", site.default)), str(impl), flag


def _check_keys(site: Site) -> Iterator[Finding]:
    """Find keys of an entry of ``attn_cfgs`` that the attention ignores, and a dropout that is no rate."""
    for key in site.cfg:
        if key in DROPOUT_KEYS:
            yield Finding(
                "dropout",
                (*site.key, key),
                f"{key} is a key of mmcv's attention and would be ignored: no attention here drops attention "
                "weights. CMT's cross-attention drops none either: it passes the rate as the argument `bias`",
                "remove it; `dropout` is the rate of the residual branch",
                (site.name,),
            )
        elif key not in ATTENTION_KEYS:
            yield Finding(
                "unused-key",
                (*site.key, key),
                f"the attention does not read {key!r}; it would be ignored",
                f"remove it or correct its name; the attention reads {', '.join(sorted(ATTENTION_KEYS))}",
                (site.name,),
            )
    rate = site.cfg.get("dropout", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        yield Finding(
            "dropout",
            (*site.key, "dropout"),
            f"dropout={rate!r} is no rate: it is the share of the residual branch dropped in training",
            "give a number from 0 up to, not including, 1 (CMT: 0.1)",
            (site.name,),
        )


def _dead_flag(site: Site, kind: str) -> Finding:
    """Return the finding for ``use_flashbias`` at a site that receives no bias."""
    if site.name.endswith(".self"):
        why = "self-attention receives no bias, because queries lie on no map"
    elif site.name.startswith("aqr"):
        mask = ", only a mask" if kind == "local" else ""
        why = (
            f"no bias reaches the AQR weight generator{mask}; the bias is made afterwards, from the weights "
            "that come out here"
        )
    else:
        why = f"this layer's bias is {kind!r}"
    return Finding(
        "dead-flashbias",
        (*site.key, "use_flashbias"),
        f"use_flashbias=True has nothing to work on: {why}",
        "remove the flag (--fix does); what is computed stays the same",
        (site.name,),
        remove=True,
    )


def _check_names(site: Site, kind: str, impl: str, survey: Survey) -> Iterator[Finding]:
    """Find unknown names, conflicting options, and a bias that the site cannot take or that nothing makes."""
    named: list[tuple[str, Any, tuple[str, ...]]] = [
        ("type", site.cfg.get("type"), ATTENTION_TYPES),
        ("bias", kind, BIAS_KINDS),
        ("impl", impl, IMPLEMENTATIONS),
    ]
    for key, value, known in named:
        if value not in known:
            yield Finding(
                "unknown-name",
                (*site.key, key),
                f"{key}={value!r} is unknown",
                f"take one of {', '.join(known)}",
                (site.name,),
            )
            return
    if kind not in site.kinds:
        yield Finding(
            "misplaced-bias",
            (*site.key, "bias"),
            f"the bias {kind!r} cannot arrive here: the site takes {' or '.join(site.kinds)}",
            "give it to a cross-attention of the decoder, which the bias generator serves",
            (site.name,),
        )
    elif kind not in ("none", "local") and not survey.model["pts_bbox_head"].get("bias_config"):
        yield Finding(
            "misplaced-bias",
            (*site.key, "bias"),
            f"the bias {kind!r} is asked for, but nothing makes it: the head has no bias_config",
            "`biaswise plan CONFIG --aqr --out NEW.py` writes a config that has one; or set bias='none'",
            (site.name,),
        )
    rank, window = site.cfg.get("rank"), site.cfg.get("window")
    fixes = (
        ("rank", (rank, None), "remove the rank, or set impl='lowrank'"),
        ("window", (None, window), f"remove the window, or set bias to one of {', '.join(WINDOWED_KINDS)}"),
    )
    for key, values, fix in fixes:
        try:
            Choice(kind, impl, *values)
        except PlanError as error:
            yield Finding("contradiction", (*site.key, key), str(error), fix, (site.name,))


def _check_impl(site: Site, kind: str, impl: str, flag: bool, device: str) -> Iterator[Finding]:
    """Find an implementation that would drop the site's bias or mask, or cannot train with it."""
    choice = Choice(kind, impl, site.cfg.get("rank"))
    source = "use_flashbias" if flag else "impl" if "impl" in site.cfg else "bias"
    if impl == "lowrank" and kind in TRUNCATABLE_KINDS and choice.rank is None:
        yield Finding(
            "no-rank",
            (*site.key, source),
            f"FlashBias needs the bias as two thin factors, and the {kind} bias has no exact ones: windows "
            "that differ from query to query make a matrix of nearly full rank",
            "set impl='rects', which is exact; or a rank such as rank=16, an approximation of known error",
            (site.name,),
        )
        return
    objection = next(iter(standing_objections(choice, site.sizes, device)), None)
    if objection is None:
        return
    # The mask of the denoising queries is handed over as a dense bias.
    handed_kind = "dense" if "dense bias" in objection else kind
    accepted = set(entry(impl).forms) & Request(handed_kind, rank=choice.rank).forms
    dropped = not accepted and handed_kind != "none"
    usable = _trainable_impls(site, choice, device)
    yield Finding(
        "dropped-bias" if dropped else "cannot-run",
        (*site.key, source),
        f"{impl} would drop {_HANDED[handed_kind]}: {_accepts(impl)}"
        if dropped
        else f"{impl} cannot run: {objection}",
        f"take one that trains with it: {', '.join(usable) or 'there is none'}",
        (site.name,),
    )


_HANDED = {"none": "nothing", "local": "the local mask", "dense": "the mask of the denoising queries"} | {
    kind: f"the {kind} bias" for kind in WEIGHTED_KINDS
}


def _accepts(impl: str) -> str:
    """Return a clause that names the forms of bias that an implementation takes."""
    if entry(impl).forms == (Form.NONE,):
        return "it takes neither bias nor mask"
    if entry(impl).forms == (Form.FACTORS,):
        return "it takes a bias that is a product of two thin factors, and this is none"
    return f"it takes {' or '.join(form.name for form in entry(impl).forms)}"


def _trainable_impls(site: Site, choice: Choice, device: str) -> list[str]:
    """Return the implementations that train with the site's bias and compute it exactly."""
    return [
        impl
        for impl in IMPLEMENTATIONS
        if impl != "reference" and not standing_objections(Choice(choice.bias, impl), site.sizes, device)
    ]


def received(site: Site, survey: Survey) -> str:
    """Return a phrase for the bias or mask that a site receives, with its window sizes in cells."""
    kind = read_choice(site)[0]
    head = survey.model["pts_bbox_head"]
    windows = head.get("aqr_config" if kind == "local" else "bias_config") or {}
    bev, camera = (site.cfg.get("window") or windows.get(key) for key in ("window_lidar", "window_camera"))
    size = f"{bev} (BEV), {camera} (camera)"
    if kind == "none":
        return "mask of the denoising queries" if site.sizes.masked else "nothing"
    if kind == "local":
        return f"mask: window {size}"
    return f"bias: {kind}" if kind == "global" else f"bias: {kind} {size}"


def handed_as(site: Site) -> str:
    """Return the name of the form in which the implementation gets the bias, or ``-`` if it takes none."""
    kind, impl, _ = read_choice(site)
    kind = "dense" if kind == "none" and site.sizes.masked else kind
    if impl not in IMPLEMENTATIONS or kind not in BIAS_KINDS:
        return "-"
    form = Request(kind, rank=site.cfg.get("rank")).form_among(entry(impl).forms)
    return form.name if form is not None else "-"


def memory_gib(site: Site) -> float:
    """Return a lower bound, in GiB, of the memory that (Q, K) tensors of a site take in training.

    It holds for one sample in bfloat16. It counts a bias or mask that is rendered densely, and the gradient
    of a bias. For unfused kernels it also counts the attention weights of every head, because the backward
    pass reads them.
    """
    kind, impl, _ = read_choice(site)
    pairs = site.sizes.queries * site.sizes.keys
    copies = 1 if kind == "local" else 2  # a mask has no gradient
    dense = copies * pairs if handed_as(site) == "DENSE" else 0
    weights = site.sizes.heads * pairs if impl in ("sdpa_math", "reference") else 0
    return 2 * (dense + weights) / 2**30
