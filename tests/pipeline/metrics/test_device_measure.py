"""Many values come to the host in their order, with their names."""

import torch

from pipeline.metrics.device_measure import DeviceMeasure, Transfer
from pipeline.metrics.recorder import Measure


def test_values_keep_their_names_units_and_sites() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    values = [
        DeviceMeasure("loss", "", weight * 3),
        DeviceMeasure("bias_scale", "logits", torch.tensor(0.1), "decoder.0.cross"),
    ]
    read = Transfer(values).read()
    assert [(m.metric, m.unit, m.site) for m in read] == [
        ("loss", "", ""),
        ("bias_scale", "logits", "decoder.0.cross"),
    ]
    assert isinstance(read[0], Measure)
    assert [m.value for m in read] == [6.0, torch.tensor(0.1).item()]
