"""What lint says about a config of mmcv 1.x, and the file that ``--fix --out`` writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.lint.finding import Finding, LintError
from experiments.lint.migration.lost import Lost
from experiments.lint.migration.migrate import RUNTIME, SILENT, migrate
from pipeline.config.previous import ADVICE as TO_MIGRATE
from pipeline.config.previous import REPLACED, old_sections, sentence
from pipeline.config.provenance import ConfigSource, read_source
from pipeline.detector.inspection.sites import HEAD, plain
from pipeline.detector.inspection.survey import is_registered
from pipeline.detector.openmmlab.config_files import read_config
from pipeline.storage.files import atomic_path

RULE = "mmcv-1"
READ = {*REPLACED, *RUNTIME, *SILENT, "model", "custom_hooks", "custom_imports", "default_scope"}


def read_previous(config: Path) -> dict[str, Any] | None:
    """Return a config of mmcv 1.x as plain dicts and lists; None if it is none.

    Raises:
        ConfigError: the file cannot be read as a config.
    """
    found = read_config(config)
    return dict(plain(found.to_dict())) if old_sections(found) else None


def previous_findings(config: Path, old: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Return what the config is, which of its models are not here, and what else has no counterpart."""
    source, sections = read_source(config.resolve()), old_sections(old)
    first = Finding(
        RULE,
        (sections[0],),
        sentence(sections),
        TO_MIGRATE,
    )
    unknown = list(_unknown_models(old))
    lost = [*migrate(old).lost, *_strangers(old, source)]
    lost.sort(key=lambda entry: not entry.matters)
    notes = [Finding("no-counterpart", entry.key, entry.sentence, entry.advice, note=True) for entry in lost]
    return tuple(replace(finding, place=source.find(finding.key)[0]) for finding in (first, *unknown, *notes))


def _unknown_models(old: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the detector and the head of another repository, which no migration can give."""
    model = old.get("model") or {}
    head = model.get("pts_bbox_head") or {}
    named = {("model", "type"): model.get("type"), (*HEAD, "type"): head.get("type")}
    for key, name in named.items():
        if name is not None and not is_registered(str(name)):
            yield Finding(
                "cannot-build",
                key,
                f"{name} is a model of another repository, and nothing here builds it",
                "take CmtDetector, with CmtHead for both sensors, CmtImageHead for cameras or CmtLidarHead "
                "for the LiDAR",
            )


def is_previous(findings: Sequence[Finding]) -> bool:
    """Whether the findings are those about a config of mmcv 1.x."""
    return any(finding.rule == RULE for finding in findings)


def _strangers(old: Mapping[str, Any], source: ConfigSource) -> list[Lost]:
    """List the names of a config that are no section of mmcv, and that the config itself does not use."""
    names = [
        name for name in old if name not in READ and not name.startswith("_") and name not in source.used
    ]
    return [Lost((name,), f"{name} left out: nothing reads it") for name in names]


def write_today(config: Path, out: Path) -> None:
    """Write a config of mmcv 1.x as one of today.

    Args:
        config: file of the old config.
        out: the new file.

    Raises:
        LintError: the config is one of today already, or both are one file.
    """
    old = read_previous(config)
    if old is None:
        raise LintError(
            f"{config}: is a config of today; --out is for configs of mmcv 1.x, and --fix alone mends it"
        )
    if out.resolve() == config.resolve():
        raise LintError(f"{out}: is the config of mmcv 1.x itself; name another file with --out")
    with atomic_path(out.resolve()) as partial:
        partial.write_text(migrate(old).text(config.name), encoding="utf-8")
