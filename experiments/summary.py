"""Summary: a study read from its rows and ``study.json`` alone, judged, and answered in a sentence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.decide import COSTS, PAYS, UNDECIDED, Evidence, weigh
from experiments.rule import DecideError, Rule
from experiments.sheets import Sheet, effect_sheet, kernel_sheet, listing, trial_sheet, verdict_sheet
from pipeline.rows import Row, read_study


class ReportError(ValueError):
    """A study folder of which no report can be made; the message is one sentence."""


@dataclass(frozen=True)
class Record:
    """What ``study.json`` says.

    Attributes:
        name: name of the study.
        question: the question it answers, in a sentence; may be empty.
        rule: how it is answered; None if the study compares nothing.
        digest: digest of recipe and rule, which every row carries.
    """

    name: str
    question: str
    rule: Rule | None
    digest: str


@dataclass(frozen=True)
class Summary:
    """All a report shows.

    Attributes:
        record: the study.
        rows: its rows.
        evidence: verdicts and effects; None if the rows support none.
        answer: the answer in a sentence, or why there is none.
        notes: what must be said beside the answer.
    """

    record: Record
    rows: tuple[Row, ...]
    evidence: Evidence | None
    answer: str
    notes: tuple[str, ...]

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """The tables: verdicts and effects if there are any, trials, kernels, environment."""
        rule = self.record.rule or Rule()
        plain = (trial_sheet(self.rows, rule), kernel_sheet(self.rows), environment_sheet(self))
        if self.evidence is None:
            return plain
        return (verdict_sheet(self.evidence), effect_sheet(self.evidence), *plain)


def summarize(study_folder: Path) -> Summary:
    """Read a study folder and judge it.

    Raises:
        ReportError: no ``study.json``, one that cannot be read, or no rows at all.
        RowsError: a rows file is broken elsewhere than in its last line.
    """
    record = read_record(study_folder)
    rows = tuple(read_study(study_folder))
    if not rows:
        raise ReportError(f"{study_folder} has no rows yet; a report needs at least one trial")
    if record.rule is None:
        return Summary(record, rows, None, "This study has no rule, so it has no verdicts.", _notes(rows))
    try:
        _refuse_other_recipe(rows, record)
        evidence = weigh(rows, record.rule)
    except DecideError as error:
        return Summary(record, rows, None, f"No verdicts: {error}.", _notes(rows))
    return Summary(record, rows, evidence, answer(evidence), (*evidence.notes, *_notes(rows)))


def read_record(study_folder: Path) -> Record:
    """Read ``study.json``: ``name``, ``question``, ``rule`` (``Rule.to_dict``) and ``digest``."""
    path = study_folder / "study.json"
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{study_folder} is not a study: it has no study.json") from None
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is not JSON ({error}); restore it or run the study again") from error
    if "rule" not in plain:
        raise ReportError(f"{path} has no rule, so nothing says what its verdicts would mean")
    try:
        rule = None if plain["rule"] is None else Rule.from_dict(plain["rule"])
    except (DecideError, TypeError) as error:
        raise ReportError(f"{path} has a rule that cannot be read ({error})") from error
    return Record(
        plain.get("name", study_folder.name), plain.get("question", ""), rule, plain.get("digest", "")
    )


def answer(evidence: Evidence) -> str:
    """Say the verdicts in one sentence."""
    groups = {
        kind: [v.site for v in evidence.verdicts if v.verdict == kind] for kind in (PAYS, COSTS, UNDECIDED)
    }
    trials = len(evidence.table.trials) - len(evidence.table.diverged)
    bias = f"the {evidence.rule.treatment} bias"
    if not groups[PAYS] and not groups[COSTS]:
        where = listing(groups[UNDECIDED])
        return f"Undecided: after {trials} trials {bias} neither pays off nor costs beyond doubt at {where}."
    parts = [f"pays off at {listing(groups[PAYS])}"] if groups[PAYS] else []
    parts += [f"costs more than it gains at {listing(groups[COSTS])}"] if groups[COSTS] else []
    parts += [f"is undecided at {listing(groups[UNDECIDED])}"] if groups[UNDECIDED] else []
    sentence = f"{bias} {listing(parts)}."
    return sentence[0].upper() + sentence[1:]


def environment_sheet(summary: Summary) -> Sheet:
    """Return what must be equal to get the same numbers again."""
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
    for versions in sorted({row.versions for row in rows if row.versions}):
        facts |= dict(pair.split("=", 1) for pair in versions.split(";") if "=" in pair)
    return Sheet("environment", "Environment", ("what", "value"), tuple(facts.items()))


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    dirty = sorted({row.commit for row in rows if row.commit.endswith("+")})
    return tuple(f"The code had changes that are in no commit ({commit})." for commit in dirty)


def _refuse_other_recipe(rows: Sequence[Row], record: Record) -> None:
    strange = sorted({row.recipe for row in rows} - {record.digest})
    if record.digest and strange:
        raise DecideError(
            f"the rows were measured under the recipe {listing(strange)}, study.json says {record.digest}: "
            f"recipe or rule were changed after the study began"
        )
