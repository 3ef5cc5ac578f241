"""Reports from fixed rows: the Markdown to the letter, the page as a browser and a reader need it."""

import base64
import csv
import io
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from experiments.analysis.decide import decide
from experiments.analysis.decision.settling import PRICE
from experiments.analysis.price import read_stopwatch
from experiments.analysis.verdicts import PAYS, UNDECIDED
from experiments.recipes.factorial import Factor, fraction
from experiments.reporting.figures.style import to_png
from experiments.reporting.markdown import to_markdown
from experiments.reporting.page import drawings, to_html
from experiments.reporting.report import print_report, write_report
from experiments.reporting.study_record import ReportError, read_record
from experiments.reporting.summary import environment_table, summarize
from experiments.reporting.tables.base import arm_label, settling, short_names, signed
from experiments.reporting.tables.design import plan_table
from experiments.reporting.wording import advise, plan_answer
from experiments.study.final_report import verdicts_of, write_verdicts
from pipeline.config.plan import Plan, PlanError
from pipeline.metrics.rows import Row, append_rows, read_rows, read_study
from pipeline.storage.trial_status import TrialState, rows_digest
from tests.experiments.planted_rows import Truth, decorate, plant, window_rule
from tests.statuses import write_status

GOLDEN = Path(__file__).parents[2] / "golden" / "report"


