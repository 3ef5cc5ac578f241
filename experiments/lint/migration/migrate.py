"""A whole config of mmcv 1.x as a config of today, as text, with a list of what has no counterpart."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.lint.migration.data import image_size, innermost, migrate_dataset, preprocessor
from experiments.lint.migration.lost import Ledger, Lost
from experiments.lint.migration.model import migrate_model
from experiments.lint.migration.training import hooks, length, optim_wrapper, schedule
from pipeline.config.provenance import Key
from pipeline.detector.inspection.plan_config import literal
from pipeline.detector.inspection.survey import is_registered

RUNTIME: Mapping[str, str] = {
    "checkpoint_config": "the settings of a trial say when checkpoints are made",
    "log_config": "rows hold every number, and MLflow shows them",
    "dist_params": "Ray starts the processes",
    "workflow": "a trial trains and is evaluated at its end",
    "find_unused_parameters": "a trial knows by its plan which parameters have no gradient",
    "resume_from": "a trial goes on from its own newest checkpoint",
    "opencv_num_threads": "the settings of a trial say it",
    "mp_start_method": "the settings of a trial say it",
    "cudnn_benchmark": "the settings of a trial say it",
    "seed": "the settings of a trial have a seed",
}
"""Sections about a run and not about a model -> what decides instead."""

SILENT = ("plugin", "plugin_dir", "log_level", "work_dir", "gpu_ids", "load_from", "device")
"""Sections without any meaning for a training, or with the same name today."""


@dataclass(frozen=True)
class Migration:
    """The result.

    Attributes:
        config: the new config as plain dicts and lists.
        lost: what has no counterpart, in the order of the old config's sections.
    """

    config: dict[str, Any]
    lost: tuple[Lost, ...]

    def text(self, name: str) -> str:
        """Return the new config as a file, which first says by what a training differs.

        Args:
            name: of the old file.
        """
        lines = [f'"""Written by `biaswise lint {name} --fix --out`, from a config of mmcv 1.x."""', ""]
        matters = [entry.sentence for entry in self.lost if entry.matters]
        if matters:
            lines.append(f"# A training with this config differs from one with {name}:")
            for sentence in matters:
                lines += textwrap.wrap(sentence, 110, initial_indent="# - ", subsequent_indent="#   ")
            lines.append("")
        lines += [f"{key} = {literal(value, used=len(key) + 3)}" for key, value in self.config.items()]
        return "\n".join(lines) + "\n"


def migrate(old: Mapping[str, Any]) -> Migration:
    """Return the config of today that builds the same model and trains it with the same schedule.

    Args:
        old: a config of mmcv 1.x as plain dicts and lists.
    """
    ledger = Ledger()
    data = old.get("data") or {}
    at: Key = ("data", "train")
    inner, place = innermost(data.get("train") or {}, at)
    pipeline = inner.get("pipeline") or ()
    model = migrate_model(old.get("model") or {}, ledger)
    _unknown_classes(old, model, ledger)
    kind = model.pop("type", "CmtDetector")
    size = image_size(pipeline) if "img_backbone" in model else None
    of_images = {} if size is None else {"image_size": size}
    processed = preprocessor(pipeline, (*place, "pipeline"), ledger)
    config: dict[str, Any] = {
        "default_scope": "mmdet3d",
        "custom_imports": {"imports": _imports(old), "allow_failed_imports": False},
        "model": {"type": kind, **of_images, "data_preprocessor": processed, **model},
        **_loaders(data, ledger),
        "optim_wrapper": optim_wrapper(old, ledger),
        "param_scheduler": schedule(old, ledger),
        "train_cfg": length(old),
        "val_cfg": {},
        "test_cfg": {},
        "custom_hooks": hooks(old, ledger),
        "load_from": old.get("load_from"),
        "randomness": {"seed": int(old.get("seed") or 0)},
    }
    run = {name: why for name, why in RUNTIME.items() if old.get(name) is not None}
    if run:
        listed = "; ".join(f"{name}: {why}" for name, why in run.items())
        ledger.lose((next(iter(run)),), f"sections about a run are left out ({listed})")
    kept = {key: value for key, value in config.items() if value not in (None, []) or key == "model"}
    return Migration(kept, tuple(ledger.entries))


def _imports(old: Mapping[str, Any]) -> list[str]:
    """Return the modules that the new config imports: ours for mmengine's Runner, then the old config's."""
    given = (old.get("custom_imports") or {}).get("imports") or []
    return ["pipeline.detector.runner", *([given] if isinstance(given, str) else given)]


def _unknown_classes(old: Mapping[str, Any], model: Mapping[str, Any], ledger: Ledger) -> None:
    """List the classes of parts of the model that no registry has, which a plugin may have had."""
    unknown = {
        part: str(cfg["type"])
        for part, cfg in model.items()
        if isinstance(cfg, Mapping) and "type" in cfg and part != "pts_bbox_head"
        if not is_registered(str(cfg["type"]))
    }
    if unknown:
        names, has_plugin = ", ".join(dict.fromkeys(unknown.values())), "plugin_dir" in old
        plugin = f"; plugin_dir={old['plugin_dir']!r} is left out" if has_plugin else ""
        ledger.lose(
            ("plugin_dir",) if has_plugin else ("model", next(iter(unknown)), "type"),
            f"no registry has {names}{plugin}",
            matters=True,
            to_do="name the module of each class in custom_imports of the new config; it registers the class "
            "in mmdet3d's MODELS",
        )


def _loaders(data: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Return the dataloaders and evaluators."""
    workers = int(data.get("workers_per_gpu", 4))
    made: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        given = data.get(split)
        if not given:
            continue
        trains = split == "train"
        found = ledger if split != "test" else Ledger()  # what is lost of `test` is what is lost of `val`
        dataset = migrate_dataset(given, ("data", split), found)
        made[f"{split}_dataloader"] = {
            "batch_size": int(data.get("samples_per_gpu", 1)) if trains else 1,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "sampler": {"type": "DefaultSampler", "shuffle": trains},
            "dataset": dataset,
        }
        if not trains:
            root = dataset["data_root"]
            made[f"{split}_evaluator"] = {
                "type": "NuScenesMetric",
                "data_root": root,
                "ann_file": f"{root.rstrip('/')}/{dataset['ann_file']}",
                "metric": "bbox",
            }
    return made
