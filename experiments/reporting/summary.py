"""The content of a report: a study, read from its rows and ``study.json`` alone, and its verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from experiments.analysis import confirmation
from experiments.analysis.confirmation import Confirmed
from experiments.analysis.decide import Evidence, weigh
from experiments.analysis.price import read_stopwatch
from experiments.analysis.recommend import Recommendation, recommend
from experiments.analysis.row_checks import refuse_mixtures
from experiments.analysis.screening import FOLDER, ROWS, Ranked, rank, rule_in_force, was_edited
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.recipe import RecipeError
from experiments.reporting.integrity import (
    about_code,
    failures,
    refuse_edits,
    refuse_other_recipe,
)
from experiments.reporting.study_record import ReportError, StudyRecord, about_record, read_record
from experiments.reporting.tables.base import Table, effect_table, trial_table, verdict_table
from experiments.reporting.tables.design import (
    STUDY,
    alias_table,
    confirmation_table,
    cost_table,
    interaction_table,
    plan_table,
)
from experiments.reporting.tables.kernels import kernel_table_of_study
from experiments.reporting.tables.price import price_table
from experiments.reporting.tables.screening import compare_screening, screening_table
from experiments.reporting.wording import about_failures, answer, listing
from experiments.storage.usage import Used, used_by_trials
from pipeline.config.plan import PlanError
from pipeline.json_files import MAX_BYTES, read_bytes
from pipeline.metrics.rows import Row, read_rows, read_study

NO_RULE = "This study has no rule, so it has no verdicts."
SCENE = "scene.png"
"""The picture of one scene that a trial keeps in its folder."""


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows.

    Attributes:
        record: the study.
        rows: its rows.
        evidence: verdicts and effects; None if the rows support none.
        advice: the plan to use; None without evidence, and without a price.
        answer: the answer in a sentence, or why there is none.
        notes: sentences that qualify the answer.
        costs: name of a part of the study -> trial -> what it used.
        config: the recommended plan as an mmengine config; empty if it was not printed.
        confirmed: plans that ran again on fresh seeds.
        screened: the ranking of a screening, if the study has one.
        scene: one scene as the recommended plan's trial saw it, a PNG; empty if no trial kept one.
    """

    record: StudyRecord
    rows: tuple[Row, ...]
    evidence: Evidence | None
    advice: Recommendation | None
    answer: str
    notes: tuple[str, ...]
    costs: Mapping[str, Mapping[str, Used]] = field(default_factory=lambda: {STUDY: {}})
    config: str = ""
    confirmed: tuple[Confirmed, ...] = ()
    screened: tuple[Ranked, ...] = ()
    scene: bytes = b""

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The tables: verdicts, effects and plans if there are any, trials, kernels, cost, environment."""
        rule = self.record.rule or DecisionRule()
        screen = (screening_table(self.screened, self.evidence),) if self.screened else ()
        cost = cost_table(self.costs, self.evidence)
        plain = (*screen, cost, trial_table(self.rows, rule), kernel_table_of_study(self.rows))
        if self.evidence is None:
            return (*plain, environment_table(self))
        evidence = self.evidence
        plans = () if self.advice is None else (plan_table(self.rows, evidence, self.advice),)
        judged = (verdict_table(evidence), price_table(evidence), effect_table(evidence), *plans)
        again = confirmation_table(self.confirmed, evidence)
        design = (again, interaction_table(evidence), alias_table(evidence))
        some = (table for table in (*judged, *design) if table.lines)
        return (*some, *plain, environment_table(self))


def summarize(study_folder: Path) -> Summary:
    """Read a study folder and judge it.

    Raises:
        ReportError: no ``study.json``, one that cannot be read, or no rows at all.
        RowsError: a rows file is broken elsewhere than in its last line.
    """
    record = read_record(study_folder)
    rows = tuple(read_study(study_folder))
    if not rows:
        raise ReportError(f"{study_folder} has no rows yet; a report needs one trial{_blame(study_folder)}")
    costs = {
        STUDY: used_by_trials(study_folder, rows),
        "confirmation on fresh seeds": used_by_trials(study_folder / confirmation.FOLDER, ()),
        "training of the screening": used_by_trials(study_folder / FOLDER, ()),
    }
    notes = (*about_record(record), *failures(study_folder), *about_code(rows))
    try:
        refuse_edits(study_folder)
        if record.rule is None:
            return Summary(record, rows, None, None, NO_RULE, notes, costs)
        refuse_other_recipe(rows, record.name, record.digest)
        rule = rule_in_force(record.rule, study_folder, record.digest)
        evidence = weigh(rows, rule, read_stopwatch(study_folder))
        advice = recommend(rows, evidence) if evidence.price is not None else None
    except AnalysisError as error:
        return Summary(record, rows, None, None, f"No verdicts: {error}.", notes, costs)
    confirmed, about_confirmation = read_confirmation(study_folder, rows, evidence)
    screened, about_screen = read_screening(study_folder, evidence)
    return Summary(
        record,
        rows,
        evidence,
        advice,
        answer(evidence, advice),
        (*about_failures(evidence), *evidence.notes, *notes, *about_confirmation, *about_screen),
        costs,
        confirmed=confirmed,
        screened=screened,
        scene=_scene(study_folder, rows, advice),
    )


def read_confirmation(
    study_folder: Path, study: Sequence[Row], evidence: Evidence
) -> tuple[tuple[Confirmed, ...], tuple[str, ...]]:
    """Read the study's confirmation, and a note if it is left out; both are empty if there is none.

    Args:
        study_folder: the study.
        study: its own rows; the confirmation must have run like them.
        evidence: drawn from them.
    """
    folder = study_folder / confirmation.FOLDER
    rows = read_study(folder)
    if not rows:
        return (), ()
    try:
        refuse_edits(folder)
        refuse_mixtures([replace(row, recipe_digest="") for row in (*study, *rows)])  # its recipe is its own
        return confirmation.confirm(rows, evidence), ()
    except AnalysisError as error:
        return (), (f"The confirmation is left out: {error}.",)


def read_screening(study_folder: Path, evidence: Evidence) -> tuple[tuple[Ranked, ...], tuple[str, ...]]:
    """Read the ranking of the study's screening, and notes about it; both are empty if there is none."""
    path = study_folder / FOLDER / ROWS
    if not path.exists():
        return (), ()
    if was_edited(study_folder):
        return (), (f"The screening is left out: the rows in {path.name} are not those it wrote.",)
    try:
        ranked = tuple(rank(read_rows(path), evidence.table.sites, evidence.rule))
    except (RecipeError, PlanError) as error:
        return (), (f"The screening is left out: {error}.",)
    return ranked, tuple(filter(None, [compare_screening(ranked, evidence)]))


