"""What a worker says of the GPU that it runs on."""

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
