"""The table implementation x bias kind holds the implementations' objections; the docs hold the table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from operators.impl import flash
from operators.matrix import cell, main, table
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS

DOCS = Path(__file__).parents[2] / "docs" / "operators.md"


def test_cells_name_the_form_and_what_is_missing():
    assert cell("reference", "window", "cpu") == ("DENSE", [])
    assert cell("lowrank", "global", "cuda") == ("FACTORS", [])
    assert cell("sdpa_cudnn", "window", "cuda") == (
        "DENSE (no bias gradient)",
        ["the cudnn kernel gives no gradient to a bias"],
    )
    assert cell("lowrank", "window", "cuda")[0] == "FACTORS at a rank"
    assert cell("sdpa_cudnn", "none", "cpu") == (
        "-",
        ["PyTorch has no cudnn kernel on the CPU, only math and flash"],
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_table_has_every_implementation_and_reason(device):
    text = table(device)
    rows, reasons = text.split("\n\n")
    assert rows.count("\n") == 1 + len(IMPLEMENTATIONS)
    assert all(f"| `{impl}` |" in rows for impl in IMPLEMENTATIONS)
    assert all(line.count("|") == len(BIAS_KINDS) + 2 for line in rows.splitlines())
    for number in range(1, reasons.count("\n") + 2):
        assert re.search(rf"\[([\d, ]+, )?{number}(, [\d, ]+)?\]", rows)


def test_one_device_may_be_asked_for():
    assert table("cpu") in main("cpu")
    assert main("cpu") in main()
    assert "### cuda" not in main("cpu")


@pytest.mark.skipif(bool(flash.installed()), reason="the docs show a machine without flash-attn")
def test_docs_hold_the_table_of_today():
    bare = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = "from operators.matrix import main; print(main())"
    said = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert said.stdout.strip() in DOCS.read_text(), (
        "put the output of `biaswise operators list` into docs/operators.md"
    )