def environment_table(summary: Summary) -> Table:
    """Return the table of what must be equal to get the same numbers again."""
    rows, record = summary.rows, summary.record
    times = [row.time for row in rows if row.time > 0]
    facts = {
        "study": record.name,
        "recipe": record.digest,
        "rule": record.rule.digest if record.rule else "none",
        "device": listing(sorted({row.device for row in rows})),
        "commit": listing(sorted({row.commit or "unknown" for row in rows})),
        "trials": str(len({row.trial for row in rows})),
        "rows": str(len(rows)),
    }
    if times:
        first, last = (
            datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M") for t in (min(times), max(times))
        )
        facts["measured (UTC)"] = f"{first} to {last}"
    found: dict[str, set[str]] = {}
    for versions in sorted({row.versions for row in rows}):
        for name, version in (pair.split("=", 1) for pair in versions.split(";") if "=" in pair):
            found.setdefault(name, set()).add(version)
    facts |= {name: listing(sorted(values)) for name, values in found.items()}
    return Table("environment", "Environment", ("what", "value"), tuple(facts.items()))


def _blame(study_folder: Path) -> str:
    failed = failures(study_folder)
    return f"; {len(failed)} failed. {failed[0]}" if failed else ""


def _scene(study_folder: Path, rows: Sequence[Row], advice: Recommendation | None) -> bytes:
    """Return the picture of a trial of the recommended plan, else of the one with the most sites treated."""
    pictures = {path.parent.name: path for path in sorted(study_folder.glob(f"trials/*/{SCENE}"))}
    if not pictures:
        return b""
    plans = {row.trial: row.plan for row in rows if row.trial in pictures}
    wanted = str(advice.plan) if advice else ""
    alike = [trial for trial in sorted(plans) if plans[trial] == wanted]
    trial = (
        alike[0] if alike else max(sorted(plans), key=lambda name: -plans[name].count("=none/"), default="")
    )
    return read_bytes(pictures[trial], MAX_BYTES, links=False) if trial else b""
