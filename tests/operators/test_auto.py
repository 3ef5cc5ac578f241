"""``auto`` takes the first of its table without an objection, and logs which."""

import logging

import pytest
import torch

from operators import Request, Unsupported, attention
from operators.auto import ORDER, ORDER_OF_ONE_SAMPLE, pick
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS
from operators.testing.cases import Sizes, make_case


def test_table_names_every_kind_and_known_implementations_alone():
    assert all(pick(Request(kind=kind)) for kind in BIAS_KINDS)
    for by_kind in (*ORDER.values(), *ORDER_OF_ONE_SAMPLE.values()):
        assert set(by_kind) <= set(BIAS_KINDS)
        assert all(impl in IMPLEMENTATIONS for order in by_kind.values() for impl in order)


def test_says_which_it_picked(caplog):
    with caplog.at_level(logging.INFO, logger="operators.auto"):
        assert pick(Request(kind="window", bias_grad=True)) == "gathered"
    assert "auto picks gathered for window bias on cpu" in caplog.text


def test_an_objection_takes_one_out():
    assert pick(Request(kind="window", dtype="bfloat16")) == "sdpa_flash"


def test_one_sample_without_a_bias_has_an_order_of_its_own(monkeypatch):
    monkeypatch.setattr("operators.registry.objections", lambda impl, request: [])
    assert pick(Request(device="cuda", dtype="bfloat16")) == "rects"
    assert pick(Request(device="cuda", dtype="bfloat16", batch=2)) == "flash"


def test_lists_all_reasons_where_nothing_serves():
    with pytest.raises(Unsupported, match=r"auto finds nothing for .*; sdpa_math: has no attention dropout"):
        pick(Request(kind="window", dropout=0.5))


def test_attention_takes_auto():
    case = make_case("global", Sizes(1, 2, 5, 16, bev=(3, 3), cameras=(1, 2, 2)), torch.float32)
    q, k, v = (case.leaves[n] for n in "qkv")
    bias = case.bias(case.leaves["weight"])
    assert torch.equal(attention(q, k, v, bias, impl="auto"), attention(q, k, v, bias, impl="lowrank"))


def test_a_refusal_names_what_works_here():
    case = make_case("window", Sizes(1, 2, 3, 8, bev=(4, 4), cameras=(1, 2, 2)), torch.float32)
    q, k, v = (case.leaves[name] for name in ("q", "k", "v"))
    bias = case.bias(case.leaves["weight"].requires_grad_())
    for refused in ("rects", "sdpa_flash", "flash"):
        with pytest.raises(Unsupported, match=r"; (.*) can$") as caught:
            attention(q, k, v, bias, impl=refused)
        named = str(caught.value).removesuffix(" can").rpartition("; ")[2].split(", ")
        assert named == ["gathered", "sdpa_math", "reference"]
        for impl in named:
            attention(q, k, v, bias, impl=impl)
    with pytest.raises(Unsupported, match=r"a rank goes with lowrank; lowrank can$"):
        attention(q, k, v, bias, impl="sdpa_math", rank=3)
    with pytest.raises(Unsupported, match=r"no implementation here can$"):
        attention(q.double(), k.double(), v.double(), case.bias(None), impl="rects", rank=3)
