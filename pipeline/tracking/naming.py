"""The names of rows and trials in MLflow."""

import re
from pathlib import PurePosixPath
from typing import Any

from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row


def metric_key(row: Row) -> str:
    """Return the name of a row's curve: ``clean/NDS``, ``loss``; its first part groups the charts."""
    parts = (row.condition, row.metric, row.site, row.scene)
    return metric_name("/".join(part for part in parts if part))


def metric_name(text: str) -> str:
    """Replace characters that MLflow refuses in names of metrics."""
    return re.sub(r"[^/\w.\- ]", "_", text)


def system_metric(name: str, node: int) -> str:
    """Return the name under which MLflow's tab for system metrics shows what a machine of a trial did.

    Args:
        name: as MLflow's own monitor has it, without ``system/``.
        node: index of the machine among those of the trial.
    """
    return f"system/node_{node}/{name}" if node else f"system/{name}"


def search_hint(row: Row) -> str:
    """Return how to search for a study's trials, in Markdown; MLflow wants quotes around a name with dots."""
    site = Plan.parse(row.plan).choices[-1][0]
    wanted = f"tags.\"biaswise.study\" = '{row.study}' and params.\"{site}\" = 'window'"
    return f"Search for trials like this: `{wanted}`\n\n"


def trial_params(row: Row, settings: dict[str, Any]) -> dict[str, str]:
    """Return what people filter and compare trials by.

    Args:
        row: any row of the trial.
        settings: ``TrialSettings.to_dict`` of it; may be empty.

    Returns:
        Per site ``<site>`` (bias kind), ``<site>.impl`` and, where named, ``<site>.window`` (cells)
        and ``<site>.rank``; the seed; the settings, nested ones dotted. The whole plan is a tag: it would
        fill every axis of a comparison.
    """
    plan = Plan.parse(row.plan)
    params = {"seed": str(row.seed)}
    for site, choice in plan.choices:
        params[site] = choice.bias
        params[f"{site}.impl"] = choice.impl
        for name, value in (("window", choice.window), ("rank", choice.rank)):
            if value is not None:
                params[f"{site}.{name}"] = str(value)
    for key, value in settings.items():
        if isinstance(value, dict):
            params.update({f"{key}.{inner}": _spell(deep) for inner, deep in value.items()})
        elif key not in ("plan", "seed", "study"):
            params[key] = _spell(value)
    return params


def trial_datasets(row: Row, settings: dict[str, Any]) -> list[tuple[str, str, dict[str, str]]]:
    """Return what a trial read, as MLflow names datasets.

    Args:
        row: any row of the trial; its versions hold the fingerprint.
        settings: ``TrialSettings.to_dict`` of it; may be empty.

    Returns:
        For training and for evaluation: ``training`` or ``validation``; the dataset's name, which ends in its
        split; fingerprint of both together, root, split and nuScenes version. None without settings.
    """
    data = settings.get("data", {})
    known = dict(part.partition("=")[::2] for part in row.versions.split(";"))
    common = {"fingerprint": known.get("data", ""), "version": str(data.get("nuscenes_version", ""))}
    uses = [("training", root, data.get("train_split", "")) for root in data.get("train", [])]
    uses += [("validation", data["val"], data.get("val_split", ""))] if "val" in data else []
    return [
        (context, f"{PurePosixPath(root).name}/{split}", {**common, "root": root, "split": split})
        for context, root, split in uses
    ]


def _spell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def kernels_by_site(rows: list[Row]) -> dict[str, str]:
    """Return, per site, the names of the kernels that ran: tags, because as curves they hide the others."""
    kernels: dict[str, list[str]] = {}
    for row in rows:
        if is_kernel(row):
            kernels.setdefault(row.site, []).append(row.kernel)
    return {site: ", ".join(names) for site, names in kernels.items()}


def is_kernel(row: Row) -> bool:
    """Return whether a row is about one kernel at one site."""
    return bool(row.kernel)
