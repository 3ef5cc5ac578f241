"""The text of a study file that ``biaswise study new`` writes, from ``study_file.py.j2``."""

import json
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.config.settings import TrialSettings

TEMPLATE = Path(__file__).with_name("study_file.py.j2")
ROOM = 100
"""Columns of a line of the file, comments apart."""


@dataclass(frozen=True)
class Draft:
    """What a study file says.

    Attributes:
        file: its name.
        command: that wrote it.
        base: settings of all trials.
        sites: what varies.
        treatments: levels beside ``none``.
        design: expression that makes the design of ``sites``.
        arms: how many arms it has.
        impls: level -> implementation.
        rest: pattern of another site -> choice.
        frozen: parts of the model that do not train.
        epoch: training frames.
        seeds: at most.
        confirmation: whether the best plans are trained again.
    """

    file: str
    command: str
    base: TrialSettings
    sites: tuple[str, ...]
    treatments: tuple[str, ...]
    design: str
    arms: int
    impls: dict[str, str]
    rest: dict[str, str]
    frozen: tuple[str, ...]
    epoch: int
    seeds: int
    confirmation: bool


def write_draft(draft: Draft) -> str:
    """Return the text of the study file."""
    from jinja2 import Environment, StrictUndefined

    made = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters |= {"q": _quoted, "r": repr}
    steps = draft.base.train.steps or 0
    given: dict[str, Any] = {field.name: getattr(draft, field.name) for field in fields(draft)}
    given |= {
        "written_by": textwrap.fill(
            f"Written by: {draft.command}", ROOM, subsequent_indent="    ", break_long_words=False
        ),
        "combinations": (1 + len(draft.treatments)) ** len(draft.sites),
        "early": steps // 3 if draft.seeds > 1 else 0,
        "gpus": draft.base.device == "cuda",
        "epoch": _epochs(draft),
    }
    return made.from_string(TEMPLATE.read_text(encoding="utf-8")).render(given)


def _epochs(draft: Draft) -> str:
    together = draft.base.train.batch_size * draft.base.num_workers
    if together > draft.epoch:
        return f"one step of {together} frames, as the data have {draft.epoch:,}"
    share = (draft.base.train.steps or 0) * together / draft.epoch
    return f"{share:.2g} times the {draft.epoch:,} frames, {together} a step"


def _quoted(value: Any) -> str:
    """Return a text, a list of texts or a dict of texts as Python spells it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
