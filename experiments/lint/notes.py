"""Notes: facts about a config that a user would want to know although nothing is wrong."""

from collections.abc import Iterator

from experiments.lint.attention_rules import handed_as, memory_gib, read_choice
from experiments.lint.finding import Finding
from pipeline.config.sections import without_effect
from pipeline.detector.inspection.sites import HEAD
from pipeline.detector.inspection.survey import Survey

NOTED_GIB = 1.0
"""A note is made from this many GiB per sample on. In no training so far did less fill a GPU."""


def notes(survey: Survey) -> Iterator[Finding]:
    """Yield the notes about a config."""
    yield from _left_out(survey)
    yield from _memory(survey)
    yield from _idle(survey)
    yield from _dropout(survey)
    yield from _without_effect(survey)


def _without_effect(survey: Survey) -> Iterator[Finding]:
    """Note the sections that something else decides here; mmengine's Runner follows them."""
    idle = without_effect(survey.sections)
    if idle:
        listed = "; ".join(f"{name}: {why}" for name, why in idle.items())
        yield Finding(
            "no-effect",
            (next(iter(idle)) if next(iter(idle)) in survey.sections else "custom_hooks",),
            f"{len(idle)} sections or hooks have no effect in our training loop ({listed})",
            "leave them for mmengine's Runner, which follows them, or remove them",
            note=True,
        )


def _left_out(survey: Survey) -> Iterator[Finding]:
    for key, sentence in survey.left_out:
        advice = "lint on the training machine too"
        yield Finding(
            "left-out", key, f"{key[-1]} was not looked at on this machine: {sentence}", advice, note=True
        )


def _memory(survey: Survey) -> Iterator[Finding]:
    """Note how much memory the cross-attentions take if they make (queries, keys) tensors."""
    heavy = [site for site in survey.sites if memory_gib(site) > 0 and site.name.endswith(".cross")]
    total = sum(memory_gib(site) for site in heavy)
    if total < NOTED_GIB:
        return
    sizes = heavy[0].sizes
    computed_by = sorted({f"{read_choice(site)[1]} ({handed_as(site).lower()})" for site in heavy})
    yield Finding(
        "memory",
        (*heavy[0].key, "impl"),
        f"{len(heavy)} cross-attentions make tensors of queries x keys ({sizes.queries} x {sizes.keys} with "
        f"all denoising slots), and training keeps them: at least {total:.1f} GiB a sample in bfloat16 with "
        f"{', '.join(computed_by)}",
        "impl='rects' computes the same and makes none of them",
        tuple(site.name for site in heavy),
        note=True,
    )


def _idle(survey: Survey) -> Iterator[Finding]:
    head = survey.model["pts_bbox_head"]
    if head.get("weight_map_config"):
        yield Finding(
            "deprecated",
            (*HEAD, "weight_map_config"),
            "features are multiplied by weight maps: where it was tried, mAP fell from 67.4 to 65.8 and 65.1",
            "keep it for comparison only; the attention bias took its place",
            note=True,
        )
    elif head.get("aqr_config") and all(read_choice(s)[0] in ("none", "local") for s in survey.sites):
        yield Finding(
            "idle-aqr",
            (*HEAD, "aqr_config"),
            "no decoder layer takes a bias: the AQR weights go nowhere and do not learn",
            "drop aqr_config and bias_config, or give a layer a bias; as a baseline arm it is fine",
            note=True,
        )


def _dropout(survey: Survey) -> Iterator[Finding]:
    of_mmcv = [s for s in survey.sites if s.cfg.get("type") == "MultiheadAttention" and s.cfg.get("dropout")]
    if of_mmcv:
        yield Finding(
            "dropout",
            (*of_mmcv[0].key, "dropout"),
            f"dropout={of_mmcv[0].cfg['dropout']} drops the residual branch alone; mmcv's MultiheadAttention "
            "drops attention weights with it too, which no fused kernel here does",
            "nothing to do, unless you reproduce a training to the letter",
            tuple(site.name for site in of_mmcv),
            note=True,
        )
