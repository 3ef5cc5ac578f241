"""Kernels per site: forward and backward of the right site, and of nothing else."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.detector.transformer.site_attention import SiteAttention
from pipeline.metrics import kernels
from pipeline.metrics.kernels import kernels_per_site


def test_each_site_lists_what_ran_in_it_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LISTED", 1000)
    outside = torch.nn.Linear(16, 16)
    x = torch.randn(2, 4, 32, 16)

    def step() -> None:
        y = outside(x)
        with record_function("site:a.self"), sdpa_kernel(SDPBackend.MATH):
            y = F.scaled_dot_product_attention(y, y, y)
        y = torch.tanh(outside(y))
        with record_function("site:b.cross"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            y = F.scaled_dot_product_attention(y, y, y)
        torch.sigmoid(y).sum().backward()

    rows = kernels_per_site(step, cuda=False)
    names = {site: {r.kernel for r in rows if r.site == site} for site in ("a.self", "b.cross")}
    assert {row.site for row in rows} == {"a.self", "b.cross"}
    assert "aten::_scaled_dot_product_attention_math" in names["a.self"]
    assert "aten::_softmax_backward_data" in names["a.self"]
    flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert {flash, f"{flash}_backward"} <= names["b.cross"]
    assert flash not in names["a.self"]
    for foreign in ("tanh", "tanh_backward", "sigmoid", "sigmoid_backward", "addmm"):
        assert f"aten::{foreign}" not in names["a.self"] | names["b.cross"]
    assert all(row.unit == "ms" and row.value > 0 for row in rows)


def test_no_site_gives_no_row() -> None:
    assert kernels_per_site(lambda: torch.randn(3).sum(), cuda=False) == []


def test_what_the_backward_pass_computes_again_counts_once() -> None:
    site = SiteAttention(16, 2, "aqr.0.cross")
    site.recompute = True
    x = torch.randn(1, 5, 16, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        site(x, torch.randn(1, 7, 16)).sum().backward()
    events = list(seen.events() or [])
    products = [e for _, e in kernels._events_of_sites(events) if e.name == "aten::bmm"]
    assert len(products) == len({id(e) for e in products})
    assert (
        len(products) == sum(e.name == "aten::bmm" for e in events) == 8
    )  # two, again two, and their four gradients