@pytest.fixture
def golden(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


@pytest.fixture(scope="module")
def page_text():
    return to_html(summarize(GOLDEN))


def rewrite(folder: Path, change) -> None:
    """Apply ``change`` (rows -> rows) to all rows of a study."""
    rows = change(read_study(folder))
    shutil.rmtree(folder / "trials")
    for row in rows:
        append_rows(folder / "trials" / row.trial / "rows.jsonl", [row])


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_markdown_to_the_letter(golden):
    """After a wanted change: read the difference, then copy the new report.md into tests/golden/report."""
    assert to_markdown(summarize(golden)) == (GOLDEN / "report.md").read_text(encoding="utf-8")


def test_tables_hold_the_verdicts_in_full(golden):
    report = write_report(golden)
    with (golden / "verdicts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    verdicts = decide(read_study(golden), report.summary.record.rule, read_stopwatch(golden))
    assert [(line["site"], line["verdict"]) for line in lines] == [(v.site, v.verdict) for v in verdicts]
    assert [float(line["net_gain_low"]) for line in lines] == [v.net_low for v in verdicts]
    assert {path.name for path in report.tables} == {
        "verdicts.csv",
        "price.csv",
        "effects.csv",
        "plans.csv",
        "cost.csv",
        "trials.csv",
        "kernels.csv",
        "environment.csv",
    }


def test_page_is_self_contained(page_text):
    page = Page(page_text)
    assert "://" not in page_text
    assert not page.named("script")
    loads = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "xlink:href") if key in attrs]
    assert all(target.startswith(("#", "data:,")) for target in loads)
    assert "@import" not in page_text
    (policy,) = [a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_page_is_sound_html(page_text):
    page = Page(page_text)
    ids = Counter(attrs["id"] for _, attrs in page.tags if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    assert {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")} <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("svg")) == 4
    assert all(a.get("aria-label") for _, a in page.tags if a.get("role") == "img")
    assert len(page.named("h1")) == 1
    assert all("scope" in attrs for attrs in page.named("th"))


def test_figures_take_their_colours_from_the_page(page_text):
    figures = page_text[page_text.index("<svg") : page_text.rindex("</svg>")]
    assert "#00000" not in figures  # a stand-in colour that was not replaced
    assert "var(--ink)" in figures
    assert "DejaVu" not in figures


def test_same_rows_same_page(page_text):
    assert to_html(summarize(GOLDEN)) == page_text


def test_names_of_people_do_not_become_markup(golden):
    plain = json.loads((golden / "study.json").read_text())
    plain["question"] = "<script>alert(1)</script>"
    (golden / "study.json").write_text(json.dumps(plain))
    assert not Page(write_report(golden).html.read_text(encoding="utf-8")).named("script")


def test_terminal_fits_80_columns(golden):
    console = Console(width=80, record=True, file=io.StringIO())
    print_report(write_report(golden), console)
    text = console.export_text()
    for verdict in decide(read_study(golden), window_rule(), read_stopwatch(golden)):
        assert f"{verdict.site}" in text
        assert f"{verdict.verdict}" in text
    assert "…" not in text


def lose_three(golden):
    for name in ("w11-s0", "w11-s1", "w01-s0"):
        shutil.rmtree(golden / "trials" / name)


def test_missing_arms_are_said_at_the_top_and_the_trials_still_shown(golden):
    lose_three(golden)
    report = write_report(golden)
    assert report.summary.evidence is None
    text = report.markdown.read_text(encoding="utf-8")
    assert "**No verdicts: 3 of 8 trials lack NDS (clean)" in text
    assert "| w10-s0 |" in text
    assert not (golden / "verdicts.csv").exists()
    print_report(report, Console(quiet=True))


def test_old_verdicts_do_not_survive_rows_that_support_none(golden):
    write_report(golden)
    assert (golden / "verdicts.csv").exists()
    lose_three(golden)
    write_report(golden)
    assert not (golden / "verdicts.csv").exists()
    assert not (golden / "effects.csv").exists()


def test_contradicting_rows_are_refused_and_shown(golden):
    rows = read_study(golden)
    double = next(row for row in rows if row.metric == "NDS")
    append_rows(golden / "trials" / double.trial / "rows.jsonl", [replace(double, value=0.9)])
    summary = summarize(golden)
    assert "two values of NDS" in summary.answer
    assert double.trial in to_markdown(summary)


def test_a_rule_that_was_changed_after_the_fact_is_refused(golden):
    plain = json.loads((golden / "study.json").read_text())
    (golden / "study.json").write_text(json.dumps({**plain, "digest": "ddddeeeeffff"}))
    assert "changed after the study began" in summarize(golden).answer


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"value": 0.4', '"value": 0.5', 1),
        lambda text: text.partition("\n")[2],
        lambda text: text[: text.rindex("\n", 0, -1) + 1],
        lambda text: text + text.splitlines(keepends=True)[-1],
    ],
    ids=["changed", "removed", "end", "added"],
)
def test_edited_rows_give_no_verdict(golden, edit):
    path = golden / "trials/w00-s0/rows.jsonl"
    write_status(path.parent, rows=rows_digest(path))
    assert summarize(golden).evidence is not None
    path.write_text(edit(path.read_text()))
    summary = summarize(golden)
    assert summary.evidence is None
    assert summary.answer.startswith("No verdicts: the rows of trial w00-s0 are not those that it wrote; ")
    assert "| w10-s0 |" in to_markdown(summary)  # the rest stays usable


def test_a_failed_trial_that_runs_again_may_add_rows(golden):
    path = golden / "trials/w00-s0/rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    write_status(path.parent, TrialState.FAILED, error="no such file", rows=rows_digest(path))
    path.write_text("".join(lines))
    assert summarize(golden).evidence is not None
    path.write_text("".join(lines[1:]))
    assert "w00-s0 are not those that it wrote" in summarize(golden).answer


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "fedcba987654"},
        {"device": "NVIDIA H200"},
        {"versions": "torch=2.13.0;ray=2.60.0;data=0123456789ab"},
    ],
    ids=["commits", "hardware", "data"],
)
def test_mixtures_are_refused(golden, change):
    def mix(rows):
        return [replace(row, **change) if row.seed == 1 else row for row in rows]

    rewrite(golden, mix)
    summary = summarize(golden)
    assert summary.evidence is None
    assert f"the trials differ in {next(iter(change))}" in summary.answer


def test_the_trials_of_another_study_are_refused(golden):
    rewrite(golden, lambda rows: [replace(row, study="other") for row in rows])
    assert "the rows are those of the study other, study.json is that of golden" in summarize(golden).answer


def test_an_unknown_metric_is_refused(golden):
    plain = json.loads((golden / "study.json").read_text())
    plain["rule"]["metric"] = "mIoU"
    (golden / "study.json").write_text(json.dumps(plain))
    assert "no row measures mIoU under the condition 'clean'; measured were" in summarize(golden).answer


def test_a_report_says_for_which_weights_its_verdicts_hold(golden):
    def notes_with(inputs):
        plain = json.loads((golden / "study.json").read_text())
        (golden / "study.json").write_text(json.dumps({**plain, "inputs": inputs}))
        return " ".join(summarize(golden).notes)

    one = "start from w/a.pth; from other weights they may differ"
    assert one in notes_with({"c.py": "1", "w/a.pth": "2"})
    assert "weights of its own, 2 in all" in notes_with({"c.py": "1", "a.pth": "2", "b.pth": "3"})
    assert "weights" not in notes_with({"c.py": "1"})
    with pytest.raises(ReportError, match="inputs that cannot be read"):
        notes_with([1])


