"""What a worker writes about its machine while it trains, and how that is read while it grows."""

import json
import threading
import time

import psutil
import pytest
import torch

from pipeline.errors import TrialError
from pipeline.metrics.system_monitor import (
    EVERY_S,
    INTERVAL,
    SystemMonitor,
    SystemSample,
    Worker,
    interval_of_environment,
    read_samples,
)

MACHINE = {
    *("cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"),
    *("disk_usage_percentage", "disk_usage_megabytes", "disk_available_megabytes"),
    *("network_receive_megabytes", "network_transmit_megabytes"),
}
"""The names of MLflow's own monitor."""


def sampled(folders, worker=None, at_least=2, device="cpu"):
    with SystemMonitor(folders, torch.device(device), worker, every_s=0.02):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            files = [path for folder in folders for path in folder.glob("system_*.jsonl")]
            if len(files) == len(folders) and all(len(read_samples(f, 0)) >= at_least for f in files):
                break
            time.sleep(0.01)
    assert "system-monitor" not in [thread.name for thread in threading.enumerate()]
    return [[sample for sample, _ in read_samples(path, 0)] for path in files]


def test_the_machine_is_sampled_under_mlflows_names(tmp_path):
    before = psutil.virtual_memory().total
    (samples,) = sampled([tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["system_0.jsonl"]
    for sample in samples:
        assert set(sample.metrics) == MACHINE
        assert (sample.node, sample.trials) == (0, 1)
        assert sample.time == pytest.approx(time.time(), abs=60)
        assert 0 <= sample.metrics["cpu_utilization_percentage"] <= 100
        assert 0 < sample.metrics["system_memory_usage_megabytes"] < before / 1e6
    times = [sample.time for sample in samples]
    assert times == sorted(times)


def test_mlflow_itself_uses_these_names():
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= set(monitor.aggregate_metrics())
    assert theirs == MACHINE


def test_trials_that_train_together_all_get_the_samples_and_how_many_they_are(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, two, three = sampled(folders)
    assert one == two == three
    assert {sample.trials for sample in one} == {3}


def test_a_worker_that_shares_a_machine_leaves_the_machine_to_the_first(tmp_path):
    with SystemMonitor([tmp_path], torch.device("cpu"), Worker(3, 1, first_of_node=False), every_s=0.01):
        time.sleep(0.2)
    assert not list(tmp_path.iterdir())
    (samples,) = sampled([tmp_path], Worker(2, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["system_2.jsonl"]
    assert {sample.node for sample in samples} == {1}


def test_the_interval_is_that_of_mlflows_variable(monkeypatch):
    assert interval_of_environment() == EVERY_S
    monkeypatch.setenv(INTERVAL, "0.5")
    assert interval_of_environment() == 0.5
    for bad in ("", "soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv(INTERVAL, bad)
        with pytest.raises(TrialError, match=f"^{INTERVAL}={bad}: expected seconds"):
            interval_of_environment()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_of_the_worker_is_sampled_under_its_number_on_the_machine(tmp_path):
    (samples,) = sampled([tmp_path], Worker(gpu=5), device="cuda:0")
    (free, total) = torch.cuda.mem_get_info()
    for name in ("memory_usage_megabytes", "memory_usage_percentage", "utilization_percentage"):
        assert f"gpu_5_{name}" in samples[-1].metrics
    used = samples[-1].metrics["gpu_5_memory_usage_megabytes"]
    assert used == pytest.approx((total - free) / 1e6, rel=0.5)


def test_a_growing_file_is_read_on_from_a_byte_and_broken_lines_are_left_out(tmp_path):
    path = tmp_path / "system_0.jsonl"
    line = json.dumps({"time": 1.0, "node": 0, "trials": 1, "metrics": {"a": 2.0}}) + "\n"
    path.write_text(
        line + "[1]\n" + '{"time": "x", "node": 0, "trials": 1, "metrics": {}}\n' + line + line[:9]
    )
    (first, end), (second, last) = read_samples(path, 0)
    assert first == second == SystemSample(1.0, 0, 1, {"a": 2.0})
    assert end == len(line)
    path.write_text(path.read_text() + line[9:])
    assert [sample for sample, _ in read_samples(path, last)] == [first]
