"""Any change to a file of a study gives what the file now says, or a refusal in one sentence.

What is accepted is compared with Python's own reading of the file. `make test-all` tries ten times as many.
"""

import json
import math
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st

from experiments.cli import main
from experiments.recipes.mini import smoke
from experiments.reporting.study_record import read_record
from experiments.storage.interim_analyses import read_interim_analyses
from experiments.storage.study_folder import settings_of
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.storage.trial_status import read_status
from pipeline.tracking.study_verdicts import read_verdicts
from tests.bad_inputs.fuzzing import answer, changed, content, few_and_many, run, spoilt

ROOT = Path(__file__).parents[2]
FEW, REPORTS = 150, 20


def same(one, two):
    if isinstance(one, float) and isinstance(two, float) and math.isnan(one):
        return math.isnan(two)
    return one == two


@few_and_many(FEW)
def test_rows(number, tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [Row("s", "t", "p", "NDS", "fraction", 0.25 * n, step=n, time=1e9) for n in range(3)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def check(draw):
        place = draw(st.integers(0, 2))
        made = [json.dumps(changed(draw, one) if at == place else one) for at, one in enumerate(lines)]
        data = "".join(f"{line}\n" for line in made).encode()
        path.write_bytes(spoilt(draw, data) if draw(st.booleans()) else data)
        rows = answer(partial(read_rows, path))
        for row, line in zip(rows or (), path.read_bytes().split(b"\n"), strict=False):
            for key, value in json.loads(line).items():
                wanted = math.nan if value is None and key in ("value", "half_iqr60", "time") else value
                assert same(getattr(row, key), wanted), key

    run(number, check)


@few_and_many(FEW)
def test_study_json(number, tmp_path):
    good = json.loads((ROOT / "tests/golden/report/study.json").read_text())

    def check(draw):
        (tmp_path / "study.json").write_bytes(content(draw, good))
        record = answer(partial(read_record, tmp_path))
        if record is not None:
            plain = json.loads((tmp_path / "study.json").read_bytes())
            for key in ("name", "question", "digest"):
                assert getattr(record, key) == plain.get(key, "")
            held = record.rule.to_dict() if record.rule else {}
            assert {key: held[key] for key in plain["rule"] or {}} == (plain["rule"] or {})

    run(number, check)


@few_and_many(FEW)
def test_settings_json(number, tmp_path):
    good = smoke().trials[0].to_dict()

    def check(draw):
        (tmp_path / "settings.json").write_bytes(content(draw, good))
        held = answer(partial(settings_of, tmp_path))
        if held is not None:
            plain, made = json.loads((tmp_path / "settings.json").read_bytes()), held.to_dict()
            assert held.plan == Plan.parse(plain.pop("plan"))
            assert held.plan_mixture == tuple(map(Plan.parse, plain.pop("plan_mixture", [])))
            assert json.loads(json.dumps({key: made[key] for key in plain} | plain)) == plain

    run(number, check)


OTHERS = {
    "status.json": (
        read_status,
        {
            "state": "FAILED",
            "sessions": [{"start": 1.0, "gpus": 0.0, "end": None}],
            "error": "it broke",
            "rows": {"num_bytes": 3, "sha256": "ab"},
        },
    ),
    "interim_analyses.json": (
        lambda folder: read_interim_analyses(folder / "interim_analyses.json"),
        {"waves": [{"look": 1, "state": "x", "reason": "y", "alpha_spent": 0.1}], "ended": None},
    ),
    "verdicts.json": (
        read_verdicts,
        {
            "sites": [
                {"site": "a", "treatment": "b", "verdict": "PAYS", "gain": 1.0, "net_gain": None,
                 "slowdown_percent": 1.0}
            ],
            "recommended": None,
            "settled_plan": "",
            "fixed_price_percent": {"training": 1.0},
        },
    ),
}  # fmt: skip


@few_and_many(FEW // 2)
@pytest.mark.parametrize("name", OTHERS)
def test_other_files(number, name, tmp_path):
    read, good = OTHERS[name]

    def check(draw):
        (tmp_path / name).write_bytes(content(draw, good))
        answer(partial(read, tmp_path))

    run(number, check)


@few_and_many(REPORTS)
def test_a_report(number, tmp_path, capsys):
    """The whole command: the verdicts of what the folder now holds, or one sentence."""
    study = Path(shutil.copytree(ROOT / "tests/golden/report", tmp_path / "golden"))
    rule = study / "study.json"
    paths = [rule, *sorted(study.glob("trials/*/rows.jsonl"))[:2], *study.glob("stopwatch/rows.jsonl")]
    kept = {path: path.read_bytes() for path in paths}

    def check(draw):
        path = draw(st.sampled_from(paths))
        if path == rule:
            path.write_bytes(content(draw, json.loads(kept[path])))
        else:
            lines = kept[path].splitlines(keepends=True)
            place = draw(st.integers(0, len(lines) - 1))
            lines[place] = json.dumps(changed(draw, json.loads(lines[place]))).encode() + b"\n"
            path.write_bytes(b"".join(lines))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(["study", "report", str(study)])
        path.write_bytes(kept[path])
        out, err = capsys.readouterr()
        assert code in (0, 2)
        assert (code == 2) == (err.count("biaswise: error: ") == 1)
        assert "\x1b" not in out + err
        assert len(err) < 3000

    run(number, check)
