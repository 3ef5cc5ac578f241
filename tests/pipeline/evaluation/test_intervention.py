"""A detector under plans it was not trained for: its own plan scores as it did, and a rerun adds nothing."""

import pytest

from pipeline.config.plan import Choice, Plan, PlanError
from pipeline.detector.build import build_model
from pipeline.detector.weights import WeightsError, save_weights
from pipeline.evaluation import evaluator
from pipeline.evaluation.intervention import INTERVENTION, evaluate_under_plans
from pipeline.metrics.rows import Row, read_rows, select
from pipeline.runtime.session import LocalSession
from pipeline.training.trial import run_trial

COMMON = Row("test", "trained", "", "", "", 0.0, step=2, recipe_digest="abc")


def test_switching(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "CALLS", 1)
    settings = trial(steps=2, conditions=("clean", "no_lidar"))
    run_trial(settings, LocalSession(tmp_path / "trained"))
    own = read_rows(tmp_path / "trained" / "rows.jsonl")
    whole = Plan.parse(own[0].plan)
    off = Plan(tuple((s, Choice("none") if s == "decoder.0.cross" else c) for s, c in whole.choices))
    path, weights = tmp_path / "masks.jsonl", tmp_path / "trained" / "weights.safetensors"

    evaluate_under_plans(settings, weights, [off], path, COMMON)
    with path.open("a") as file:
        file.write('{"study": "te')  # killed in mid-line
    evaluate_under_plans(settings, weights, [off, whole], path, COMMON)
    rows = read_rows(path)

    assert all(row.metric.startswith(INTERVENTION) for row in rows)
    assert {(row.trial, row.recipe_digest, row.step) for row in rows} == {("trained", "abc", 2)}
    assert len(rows) == 2 * 2 * 17
    for condition in settings.conditions:
        for metric in ("NDS", "mAP", "mATE", "AP/car"):
            (trained,) = select(own, metric=metric, condition=condition)
            (switched,) = select(rows, metric=INTERVENTION + metric, condition=condition, plan=str(whole))
            assert switched.value == trained.value
    content = path.read_bytes()
    evaluate_under_plans(settings, weights, [whole, off], path, COMMON)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("plan", "message"),
    [("decoder.7.cross=none/sdpa_math", "matches no site"), (None, "checkpoint: there is no ")],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(trial, tmp_path, plan, message):
    settings = trial(steps=0)
    plans = [Plan.parse(plan)] if plan else [settings.plan]
    weights = tmp_path / "none.safetensors"
    if plan:
        model = build_model(settings.config, settings.overrides, settings.plan)
        save_weights(model, weights)
    with pytest.raises((PlanError, WeightsError), match=message):
        evaluate_under_plans(settings, weights, plans, tmp_path / "m.jsonl", COMMON)
    assert not (tmp_path / "m.jsonl").exists()
