"""What every implementation refuses, sentence by sentence, on devices this machine need not have."""

from dataclasses import replace

import pytest
import torch

from operators import Request, objections
from operators.impl import flash, flex
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, Form

CUDA = Request(device="cuda", dtype="bfloat16", qkv_grad=True)
CPU = Request(qkv_grad=True)


@pytest.fixture
def with_flash(monkeypatch):
    monkeypatch.setattr(flash, "installed", lambda: {"flash-attn-4": "4.0.0"})


def test_reference_and_math_take_every_exact_bias():
    for kind in BIAS_KINDS:
        for device in ("cpu", "cuda"):
            request = Request(
                kind=kind, device=device, qkv_grad=True, bias_grad=kind not in ("none", "local")
            )
            assert objections("reference", request) == []
            assert objections("sdpa_math", request) == []


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nobody_drops_attention_weights(impl):
    assert "has no attention dropout (CMT trains without), got dropout=0.1" in objections(
        impl, replace(CUDA, dropout=0.1)
    )


@pytest.mark.parametrize("impl", [i for i in IMPLEMENTATIONS if i != "lowrank"])
def test_only_lowrank_takes_a_rank(impl):
    said = objections(impl, replace(CUDA, kind="window", rank=8))
    assert "computes the exact bias, got rank=8; a rank goes with lowrank" in said


SENTENCES = [
    ("sdpa_flash", replace(CUDA, kind="window"), "the flash kernel takes no bias on a GPU"),
    (
        "sdpa_flash",
        replace(CPU, kind="window", bias_grad=True),
        "the flash kernel gives no gradient to a bias",
    ),
    (
        "sdpa_flash",
        replace(CUDA, dtype="float32"),
        "the flash kernel computes in float16 or bfloat16, got float32",
    ),
    ("sdpa_flash", replace(CUDA, head_size=20), "the flash kernel takes head sizes 8, 16, ... 256, got 20"),
    ("sdpa_cudnn", CPU, "PyTorch has no cudnn kernel on the CPU, only math and flash"),
    (
        "sdpa_cudnn",
        replace(CUDA, kind="window", bias_grad=True),
        "the cudnn kernel gives no gradient to a bias",
    ),
    ("sdpa_cudnn", replace(CUDA, head_size=136), "the cudnn kernel takes head sizes 8, 16, ... 128, got 136"),
    ("sdpa_cudnn", replace(CUDA, keys=1), "the cudnn kernel takes 2 keys or more, got 1"),
    (
        "sdpa_cudnn",
        replace(CUDA, deterministic=True),
        "the cudnn kernel is not deterministic, and torch.use_deterministic_algorithms(True) is on",
    ),
    (
        "rects",
        replace(CUDA, keys=2**27),
        "addresses 2^31 elements of a head's keys, got 134217728 keys of 32",
    ),
    ("sdpa_efficient", CPU, "PyTorch has no efficient kernel on the CPU, only math and flash"),
    (
        "sdpa_efficient",
        replace(CUDA, dtype="float64"),
        "the efficient kernel computes in float16 or bfloat16 or float32, got float64",
    ),
    ("lowrank", CUDA, "takes FACTORS, the none bias has NONE"),
    (
        "lowrank",
        replace(CUDA, kind="window"),
        "takes FACTORS, the window bias has DENSE, RECTS, SCORE_MOD; name a rank to approximate it",
    ),
    ("lowrank", replace(CUDA, kind="local"), "takes FACTORS, the local bias has DENSE, RECTS, SCORE_MOD"),
    (
        "lowrank",
        replace(CUDA, kind="global", rank=1),
        "the global bias has rank 2, exactly and cheaply; got rank=1",
    ),
    (
        "lowrank",
        replace(CUDA, kind="window", rank=250),
        "the flash kernel takes head sizes up to 256, got 32 + rank 250",
    ),
    (
        "lowrank",
        replace(CUDA, kind="window", rank=0),
        "expected a rank between 1 and the 900 queries, got 0",
    ),
    (
        "lowrank",
        replace(CUDA, kind="global", dtype="float32"),
        "the flash kernel computes in float16 or bfloat16, got float32",
    ),
    ("flash", CPU, "flash-attn runs on a GPU, got cpu"),
    ("flash", replace(CUDA, kind="window"), "takes NONE, the window bias has DENSE, RECTS, SCORE_MOD"),
    ("flash", replace(CUDA, dtype="float32"), "flash-attn computes in float16 or bfloat16, got float32"),
    ("flash", replace(CUDA, head_size=12), "flash-attn takes head sizes 8, 16, ... 256, got 12"),
    ("flex", CPU, "FlexAttention is used on a GPU only (on a CPU its results were wrong), got cpu"),
    (
        "flex",
        replace(CUDA, kind="gaussian"),
        "FlexAttention's backward of the gaussian bias does not fit a GPU's shared memory",
    ),
    (
        "flex",
        replace(CUDA, kind="dense", head_size=128),
        "FlexAttention's backward of a dense bias does not fit a GPU's shared memory at head sizes over 64, "
        "got 128",
    ),
    ("flex", replace(CUDA, head_size=8), "FlexAttention takes head sizes from 16 on, got 8"),
    (
        "flex",
        replace(CUDA, dtype="float64"),
        "FlexAttention computes in float16, bfloat16, float32, got float64",
    ),
    ("rects", replace(CUDA, kind="dense"), "takes NONE or RECTS, the dense bias has DENSE, SCORE_MOD"),
]


@pytest.mark.parametrize(
    ("impl", "request_", "sentence"), SENTENCES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_says_why_not(impl, request_, sentence, with_flash):
    assert sentence in objections(impl, request_)


def test_flash_says_what_to_install(monkeypatch):
    monkeypatch.setattr(flash, "installed", dict)
    assert objections("flash", CUDA) == [
        "neither flash-attn-4 nor flash-attn is installed; pip install 'biaswise[flash]'"
    ]


def test_what_a_gpu_takes_is_not_refused(with_flash):
    for impl in ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "flash", "flex"):
        assert objections(impl, CUDA) == []
    trained = replace(CUDA, kind="window", bias_grad=True)
    for impl in ("sdpa_efficient", "flex"):
        assert objections(impl, trained) == []
    assert objections("sdpa_cudnn", replace(CUDA, kind="window")) == []
    assert objections("lowrank", replace(CUDA, kind="global", bias_grad=True)) == []
    assert objections("lowrank", replace(CUDA, kind="window", rank=16, bias_grad=True)) == []


def test_a_named_rank_adds_approximate_factors():
    assert Form.FACTORS not in Request(kind="window").forms
    assert Form.FACTORS in Request(kind="window", rank=4).forms
    assert Form.FACTORS not in Request(kind="local", rank=4).forms


def test_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="unknown bias kind 'windows'; expected one of none, global"):
        Request(kind="windows")


def test_flex_fails_where_it_would_run_uncompiled():
    q = torch.randn(1, 1, 4, 16)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(RuntimeError, match="would run its eager form"),
    ):
        flex.forward(q, q, q, scale=0.25)
