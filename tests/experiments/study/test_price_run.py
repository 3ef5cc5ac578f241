"""The stopwatch run of a study: which plans it times, when it stops, what it prints, when it starts anew."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.analysis.price_model import fit_price
from experiments.analysis.timings import read_timings
from experiments.cli.main import main
from experiments.recipes import mini, registry
from experiments.recipes.factorial import Factor, full, level_of, one_at_a_time, plan_of
from experiments.recipes.mini import CROSS_SITES, IMPL, REST, demo, smoke
from experiments.recipes.nuscenes import r50_waves
from experiments.recipes.recipe import Recipe, trials_of
from experiments.reporting.tables.stopwatch import FIXED, stopwatch_notes, stopwatch_table, timed_prices
from experiments.storage.study_folder import StudyError, StudyFolder, read_json
from experiments.study import price_run
from experiments.study.price_run import (
    FOLDER,
    ROWS,
    STATUS,
    Request,
    is_timed,
    narrow_enough,
    plans_of,
    time_if_needed,
    time_study,
)
from pipeline.metrics.rows import Row, append_rows, read_rows, select
from pipeline.training.stopwatch_rounds import TIME_OVER, TimedTrial
from tests.experiments.planted_rows import plant_times
from tests.smallest import SMALLEST

TRUE = {"fixed": 0.30, CROSS_SITES[0]: 0.0, CROSS_SITES[1]: 0.02, CROSS_SITES[2]: -0.01}


def planted(rounds: int = 12, noise: float = 0.001, **given: float) -> list[Row]:
    """Rows of both kinds of step, with a second clock that runs twice as fast."""
    rows: list[Row] = []
    for kind in ("training", "inference"):
        first = plant_times(TRUE, rounds, noise, metric=f"stopwatch/{kind}_own", **given)
        rows += first
        rows += [replace(row, metric=f"{row.metric}_wall", value=2 * row.value) for row in first]
    return rows


def levels(recipe: Recipe) -> list[str]:
    """The plans that are timed: one letter per site."""
    return ["".join(level_of(plan[s])[0] for s in recipe.sites) for plan in plans_of(recipe)]


def three_levels() -> Recipe:
    design = full([Factor(site, ("none", "window", "gaussian")) for site in CROSS_SITES[:2]])
    rest = REST | {CROSS_SITES[2]: f"none/{IMPL}"}
    plans = {arm: plan_of(design, arm, rest, IMPL) for arm in design.arms}
    assert demo().rule is not None
    rule = replace(demo().rule, sites=design.sites, treatments=("window", "gaussian"))
    trials = trials_of(design, demo().trials[0], (0, 1), plans)
    return replace(demo(), trials=trials, sites=design.sites, rule=rule)


def test_the_plans_are_none_each_alone_all_and_all_but_each() -> None:
    assert levels(smoke()) == ["n", "w"]
    assert levels(mini.smoke_waves()) == ["nn", "wn", "nw", "ww"]
    assert levels(demo()) == ["nnn", "wnn", "nwn", "nnw", "www", "nww", "wnw", "wwn"]
    assert len(levels(r50_waves())) == 14
    assert levels(three_levels()) == ["nn", "wn", "nw", "ww", "gn", "ng", "gg"]


@pytest.mark.parametrize("recipe", [demo(), r50_waves(), three_levels()], ids=lambda recipe: recipe.name)
def test_these_plans_tell_the_fixed_price_and_every_sites_own_apart(recipe: Recipe) -> None:
    assert recipe.rule is not None
    rng = np.random.default_rng(1)
    own = {(site, level): rng.uniform(0, 0.1) for site in recipe.sites for level in recipe.rule.treatments}
    plans = plans_of(recipe)
    rows = []
    for index in range(3):
        for place, plan in enumerate((plans[0], *plans)):
            on = [(site, level_of(plan[site])) for site in recipe.sites if level_of(plan[site]) != "none"]
            value = 500 * math.exp(0.3 * bool(on) + sum(own[term] for term in on) + rng.normal(0, 1e-6))
            rows.append(
                Row("s", "t", str(plan), "stopwatch/training_own", "ms", value, step=index, draw=place)
            )
    price = fit_price(read_timings(rows, recipe.sites, recipe.rule.treatments))
    assert price.fixed_apart
    np.testing.assert_allclose(price.effect, [0.3, *(own[term] for term in price.terms)], atol=1e-4)


def test_one_site_at_a_time_would_not_do() -> None:
    """The reason why all sites, and all but one, are timed too."""
    design = one_at_a_time([Factor(site) for site in CROSS_SITES])
    with_all = {tuple(level_of(plan[s]) for s in CROSS_SITES) for plan in plans_of(demo())}
    assert set(design.arms) < with_all


def test_the_table_holds_the_planted_prices() -> None:
    rule = demo().rule
    assert rule is not None
    prices = timed_prices(planted(), CROSS_SITES, rule)
    table = stopwatch_table(prices, rule)
    assert table.columns == ("price of", "training, %", "±", "inference, %", "±")
    found = {str(name): numbers for name, *numbers in table.lines}
    truth = {FIXED: 0.30, **{site: TRUE[site] for site in CROSS_SITES}, "every site": sum(TRUE.values())}
    assert list(found) == list(truth)
    for name, growth in truth.items():
        for value, half in zip(found[name][::2], found[name][1::2], strict=True):
            assert isinstance(value, float)
            assert isinstance(half, float)
            assert abs(value - 100 * math.expm1(growth)) < 2 * half < 1
    notes = " ".join(stopwatch_notes(prices))
    assert "12 rounds" in notes
    assert "processor time of one thread on cpu; wall clock over it: 2 in training, 2 in inference" in notes


def test_with_a_single_site_its_own_price_is_all_that_there_is() -> None:
    rule = smoke().rule
    assert rule is not None
    rows = plant_times({"fixed": 0.3, CROSS_SITES[0]: 0.1}, noise=1e-4)
    rows += [replace(row, metric="stopwatch/inference_own") for row in rows]
    rows += [replace(row, metric=f"{row.metric}_wall") for row in rows]
    prices = timed_prices(rows, CROSS_SITES[:1], rule)
    ((name, training, *_),) = stopwatch_table(prices, rule).lines
    assert name == CROSS_SITES[0]
    assert isinstance(training, float)
    assert abs(training - 100 * math.expm1(0.4)) < 0.1
    assert "cannot be told apart" in " ".join(stopwatch_notes(prices))


def test_it_stops_when_every_site_is_known_and_not_before() -> None:
    rule = demo().rule
    assert rule is not None
    assert narrow_enough(planted(noise=0.001), rule)
    assert not narrow_enough(planted(noise=0.05), rule)
    assert not narrow_enough(planted(rounds=2), rule)  # no price yet
    assert not narrow_enough(planted(second_visit=0.02), rule)  # disturbed: the baseline differs from itself
    half = replace(rule, price_of=(("training", 0.5), ("inference", 0.5)))
    assert narrow_enough(planted(noise=0.001), half)


class Timed:
    """Stands for the timing process: writes planted rows, and keeps what it was asked for."""

    def __init__(self, rows: list[Row], digest: str) -> None:
        self.rows = [replace(row, recipe_digest=digest) for row in rows]
        self.asked: list[Request] = []

    def __call__(self, request: Request, console: Console) -> str:
        self.asked.append(request)
        append_rows(request.trial.folder / ROWS, self.rows)
        return "the time is over"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "demo")


def shown(recipe: Recipe, folder: StudyFolder) -> str:
    console = Console(file=io.StringIO(), width=200)
    time_if_needed(recipe, folder, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_study_is_timed_once(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = demo()
    timed = Timed(planted(), recipe.digest)
    monkeypatch.setattr(price_run, "_run", timed)
    assert "any bias at all" in shown(recipe, folder)
    assert is_timed(recipe, folder)
    assert shown(recipe, folder) == ""
    (request,) = timed.asked
    assert request.trial.digest == recipe.digest
    assert request.trial.plans == plans_of(recipe)
    assert recipe.rule is not None
    assert request.seconds == recipe.rule.stopwatch_s
    assert read_json(folder.path / FOLDER / STATUS)["rounds"] == 12
    assert not is_timed(recipe.with_threads(7), folder)  # another recipe: another digest


def test_a_rule_that_is_priced_otherwise_needs_no_stopwatch(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo().rule is not None
    recipe = replace(demo(), rule=replace(demo().rule, priced_by="trials"))
    monkeypatch.setattr(price_run, "_run", Timed(planted(), ""))
    assert shown(recipe, folder) == ""
    assert not folder.path.exists()


def test_a_disturbed_machine_is_named_and_the_next_run_starts_anew(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = demo()
    monkeypatch.setattr(price_run, "_run", Timed(planted(noise=1e-6, second_visit=0.05), recipe.digest))
    said = shown(recipe, folder)
    assert said.startswith("no price: training: the baseline's second visit in a round takes +5.00 ± 0.00 %")
    assert "run `biaswise study time` again on an idle machine" in said
    assert said.count("\n") == 1
    monkeypatch.setattr(price_run, "_run", Timed(planted(), recipe.digest))
    rows = time_study(recipe, folder, Console(quiet=True))
    assert len(rows) == len(planted())
    assert len(read_rows(folder.path / FOLDER / "rows_before_1.jsonl")) == len(planted())


def test_again_keeps_the_old_rows_under_another_name(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = demo()
    monkeypatch.setattr(price_run, "_run", Timed(planted(), recipe.digest))
    quiet = Console(quiet=True)
    assert len(time_study(recipe, folder, quiet)) == len(planted())
    assert len(time_study(recipe, folder, quiet)) == 2 * len(planted())  # it goes on
    assert len(time_study(recipe, folder, quiet, again=True)) == len(planted())
    assert len(time_study(recipe, folder, quiet, again=True)) == len(planted())
    assert sorted(path.name for path in (folder.path / FOLDER).glob("rows_before*")) == [
        "rows_before_1.jsonl",
        "rows_before_2.jsonl",
    ]


def test_a_study_that_compares_nothing_is_refused(folder: StudyFolder) -> None:
    with pytest.raises(StudyError, match="recipe pretrain compares nothing"):
        time_study(mini.pretrain(), folder, Console(quiet=True))


@pytest.fixture
def small(smoke_world: mini.SyntheticDataset) -> Recipe:
    """The smallest study, of the smallest model."""
    plain = smoke()
    data = replace(plain.trials[0].data, train=(smoke_world.root,), val=smoke_world.root)
    trials = tuple(replace(settings, data=data, overrides=SMALLEST) for settings in plain.trials)
    return replace(plain, trials=trials, datasets=(smoke_world,))


@pytest.mark.slow(seconds=30)
def test_the_command_times_the_smallest_study_in_a_process_of_its_own(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.RECIPES, "smoke", lambda: small)
    words = ["study", "time", "smoke", "--seconds", "1", "--runs-dir", str(tmp_path)]
    assert main(words) in (0, 2)  # 2: the machine is busy, and the A/A check says so
    place = tmp_path / "smoke" / FOLDER
    rows = read_rows(place / ROWS)
    assert {row.recipe_digest for row in rows} == {small.digest}
    assert len({row.step for row in rows}) >= 3
    assert len(list(select(rows, metric="stopwatch/training_own"))) == 3 * len({row.step for row in rows})
    assert read_json(place / STATUS)["reason"] == TIME_OVER
    (place / ROWS).unlink()
    append_rows(place / ROWS, [replace(row, commit="other") for row in rows])
    (place / STATUS).unlink()
    capfd.readouterr()
    assert main(words) == 2
    assert "were measured with commit other, and now it is" in capfd.readouterr().err


@pytest.mark.cluster
@pytest.mark.slow(seconds=40)
@pytest.mark.usefixtures("quick_ray")
def test_on_a_cluster_a_task_goes_on_with_the_rows_of_the_driver(small: Recipe, tmp_path: Path) -> None:
    from experiments.study.price_on_cluster import time_on_cluster

    assert small.rule is not None
    settings = small.trials[0]
    trial = TimedTrial(settings, plans_of(small), tmp_path / FOLDER, small.digest)
    request = Request(trial, small.rule, 0.1)
    assert time_on_cluster(request, Console(quiet=True)) == TIME_OVER
    first = read_rows(tmp_path / FOLDER / ROWS)
    assert {row.step for row in first} == {0, 1, 2}
    assert {row.trial for row in first} == {FOLDER}
    assert time_on_cluster(request, Console(quiet=True)) == TIME_OVER
    assert read_rows(tmp_path / FOLDER / ROWS)[: len(first)] == first
    assert {row.step for row in read_rows(tmp_path / FOLDER / ROWS)} == {0, 1, 2, 3}
    with pytest.raises(StudyError, match=r"measured with recipe_digest .*start anew with --again"):
        time_on_cluster(replace(request, trial=replace(trial, digest="another")), Console(quiet=True))
