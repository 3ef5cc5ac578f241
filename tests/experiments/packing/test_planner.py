"""Which packing is picked from which measurements, and one real probe."""

import json
from dataclasses import replace

import pytest

from experiments.packing.planner import (
    Candidate,
    Machine,
    PackingPlan,
    TrialLoad,
    choose,
    cohorts_to_measure,
    grown_gib,
    sizes_to_measure,
)
from experiments.packing.probe import probe
from experiments.recipes.mini import smoke
from experiments.storage.study_folder import StudyError
from tests.smallest import SMALLEST

LOAD = TrialLoad(steps=100, chunks=10)
H200 = Machine("NVIDIA H200", gpus=1, cores=16, gpu_gib=140.0, host_gib=128.0)
CPU = Machine("cpu", gpus=0, cores=2, gpu_gib=0.0, host_gib=8.0)


def candidate(
    concurrent: int, step_s: float, gpu_gib: float = 1.0, host_gib: float = 2.0, arms: int = 1
) -> Candidate:
    return Candidate(concurrent, 1, 0.0, step_s, 0.0, concurrent * gpu_gib, concurrent * host_gib, arms)


def picked(candidates: list[Candidate], machine: Machine = H200) -> PackingPlan:
    return choose(candidates, LOAD, machine)


def test_the_most_trials_per_hour_win():
    packing = picked([candidate(1, 1.0), candidate(2, 1.1), candidate(4, 3.0)])
    assert (packing.concurrent, packing.gpu_share, packing.threads) == (2, 0.5, 0)


def test_a_fuller_gpu_must_earn_its_place():
    assert picked([candidate(1, 1.0), candidate(2, 1.96)]).concurrent == 1
    assert picked([candidate(1, 1.0), candidate(2, 1.90)]).concurrent == 2


def test_what_does_not_fit_is_left_out_and_said():
    sizes = [candidate(1, 1.0, gpu_gib=40), candidate(2, 1.0, gpu_gib=40), candidate(4, 1.0, gpu_gib=40)]
    packing = picked(sizes)
    assert packing.concurrent == 2
    assert "4 at once 144.0 (does not fit into memory)" in packing.reason
    assert "They take 80.0 of 140 GiB." in packing.reason
    assert picked([candidate(1, 1.0), candidate(2, 1.0, host_gib=60)]).concurrent == 1


def test_a_cohort_wins_by_the_trials_that_it_trains_in_a_step():
    """Trunk 0.6 s, own part 0.4 s: a cohort of 8 takes 3.8 s for what eight trials in turn take 8 s."""
    sizes = [candidate(1, 1.0), candidate(1, 2.2, arms=4), candidate(1, 3.8, arms=8), candidate(2, 1.3)]
    packing = picked(sizes)
    assert (packing.concurrent, packing.arms_per_worker, packing.gpu_share) == (1, 8, 1.0)
    assert packing.reason.startswith(
        "a cohort of 8 on NVIDIA H200: 75.8 trials an hour, against 1 alone 36.0; a cohort of 4 65.5; "
        "2 at once 55.4 (by the probe)."
    )


def test_cohorts_beside_each_other_win_where_the_gpu_has_room():
    packing = picked([candidate(1, 3.8, arms=8), candidate(2, 1.3), candidate(2, 4.2, gpu_gib=20, arms=8)])
    assert (packing.concurrent, packing.arms_per_worker, packing.gpu_share) == (2, 8, 0.5)
    assert packing.reason.startswith("2 cohorts of 8 at once on NVIDIA H200: 137.1 trials an hour")
    assert picked([candidate(1, 3.8, arms=8), candidate(2, 7.4, arms=8)]).concurrent == 1, (
        "3 % are not enough"
    )


def test_cohorts_grow_by_doubling_up_to_all_arms():
    assert cohorts_to_measure(1) == [1]
    assert cohorts_to_measure(8) == [1, 2, 4, 8]
    assert cohorts_to_measure(12) == [1, 2, 4, 8, 12]


def test_memory_of_a_larger_cohort_is_trunk_and_own_parts():
    assert grown_gib([1], [10.0], 2) == 10.0  # nothing is known of a second trial's part
    assert grown_gib([1, 2, 4], [10.0, 12.0, 16.0], 8) == 24.0
    assert grown_gib([1, 2], [10.0, 9.9], 4) == 9.9


def test_shares_of_three_fit_on_a_gpu():
    assert 3 * picked([candidate(1, 1.0), candidate(3, 1.0)]).gpu_share <= 1


def test_every_gpu_gets_as_many():
    assert picked([candidate(2, 1.0)], replace(H200, gpus=4)).concurrent == 8


def test_start_and_evaluation_count():
    quick_steps = Candidate(2, 1, start_s=500.0, step_s=0.5, chunk_s=50.0, gpu_gib=1.0, host_gib=1.0)
    assert quick_steps.trials_per_hour(LOAD) == pytest.approx(3600 * 2 / (500 + 50 + 500))


def test_on_a_cpu_trials_and_threads_share_the_cores():
    assert sizes_to_measure(CPU, most=16) == [(1, 2), (2, 1)]
    assert sizes_to_measure(replace(CPU, cores=16), most=6) == [(1, 16), (2, 8), (4, 4)]
    assert sizes_to_measure(H200, most=6) == [(1, 1), (2, 1), (4, 1)]
    packing = picked([replace(candidate(1, 1.0), threads=2), candidate(2, 1.5)], CPU)
    assert (packing.concurrent, packing.threads) == (2, 1)
    assert packing.reason == (
        "2 at once with 1 thread on 2 CPU cores: 48.0 trials an hour, against 1 alone with 2 threads 36.0 "
        "(by the probe)."
    )


def test_a_packing_survives_json():
    packing = picked([candidate(1, 1.0), candidate(2, 1.1)])
    assert PackingPlan.from_dict(json.loads(json.dumps(packing.to_dict()))) == packing


@pytest.fixture
def settings(smoke_world):
    base = smoke().trials[1]
    data = replace(base.data, train=(smoke_world.root,), val=smoke_world.root)
    return replace(base, data=data, overrides=SMALLEST)


@pytest.mark.slow(seconds=40)
def test_a_real_probe_measures_cohorts_and_workers_and_cohorts_side_by_side(settings):
    packing = probe(settings, most=4, most_arms=2, seconds=0.5)
    assert packing.machine is not None
    shapes = [(one.concurrent, one.arms) for one in packing.candidates]
    assert shapes[:2] == [(1, 1), (1, 2)]
    if packing.machine.cores > 1:
        assert (2, 1) in shapes
    assert (packing.concurrent, packing.arms_per_worker) in shapes
    for one in packing.candidates:
        assert min(one.start_s, one.step_s, one.chunk_s, one.host_gib) > 0
        assert one.gpu_gib == 0


def test_a_trial_that_cannot_run_is_told_by_the_probe(settings):
    with pytest.raises(StudyError, match=r"a trial cannot run: TrialError: .*expected 1 or more"):
        probe(replace(settings, train=replace(settings.train, batch_size=0)), most=2)
