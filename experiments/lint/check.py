"""Lint one config: survey it, apply the rules, and find the line in the files where each key was written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.lint.attention_rules import check_site, handed_as, read_choice, received
from experiments.lint.data_rules import check_pipelines, check_ranges
from experiments.lint.finding import Finding, LintError
from experiments.lint.migration.report import previous_findings, read_previous
from experiments.lint.model_rules import check_model
from experiments.lint.notes import notes
from pipeline.config.provenance import ConfigSource, SourcePlace, read_source
from pipeline.detector.inspection.sites import Site
from pipeline.detector.inspection.survey import survey


@dataclass(frozen=True)
class SiteLine:
    """One row of the table of attention sites.

    Attributes:
        site: the site's name, such as ``decoder.0.cross``.
        receives: a phrase for the bias or mask that the site receives.
        impl: the implementation that computes the attention.
        form: the form in which the implementation gets the bias, or ``-``.
        wrong: an attention rule has a finding about this site that is not a note.
    """

    site: str
    receives: str
    impl: str
    form: str
    wrong: bool


@dataclass(frozen=True)
class LintReport:
    """The result of linting a config.

    Attributes:
        config: the config file.
        device: ``cuda`` or ``cpu``, where the model will train.
        sites: one line per attention site.
        findings: findings first, then notes. Each part begins with the config's own file. Within a file they
            are in the order of lines. Of a config of mmcv 1.x there is one, and notes about what would be
            lost.
        maps: as in ``Survey``; empty for a config of mmcv 1.x.
    """

    config: Path
    device: str
    sites: tuple[SiteLine, ...]
    findings: tuple[Finding, ...]
    maps: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Finding]:
        """The findings that are not notes."""
        return [finding for finding in self.findings if not finding.note]

    @property
    def notes(self) -> list[Finding]:
        """The findings that are notes: worth knowing, but nothing is wrong."""
        return [finding for finding in self.findings if finding.note]


def lint(config: Path, device: str = "cuda") -> LintReport:
    """Lint a config.

    Args:
        config: mmengine config file.
        device: ``cuda`` or ``cpu``, where the model will train.

    Raises:
        LintError: the file does not exist.
        pipeline.detector.build.ConfigError: the file is not a config.
    """
    if not config.is_file():
        raise LintError(f"there is no config file {config}")
    if old := read_previous(config):
        return LintReport(config, device, (), previous_findings(config, old))
    surveyed = survey(config)
    source = read_source(config.resolve())
    of_sites = [finding for site in surveyed.sites for finding in check_site(site, surveyed, device)]
    of_data = [*check_pipelines(surveyed), *check_ranges(surveyed)]
    merged = _merged([*of_sites, *check_model(surveyed, source.used), *of_data, *notes(surveyed)])
    working = _working_flags(surveyed.sites, of_sites, source)
    findings = sorted(
        (_placed(finding, source, working) for finding in merged),
        key=lambda f: (f.note, f.place.file != source.file, str(f.place.file), f.place.line),
    )
    wrong_sites = {site for finding in of_sites if not finding.note for site in finding.sites}
    lines = [
        SiteLine(
            site.name,
            received(site, surveyed),
            read_choice(site)[1],
            handed_as(site),
            site.name in wrong_sites,
        )
        for site in surveyed.sites
    ]
    return LintReport(config, device, tuple(lines), tuple(findings), surveyed.maps)


def _working_flags(
    sites: list[Site], findings: list[Finding], source: ConfigSource
) -> dict[SourcePlace, str]:
    """Return place -> site of the ``use_flashbias`` flags that have an effect at that site."""
    dead = {finding.key for finding in findings if finding.remove}
    keys = [(site.name, (*site.key, "use_flashbias")) for site in sites if read_choice(site)[2]]
    return {source.find(key)[0]: name for name, key in keys if key not in dead}


def _placed(finding: Finding, source: ConfigSource, working: dict[SourcePlace, str]) -> Finding:
    """Return a finding with the place where its key was written.

    If ``--fix`` must not or cannot delete the key there, the advice says what to do instead.
    """
    place, exact = source.find(finding.key)
    placed = replace(finding, place=place)
    if not finding.remove:
        return placed
    if place in working:
        needing = working[place]
        advice = f"give this site a dict of its own, without the flag: {needing} shares it and needs it"
        return replace(placed, advice=advice, remove=False)
    if not exact or place.end is None:
        advice = "remove it by hand; it is not written as key=value, so that --fix leaves it"
        return replace(placed, advice=advice, remove=False)
    if place.file != source.file:
        return replace(placed, advice="remove the flag (--fix --bases does; others may share this file)")
    return placed


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Merge findings that differ only in their sites: sites that share a key get one finding."""
    merged: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        identity = (finding.rule, finding.key, finding.sentence)
        if identity in merged:
            sites = tuple(dict.fromkeys(merged[identity].sites + finding.sites))
            finding = replace(merged[identity], sites=sites)
        merged[identity] = finding
    return list(merged.values())
