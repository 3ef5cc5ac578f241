"""What a worker says of the GPU that it runs on, and what it imports."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from pipeline.metrics.run_place import label_number
from pipeline.ray_train.worker import gpu_number


@pytest.mark.parametrize(
    ("name", "number"), [("3", 3), ("MIG-41b2", label_number("MIG-41b2"))], ids=["whole", "part"]
)
def test_the_place_of_a_worker_on_a_gpu_is_its_gpu(monkeypatch, name, number):
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": [name]})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert gpu_number() == number


IMPORTS = """
import gc, sys
from pipeline.ray_train.worker import import_for_trials
seen = []
gc.callbacks.append(lambda phase, _: seen.append(phase))
import_for_trials()
gc.callbacks.clear()
assert {"torch", "mmdet3d", "pipeline.training.cohort.lockstep"} <= set(sys.modules)
assert gc.isenabled()
print(len(seen), gc.get_freeze_count() > 100_000)
"""


def test_what_trials_import_is_never_looked_at_by_the_garbage_collector():
    run = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0", "True"]
