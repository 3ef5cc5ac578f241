"""Survey it, apply the rules, and say where in the files each finding was written."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.lint.attention_rules import check_site, handed_as, read_choice, received
from experiments.lint.data_rules import check_pipelines, check_ranges
from experiments.lint.finding import Finding, LintError
from experiments.lint.model_rules import check_model
from experiments.lint.notes import notes
from pipeline.config.provenance import ConfigSource, SourcePlace, read_source
from pipeline.detector.inspection.sites import Site
from pipeline.detector.inspection.survey import survey


@dataclass(frozen=True)
class SiteLine:
    """A line of the table of sites: what arrives, what computes it, and in which form it is handed over."""

    site: str
    receives: str
    impl: str
    form: str
    wrong: bool


@dataclass(frozen=True)
class LintReport:
    """What lint found in a config; findings first, then notes, each in the order of files and lines."""

    config: Path
    device: str
    sites: tuple[SiteLine, ...]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        """The findings, less the notes."""
        return [finding for finding in self.findings if not finding.note]

    @property
    def notes(self) -> list[Finding]:
        """The notes."""
        return [finding for finding in self.findings if finding.note]


def lint(config: Path, device: str = "cuda") -> LintReport:
    """Lint a config.

    Args:
        config: mmengine config file.
        device: ``cuda`` or ``cpu``, where the model will train.

    Raises:
        LintError: there is no such file.
        pipeline.detector.build.ConfigError: the file is no config.
    """
    if not config.is_file():
        raise LintError(f"there is no config file {config}")
    found = survey(config)
    source = read_source(config.resolve())
    of_sites = [finding for site in found.sites for finding in check_site(site, found, device)]
    of_data = [*check_pipelines(found), *check_ranges(found)]
    merged = _merged([*of_sites, *check_model(found, source.used), *of_data, *notes(found)])
    alive = _working_flags(found.sites, of_sites, source)
    findings = sorted(
        (_placed(finding, source, alive) for finding in merged),
        key=lambda f: (f.note, f.place.file != source.file, str(f.place.file), f.place.line),
    )
    wrong = {site for finding in of_sites if not finding.note for site in finding.sites}
    lines = [
        SiteLine(site.name, received(site, found), read_choice(site)[1], handed_as(site), site.name in wrong)
        for site in found.sites
    ]
    return LintReport(config, device, tuple(lines), tuple(findings))


def _working_flags(
    sites: list[Site], findings: list[Finding], source: ConfigSource
) -> dict[SourcePlace, str]:
    """Return where a ``use_flashbias`` that works is written, and at which site it does."""
    dead = {finding.key for finding in findings if finding.remove}
    keys = [(site.name, (*site.key, "use_flashbias")) for site in sites if read_choice(site)[2]]
    return {source.find(key)[0]: name for name, key in keys if key not in dead}


def _placed(finding: Finding, source: ConfigSource, alive: dict[SourcePlace, str]) -> Finding:
    """Say where a finding was written; one that cannot be mended by deleting that gets other advice."""
    place, exact = source.find(finding.key)
    found = replace(finding, place=place)
    if not finding.remove:
        return found
    if place in alive:
        advice = f"give this site a dict of its own, without the flag: {alive[place]} shares it and needs it"
        return replace(found, advice=advice, remove=False)
    if not exact or place.end is None:
        advice = "remove it by hand; it is not written as key=value, so that --fix leaves it"
        return replace(found, advice=advice, remove=False)
    if place.file != source.file:
        return replace(found, advice="remove the flag (--fix --bases does; others may share this file)")
    return found


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Say once what is said of several sites that share a key."""
    merged: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        same = (finding.rule, finding.key, finding.sentence)
        if same in merged:
            finding = replace(merged[same], sites=tuple(dict.fromkeys(merged[same].sites + finding.sites)))
        merged[same] = finding
    return list(merged.values())
