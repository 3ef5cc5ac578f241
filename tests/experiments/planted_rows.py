"""Rows of a study whose truth is known, drawn at random: to check verdicts, reports and tracking.

Nothing is trained. A planted effect, a slow-down and the noise of a run are enough to ask whether
``decide`` finds what is there, and says nothing about what is not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from experiments.analysis.screening import FOLDER, INTERVENTION, ROWS
from experiments.calibration.simulation import Trained
from experiments.recipes.decision_rule import DecisionRule
from pipeline.config.plan import Choice, Plan
from pipeline.metrics.rows import Row, append_rows

UNTREATED = {"aqr.0.cross": Choice("local", "sdpa_math")}
"""The site that has its mask in every arm."""


def window_rule(**fields: object) -> DecisionRule:
    """Return a rule that compares the window with no bias, as the planted trials have it."""
    return DecisionRule(**{"treatments": ("window",), "baseline": "none"} | fields)


KERNELS = {
    "none": ("aten::bmm", "aten::_softmax"),
    "window": ("aten::bmm", "aten::add", "aten::_softmax"),
    "local": ("aten::bmm", "aten::masked_fill", "aten::_softmax"),
}
"""Bias kind -> made-up kernels of ``decorate``."""


@dataclass(frozen=True)
class Truth:
    """What is planted.

    Attributes:
        gain: site -> true gain of the window bias there, points of NDS under ``clean``.
        slowdown_percent: site -> true growth of the step time.
        seeds: the blocks.
        noise: standard deviation of one run's NDS, points.
        seed_noise: standard deviation of a seed's own level, points; shared by all arms.
        time_noise_percent: standard deviation of one run's step time.
        conditions: condition -> (share of the NDS that is left, factor on the gains).
    """

    gain: Mapping[str, float]
    slowdown_percent: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1)
    noise: float = 0.5
    seed_noise: float = 1.0
    time_noise_percent: float = 0.5
    conditions: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"clean": (1.0, 1.0)})


def plant(truth: Truth, draw: int = 0, base: Row | None = None) -> list[Row]:
    """Draw the accuracy and step-time rows of one study.

    Args:
        truth: what is true.
        draw: seed of the noise.
        base: a row whose study, recipe digest, device, versions, commit, step and time all rows take.

    Returns:
        Rows ``NDS`` per condition (fraction) and ``step_ms`` (ms) of a full factorial over the sites of
        ``truth.gain`` and its seeds. At baseline NDS is 0.40 and a step takes 400 ms.
    """
    rng = np.random.default_rng(draw)
    base = base or Row("planted", "", "", "", "", 0.0, step=100)
    blocks = {seed: rng.normal(0, truth.seed_noise) for seed in truth.seeds}
    rows: list[Row] = []
    for treated in product((False, True), repeat=len(truth.gain)):
        sites = [site for site, on in zip(truth.gain, treated, strict=True) if on]
        growth = sum(math.log1p(truth.slowdown_percent.get(site, 0.0) / 100) for site in sites)
        gain = sum(truth.gain[site] for site in sites)
        for seed in truth.seeds:
            name = f"w{''.join(str(int(on)) for on in treated)}-s{seed}"
            trial = replace(base, trial=name, plan=str(factorial_plan(truth.gain, sites)), seed=seed)
            for condition, (share, factor) in truth.conditions.items():
                points = share * (40 + blocks[seed]) + factor * gain + rng.normal(0, truth.noise)
                rows.append(
                    replace(trial, metric="NDS", unit="fraction", value=points / 100, condition=condition)
                )
            step_ms = 400 * math.exp(growth + rng.normal(0, truth.time_noise_percent / 100))
            rows.append(replace(trial, metric="step_ms", unit="ms", value=step_ms))
    return rows


def rows_of(measured: Trained, sites: Sequence[str], step: int = 100) -> list[Row]:
    """Write what simulated trials scored as the rows that real trials would have written.

    Args:
        measured: arms with the levels ``none`` and ``window``; its unit is taken as points of NDS.
        sites: the factors of the arms.
        step: last optimiser step; early values are at half of it.

    Returns:
        Rows ``NDS`` under ``clean``, on draws of scenes too; of a trial without a final value ``NDS`` at the
        early value and ``stopped_at_step`` if there are early values, else a NaN.
    """
    rows: list[Row] = []
    cells = [(arm, seed) for arm in measured.arms for seed in measured.seeds]
    response = measured.response
    for index, (arm, seed) in enumerate(cells):
        treated = [site for site, level in zip(sites, arm, strict=True) if level != "none"]
        name = f"w{''.join(str(int(level != 'none')) for level in arm)}-s{seed}"
        plan = str(factorial_plan(dict.fromkeys(sites), treated))
        score = Row(
            "planted", name, plan, "NDS", "fraction", math.nan, condition="clean", seed=seed, step=step
        )
        if len(response.early_values):
            early = float(response.early_values[0, index]) / 100
            rows.append(replace(score, value=early, step=step // 2))
        if math.isnan(response.values[index]) and len(response.early_values):
            stop = replace(score, metric="stopped_at_step", unit="steps", value=step // 2, condition="")
            rows.append(replace(stop, step=step // 2))
            continue
        rows.append(replace(score, value=float(response.values[index]) / 100))
        rows += [
            replace(score, value=float(value) / 100, draw=draw, n=response.num_scenes)
            for draw, value in enumerate(response.draws[:, index])
        ]
    return rows


def factorial_plan(sites: Mapping[str, object], treated: list[str]) -> Plan:
    """Return the plan with the window bias at the treated sites, none elsewhere, the mask in the AQR."""
    choices = dict(UNTREATED)
    for site in sites:
        choices[site.replace("cross", "self")] = Choice("none", "sdpa_math")
        choices[site] = Choice("window" if site in treated else "none", "sdpa_math")
    return Plan.of(choices)


def decorate(rows: list[Row], steps: int = 100) -> Iterator[Row]:
    """Yield what a trial records beside its NDS and step time, made up plausibly: for reports and tracking.

    Args:
        rows: the rows of ``plant``; they are yielded too.
        steps: optimiser steps of a trial; ten points of every curve are made.
    """
    yield from rows
    for trial in {row.trial: row for row in rows if row.metric == "step_ms"}.values():
        rng = np.random.default_rng([trial.seed, sum(map(ord, trial.trial))])
        plan = Plan.parse(trial.plan)
        num_windows = sum(choice.bias == "window" for _, choice in plan.choices)
        whole = replace(trial, condition="", half_iqr60=math.nan)
        yield replace(whole, metric="train_samples_per_s", unit="samples/s", value=4000 / trial.value)
        for name, share in (("inference_latency_p50_ms", 0.21), ("inference_latency_p95_ms", 0.26)):
            yield replace(whole, metric=name, unit="ms", value=share * trial.value, n=20, half_iqr60=1.5)
        yield replace(whole, metric="peak_resident_gib", unit="GiB", value=0.8 + 0.02 * num_windows)
        for step in range(steps // 10, steps + 1, steps // 10):
            at = replace(whole, step=step)
            loss = 6 + 8 * math.exp(-step / 40) + rng.normal(0, 0.2)
            yield replace(at, metric="loss", unit="nats", value=loss)
            drift = 0.004 * step * num_windows / 3 + rng.normal(0, 0.01)
            yield replace(at, metric="bias_scale", unit="logits", value=2.5 + drift)
        for site, choice in plan.choices:
            for kernel in KERNELS[choice.bias]:
                busy_ms = 2 + rng.random()
                yield replace(whole, site=site, metric="kernel_ms", kernel=kernel, unit="ms", value=busy_ms)
        for row in [r for r in rows if r.trial == trial.trial and r.metric == "NDS"]:
            yield replace(row, metric="mAP", value=0.9 * row.value)


def screening(folder: Path, gains: tuple[float, float], leave_out: int = 0) -> Path:
    """Write the rows of a screening in which the layers' gains add up."""
    sites = ("decoder.0.cross", "decoder.1.cross")
    rows = []
    for on in product((False, True), repeat=2):
        treated = [site for site, switched in zip(sites, on, strict=True) if switched]
        plan = str(factorial_plan(dict.fromkeys(sites, 0.0), treated))
        value = 0.4 + sum(gain for gain, o in zip(gains, on, strict=True) if o) / 100
        rows.append(Row("golden", "m", plan, INTERVENTION + "NDS", "fraction", value, condition="clean"))
    path = folder / FOLDER / ROWS
    append_rows(path, rows[leave_out:])
    return path