def diverge(*trials):
    def change(rows):
        spoilt = [row.unit == "fraction" and (not trials or row.trial in trials) for row in rows]
        return [replace(r, value=math.nan) if bad else r for r, bad in zip(rows, spoilt, strict=True)]

    return change


def test_one_diverged_trial_is_left_out_and_said(golden):
    rewrite(golden, diverge("w00-s1"))
    summary = write_report(golden).summary
    assert summary.evidence is not None
    assert any("diverged: w00-s1" in note for note in summary.notes)


def test_when_all_trials_diverged_there_is_no_verdict(golden):
    rewrite(golden, diverge())
    summary = write_report(golden).summary
    assert summary.evidence is None
    assert summary.answer.startswith("No verdicts: ")


def test_failed_trials_are_said_with_their_reason(golden):
    for name in ("w11-s0", "w11-s1"):
        write_status(golden / "trials" / name, TrialState.FAILED, error="no such file: x.jpg")
    summary = summarize(golden)
    assert "Failed: w11-s0: no such file: x.jpg." in summary.notes
    shutil.rmtree(golden / "trials/w00-s0")
    for path in golden.glob("trials/*/rows.jsonl"):
        path.unlink()
    with pytest.raises(ReportError, match=r"one trial; 2 failed. Failed: w11-s0: no such file"):
        summarize(golden)


def test_the_recommended_plan_is_a_config_beside_the_report(golden):
    report = write_report(golden, lambda plan: f"# <{plan}>\nmodel = dict()\n")
    best = "decoder.0.cross=window/sdpa_math;decoder.1.self=none/sdpa_math;decoder.1.cross=window/sdpa_math"
    text = (golden / "recommended.py").read_text()
    assert best in text
    page = report.html.read_text(encoding="utf-8")
    assert f"{best}&gt;" in page


def test_page_and_config_stay_while_the_rows_do(golden):
    write_report(golden, lambda plan: f"# {plan}\n")
    drawn = ["figures/speed.png", "recommended.py", "report.html"]
    before = [(golden / name).read_bytes() for name in drawn]
    report = write_report(golden, figures=False)
    assert [(golden / name).read_bytes() for name in drawn] == before
    assert (report.html, report.config) == (None, None)
    rewrite(golden, lambda rows: [replace(row, value=row.value + 1e-9) for row in rows])
    write_report(golden, figures=False)
    assert not any((golden / name).exists() for name in drawn)


def test_a_config_that_cannot_be_printed_is_said(golden):
    def refuse(plan):
        raise PlanError("the model has changed")

    report = write_report(golden, refuse)
    assert report.summary.evidence is not None
    assert "The plan is not printed as a config: the model has changed." in report.summary.notes


