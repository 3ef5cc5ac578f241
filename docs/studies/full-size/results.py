"""What the parts of ``measure.py`` found, from their rows files: numbers, ratios, targets, curves."""

import json
import math
import tarfile
from pathlib import Path
from statistics import mean, median
from typing import Any

TARGET_FPS = {"r50": 28.4, "vov": 12.8}
"""Twice the published frames per second on an A100."""

TARGETS = {"step_ms": 1.03, "train_peak_allocated_gib": 1.02}
"""Of plain CMT's, for our kernel."""

RATIOS = (*TARGETS, "inference_latency_p50_ms", "inference_peak_allocated_gib")
"""What is compared with plain CMT."""

CURVES = ("loss", "grad_norm", "bias_scale", "bias_scale_grad")
"""What is kept of every step of a training."""

ALSO = (
    "step_ms",
    "data_wait_ms",
    "train_samples_per_s",
    "peak_allocated_gib",
    "inference_latency_p50_ms",
    "mAP",
    "NDS",
)
"""What else is said of a training."""

SHOWN = (
    "step_ms",
    "train_samples_per_s",
    "train_peak_allocated_gib",
    "inference_frames_per_s",
    "inference_peak_allocated_gib",
)
"""Columns of the table."""

Rows = list[dict[str, Any]]


def collect(folder: Path, out: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Write ``results.json`` and ``rows.tar.gz`` of what is known so far, and return the former."""
    paths = sorted(folder.glob("*/rows.jsonl"))
    found = {path.parent.name: read(path) for path in paths}
    summary: dict[str, Any] = {"parts": parts}
    for name, rows in found.items():
        kind, _, model = name.partition("_")
        summary[name] = learned(rows) if kind == "train" else compared(rows, model)
    results = {"summary": summary, "per_step": {n: per_step(r) for n, r in found.items() if "train" in n}}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with tarfile.open(out / "rows.tar.gz", "w:gz") as packed:
        for path in paths:
            packed.add(path, f"{path.parent.name}/rows.jsonl")
    return results


def read(path: Path) -> Rows:
    """Read a rows file that may still be written; its last line may be half a line."""
    made = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            made.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return made


def compared(rows: Rows, model: str) -> dict[str, Any]:
    """Return every number per plan, its ratio to plain CMT's in the same round, and what was asked."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if not row["site"]:
            plan = row["trial"].partition("@")[0]
            values.setdefault((plan, row["metric"]), {})[row["seed"]] = row["value"]
    found: dict[str, Any] = {}
    for (plan, metric), rounds in values.items():
        entry: dict[str, Any] = {"median": median(rounds.values()), "rounds": list(rounds.values())}
        plain = values.get(("plain", metric), {})
        both = [rounds[seed] / plain[seed] for seed in rounds if seed in plain]
        if metric in RATIOS and both:
            entry |= {"over_plain": median(both), "target": TARGETS.get(metric)}
        if metric == "inference_frames_per_s":
            entry["target"] = TARGET_FPS.get(model)
        found.setdefault(plan, {})[metric] = entry
    return found


def per_step(rows: Rows) -> dict[str, dict[int, float | None]]:
    """Return metric -> step -> value of a training, of the model as a whole and of every site."""
    found: dict[str, dict[int, float | None]] = {}
    for row in rows:
        if row["metric"] in CURVES:
            name = f"{row['metric']}@{row['site']}" if row["site"] else row["metric"]
            found.setdefault(name, {})[row["step"]] = row["value"]
    return found


def learned(rows: Rows) -> dict[str, Any]:
    """Return whether the loss fell and the scale moved."""
    steps = per_step(rows)
    loss = list(steps.get("loss", {}).values())
    finite = [value for value in loss if value is not None and math.isfinite(value)]
    if not finite:
        return {"steps": len(loss), "not_finite": len(loss)}
    scale = list(steps.get("bias_scale", {}).values())
    slopes = list(steps.get("bias_scale_grad", {}).values())
    return {
        "steps": len(loss),
        "loss_first_20": mean(finite[:20]),
        "loss_last_20": mean(finite[-20:]),
        "not_finite": len(loss) - len(finite),
        "bias_scale_first_last": [scale[0], scale[-1]] if scale else None,
        "steps_with_a_gradient_of_bias_scale": sum(bool(value) for value in slopes),
        **{row["metric"]: row["value"] for row in rows if row["metric"] in ALSO and row["draw"] is None},
    }


def table(summary: dict[str, Any]) -> str:
    """Return one line per part and plan; ratios are to plain CMT's in the same round."""
    lines = [f"{'part':12} {'plan':7}" + "".join(f"{name:>21}" for name in (*SHOWN, "step ratio", "memory"))]
    for part, plans in summary.items():
        if part.startswith("train_"):
            lines.append(f"{part:12} {json.dumps(plans)}")
        elif part != "parts":
            lines += [f"{part:12} {plan:7}" + "".join(cells(found)) for plan, found in plans.items()]
    return "\n".join(lines)


def cells(found: dict[str, Any]) -> list[str]:
    """Return the cells of a plan."""
    died = any(name.endswith("out_of_memory") for name in found)
    shown = [f"{found[name]['median']:.4g}" if name in found else "died" if died else "" for name in SHOWN]
    shares = [found.get(name, {}).get("over_plain") for name in TARGETS]
    return [f"{cell:>21}" for cell in [*shown, *("" if s is None else f"{s:.3f}" for s in shares)]]