def plant_times(
    log_price: Mapping[str, float],
    rounds: int = 20,
    noise: float = 0.02,
    draw: int = 0,
    *,
    slow_steps: float = 0.0,
    second_visit: float = 0.0,
    metric: str = "stopwatch/training_own",
    base: Row | None = None,
) -> list[Row]:
    """Draw the rows of a stopwatch that visits all combinations, and the baseline twice.

    Args:
        log_price: ``fixed`` -> the fixed price, site -> its own; growth of the logarithm of the time.
        rounds: how many.
        noise: standard deviation of the logarithm of one step's time; a round's own level has 0.1.
        draw: seed of the noise.
        slow_steps: share of the steps that are slowed by up to a half, as on a shared machine.
        second_visit: added to the logarithm of the baseline's second visit in a round.
        metric: of the rows.
        base: a row whose study, recipe digest, device, versions and commit all rows take.
    """
    rng = np.random.default_rng([draw, 1])
    sites = [name for name in log_price if name != "fixed"]
    arms = [
        (),
        *(
            tuple(s for s, on in zip(sites, arm, strict=True) if on)
            for arm in product((0, 1), repeat=len(sites))
        ),
    ]
    base = base or Row("planted", "", "", "", "", 0.0)
    plans = [str(factorial_plan(dict.fromkeys(sites), list(arm))) for arm in arms]
    rows = []
    for index in range(rounds):
        level = math.log(400) + rng.normal(0, 0.1)
        seen = False
        for place, which in enumerate(rng.permutation(len(arms))):
            arm = arms[which]
            log = level + rng.normal(0, noise) + sum(log_price[site] for site in arm)
            log += log_price["fixed"] if arm else second_visit * seen
            log += rng.uniform(0, 0.5) if rng.random() < slow_steps else 0.0
            seen = seen or not arm
            rows.append(
                replace(
                    base, trial="stopwatch", plan=plans[which], metric=metric, unit="ms", value=math.exp(log),
                    step=index, draw=place,
                )
            )  # fmt: skip
    return rows