def test_the_picture_of_the_recommended_plans_trial_is_shown(golden):
    for name in ("w00-s0", "w10-s0", "w11-s1"):  # the best plan is w11
        (golden / f"trials/{name}/scene.png").write_bytes(b"\x89PNG " + name.encode())
    report = write_report(golden)
    assert (golden / "figures" / "scene.png").read_bytes() == b"\x89PNG w11-s1"
    (picture,) = Page(report.html.read_text(encoding="utf-8")).named("img")
    assert picture["src"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG w11-s1").decode()
    assert picture["alt"]


def test_figures_are_files_too_and_repeat(golden, tmp_path):
    write_report(golden)
    names = {path.name: path.read_bytes() for path in (golden / "figures").iterdir()}
    assert set(names) == {"speed.png", "forest.png", "map.png", "scale.png"}
    for drawing in drawings(summarize(golden)):
        assert to_png(drawing) == names[f"{drawing.name}.png"]
    assert cv2.imdecode(np.frombuffer(names["map.png"], np.uint8), cv2.IMREAD_COLOR).shape[1] == 980


def test_a_fraction_says_what_it_cannot_tell_apart(tmp_path):
    sites = tuple(f"decoder.{i}.cross" for i in range(4))
    arms = fraction([Factor(site) for site in sites], 1).arms
    rule = window_rule(sites=sites, arms=arms, priced_by="trials")
    everything = plant(Truth(dict.fromkeys(sites, 1.0)))
    rows = [r for r in everything if tuple(Plan.parse(r.plan)[site].bias for site in sites) in arms]
    append_rows(tmp_path / "trials/all/rows.jsonl", rows)
    (tmp_path / "study.json").write_text(json.dumps({"rule": rule.to_dict()}))
    text = to_markdown(summarize(tmp_path))
    assert "## What these arms cannot tell apart" in text
    assert "decoder.0.cross with decoder.1.cross = decoder.2.cross with decoder.3.cross" in text
    (grid,) = [line for line in text.splitlines() if "full grid" in line]
    assert grid.split("|")[2].strip() == "32"  # 2^4 plans, two seeds; 16 trials ran


def test_code_outside_any_commit_is_said(golden):
    rewrite(golden, lambda rows: [replace(row, commit="0123+") for row in rows])
    assert any("0123+" in note for note in summarize(golden).notes)


def test_a_study_without_a_rule_lists_its_trials(golden):
    plain = json.loads((golden / "study.json").read_text())
    (golden / "study.json").write_text(json.dumps({**plain, "rule": None}))
    report = write_report(golden)
    assert "no rule" in report.summary.answer
    assert "w10-s0" in report.html.read_text(encoding="utf-8")


def test_a_last_line_cut_short_is_left_out(golden):
    with (golden / "trials/w00-s0/rows.jsonl").open("a") as file:
        file.write('{"study": "gol')
    with pytest.warns(UserWarning, match="cut short"):
        assert summarize(golden).evidence is not None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "it has no study.json"),
        ('{"rule"', "is not JSON"),
        ('{"name": "x"}', "has no rule"),
        ('{"rule": {"speed": 3}}', "cannot be read"),
    ],
)
def test_folders_that_are_no_study(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(ReportError, match=sentence):
        read_record(tmp_path)


def test_a_study_without_rows(golden):
    shutil.rmtree(golden / "trials")
    with pytest.raises(ReportError, match="no rows yet"):
        write_report(golden)


def test_a_report_of_two_rows_of_one_trial(tmp_path):
    plan = "decoder.0.cross=none/sdpa_math"
    rows = [Row("s", "t", plan, metric, "ms", 3.0) for metric in ("step_ms", "train_samples_per_s")]
    append_rows(tmp_path / "trials/t/rows.jsonl", rows)
    (tmp_path / "study.json").write_text(json.dumps({"rule": window_rule(priced_by="trials").to_dict()}))
    assert "No verdicts" in write_report(tmp_path).summary.answer


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ((9.0, 9.0), "The window bias pays off at decoder.0.cross and decoder.1.cross."),
        ((-9.0, 9.0), "pays off at decoder.1.cross and costs more than it gains at decoder.0.cross."),
        ((0.0, 0.0), "Undecided: after 8 trials the window bias neither pays off nor costs beyond doubt at"),
    ],
)
def test_the_answer_in_one_sentence(tmp_path, gains, sentence):
    truth = Truth({"decoder.0.cross": gains[0], "decoder.1.cross": gains[1]})
    append_rows(tmp_path / "trials/all/rows.jsonl", decorate(plant(truth, draw=2)))
    (tmp_path / "study.json").write_text(json.dumps({"rule": window_rule(priced_by="trials").to_dict()}))
    assert sentence in summarize(tmp_path).answer


def test_wording():
    assert short_names(["decoder.0.cross", "decoder.2.cross"]) == {
        "decoder.0.cross": "0",
        "decoder.2.cross": "2",
    }
    assert short_names(["aqr.0.cross"]) == {"aqr.0.cross": "aqr.0.cross"}
    assert arm_label("a.0=window/flex;a.1=none/flex", ["a.0", "a.1"], window_rule()) == "0"
    (undecided,) = [v for v in summarize(GOLDEN).evidence.verdicts if v.verdict == UNDECIDED]
    evidence, needed = summarize(GOLDEN).evidence, undecided.to_settle

    def text(**changes):
        return settling(replace(undecided, to_settle=replace(needed, **changes)), evidence)

    assert text(seeds=1, timing=1.0) == "1 more seed (4 trials)"
    assert text(seeds=2, timing=2.5) == "2 more seeds (8 trials), 18 more rounds of the stopwatch"
    assert text(largest=PRICE, seeds=1, timing=2.0).startswith("12 more rounds of the stopwatch, 1 more seed")
    assert text(seeds=101) == "noise too large to say, most of it from runs"
    assert settling(replace(undecided, to_settle=None), evidence) == "its price"
    assert settling(replace(undecided, verdict=PAYS), evidence) == "settled"
    assert [signed(-0.001), signed(1), signed(-1)] == ["0.00", "+1.00", "\N{MINUS SIGN}1.00"]


