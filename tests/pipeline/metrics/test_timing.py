"""Timing: warm-up left out, medians right, waits apart from steps."""

import pytest
import torch

from pipeline.metrics import timing
from pipeline.metrics.timing import WARMUP_CALLS, WARMUP_STEPS, Moment, StepClock, StepTimes, latency

CPU = torch.device("cpu")


class Ticks:
    """A clock that tests turn by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    made = Ticks()
    monkeypatch.setattr(timing, "time", made)
    return made


def run(clock: StepClock, ticks: Ticks, waits_and_steps: list[tuple[float, float]]) -> None:
    for wait, step in waits_and_steps:
        clock.begin()
        ticks.now += wait
        clock.fed()
        ticks.now += step
        clock.end()


def test_steps_are_timed_without_warm_up_and_without_what_lies_between(ticks: Ticks) -> None:
    clock = StepClock(CPU)
    run(clock, ticks, [(0.5, 9.0)] * WARMUP_STEPS)
    for _ in range(20):
        run(clock, ticks, [(0.01, 0.09)])
        ticks.now += 2.0  # a report
    step, wait, rate = clock.measures(samples_per_step=8)
    assert (step.metric, step.value, step.n) == ("step_ms", pytest.approx(90), 20)
    assert (wait.metric, wait.value) == ("data_wait_ms", pytest.approx(10))
    assert (rate.metric, rate.value) == ("train_samples_per_s", pytest.approx(80))


def test_a_step_of_a_cohort_costs_an_arm_the_trunk_and_its_own_part(ticks: Ticks) -> None:
    times = StepTimes()
    assert times.measures(1) == []
    for wait, trunk, own in [(9.0, 9.0, 9.0)] * WARMUP_STEPS + [(0.1, 0.25, 0.15)] * 20:
        begun = Moment(CPU)
        ticks.now += trunk
        ended = Moment(CPU)
        times.add(wait, ended.seconds_since(begun), own)
    found = {measure.metric: measure.value for measure in times.measures(samples_per_step=8)}
    expected = {"step_ms": 400, "data_wait_ms": 100, "train_samples_per_s": 16}
    assert found == pytest.approx(expected | {"step_trunk_ms": 250, "step_own_ms": 150})


def test_the_rate_while_a_trial_runs_is_that_of_the_steps_since_it_was_asked_for() -> None:
    times = StepTimes()
    assert times.recent_rate(8) == []
    for _ in range(3):
        times.add(0.5, 1.0, 0.5)
    (rate,) = times.recent_rate(8)
    assert (rate.metric, rate.unit, rate.value) == ("samples_per_s", "samples/s", pytest.approx(4))
    times.add(0.0, 0.5, 0.5)
    assert times.recent_rate(8)[0].value == pytest.approx(8)
    assert times.recent_rate(8) == []


def test_spread_is_half_of_the_middle_three_fifths(ticks: Ticks) -> None:
    clock = StepClock(CPU)
    run(clock, ticks, [(0, 1)] * WARMUP_STEPS + [(0, 0.1 * i) for i in range(1, 12)])
    assert clock.measures(1)[0].half_iqr60 == pytest.approx((900 - 300) / 2)


def test_short_runs_are_timed_too_and_no_run_is_not(ticks: Ticks) -> None:
    clock = StepClock(CPU)
    assert clock.measures(1) == []
    run(clock, ticks, [(0, 5), (0, 1)])
    assert clock.measures(1)[0].value == pytest.approx(1000)


def test_latency_leaves_the_first_calls_out(ticks: Ticks) -> None:
    def call(i: int) -> None:
        ticks.now += 10.0 if i < WARMUP_CALLS else 0.001 * (i - WARMUP_CALLS + 1)

    p50, p95 = latency(call, CPU, calls=21)
    assert (p50.metric, p50.value, p50.n) == ("inference_latency_p50_ms", pytest.approx(11), 21)
    assert (p95.metric, p95.value) == ("inference_latency_p95_ms", pytest.approx(20))