def test_without_a_stopwatch_the_report_tells_gains_and_what_is_missing(golden):
    shutil.rmtree(golden / "stopwatch")
    report = write_report(golden)
    text = report.markdown.read_text(encoding="utf-8")
    assert (
        "**No verdicts yet: 8 trials tell what the window bias gains, and its price is not measured.**"
        in text
    )
    assert "`biaswise study time golden` measures it" in text
    assert "| decoder.0.cross | ? UNDECIDED | +2.32 [" in text
    assert report.summary.advice is None
    assert not (golden / "plans.csv").exists()
    print_report(report, Console(quiet=True))
    assert write_verdicts(report.summary, golden).sites[0].net_gain is None


def test_where_no_bias_wins_the_report_says_what_it_would_have_to_cost(golden):
    """The demo of 0.2.0 recommended a layer with net +0.33 whose plan costs 29 % of a step."""
    path = golden / "stopwatch/rows.jsonl"
    rows = [replace(r, value=r.value * (1.5 if "=window" in r.plan else 1.0)) for r in read_rows(path)]
    path.unlink()
    append_rows(path, rows)
    summary = summarize(golden)
    settled, guess = advise(summary.advice, summary.evidence)
    assert settled.startswith("By the rule no bias wins: every plan costs more than it gains.")
    assert re.search(r"step time \+6\d\.\d %, where at most 2\d\.\d % would pay", settled), settled
    assert guess == "Best guess: none everywhere; no plan is expected to be worth its price."
    assert summary.evidence.verdicts[0].verdict == PAYS  # the layer's own price is small
    assert summary.answer.endswith(
        "no bias wins all the same: the fixed price is more than these layers earn."
    )
    assert verdicts_of(summary).tags()["verdict.plan"] == "no bias"
    assert verdicts_of(summary).metrics()["fixed_price_percent/training"] == pytest.approx(59, abs=1)


def test_speeds_of_training_are_predicted_from_training_whatever_is_priced():
    """A candidate's slow-down is that of what the rule prices, which may be a detection."""
    summary = summarize(GOLDEN)
    rows, evidence, advice = summary.rows, summary.evidence, summary.advice
    priced = [replace(c, slowdown_percent=99.0) for c in (advice.best, *advice.candidates)]
    other = replace(advice, best=priced[0], candidates=tuple(priced[1:]))
    assert plan_table(rows, evidence, other).lines == plan_table(rows, evidence, advice).lines


def test_a_rule_without_a_price_names_none():
    summary = summarize(GOLDEN)
    free = replace(summary.evidence, rule=replace(summary.evidence.rule, price_points_per_percent=0.0))
    text = plan_answer(replace(summary.advice, settled=None, no_bias_wins=True), free)
    assert text.startswith("By the rule no bias wins: speed has no price, and every plan loses points.")
    assert "%" not in text


def test_the_environment_names_every_version_of_rows_that_differ(golden):
    rewrite(golden, lambda rows: [replace(r, versions=f"torch={2 + r.seed};ray=9") for r in rows])
    lines = dict(environment_table(summarize(golden)).lines)
    assert (lines["torch"], lines["ray"]) == ("2 and 3", "9")


def test_every_answer_about_plans_has_words():
    """Settled or not, with any best guess, and any of its layers that do not PAY by themselves."""
    summary = summarize(GOLDEN)
    advice, sites = summary.advice, summary.evidence.table.sites
    for best, settled, count in product(advice.candidates, (None, *advice.candidates), range(len(sites) + 1)):
        treated = sites[:count]
        changed = replace(advice, best=best, settled=settled, no_bias_wins=False, open_sites=treated)
        text = to_markdown(replace(summary, advice=changed))
        assert ("Settled plan: " in text) == (settled is not None)
        guessed = settled is None or settled.levels != best.levels
        named = guessed and treated != () and set(best.levels) != {"none"}
        assert ("do not PAY by themselves" in text) == named


def test_a_layer_whose_trainings_fail_does_not_simply_pay(golden):
    """One of four trainings with the bias at the first layer diverged, none of four without."""
    rewrite(golden, diverge("w11-s1"))
    summary = summarize(golden)
    first = summary.evidence.verdicts[0]
    assert (first.verdict, first.label, first.pays_alone) == (PAYS, "PAYS where it trains", False)
    assert "pays off at decoder.0.cross where it trains (failed in 1 of 4 against 0 of 4)" in summary.answer
    assert summary.advice.settled is None
    assert verdicts_of(summary).tags()["verdict.decoder.0.cross"] == "PAYS where it trains"
