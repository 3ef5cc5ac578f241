"""Triton's front end takes every kernel in every kind; the interpreter also runs code that it refuses."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the kernel is written in Triton")

PROGRAM = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton._C.libtriton import ir
from operators.impl.rects import forward_kernels, key_grad_kernels, query_grad_kernels, tiles

HALF = "Q K V Rest dOut SortedQ SorteddO dK dV".split()
SINGLE = "Out Lse PartLse Parts SortedLse SortedDelta dQ dWeight weight centers".split()
WHOLE = "order sorted_rects tiles lists counts rects codes".split()
POINTERS = {**dict.fromkeys(HALF, "*bf16"), **dict.fromkeys(SINGLE, "*fp32"), **dict.fromkeys(WHOLE, "*i32")}
POINTERS["flags"] = "*i8"
NUMBERS = dict.fromkeys("scale scale_log2 decay limit".split(), "fp32")
VALUES = {"HEAD": 24, "BLOCK_D": 32, "TILE_K": 64, "BLOCK_Q": 64, "PRECISION": "tf32", "SPLITS": 2,
          "KEEP": True, "KEPT": True, "STAGES": 3, "TOUCHED_STAGES": 2, "ROWS": 16, "S": 3, "PADDED_S": 4,
          "N": 16, "CHUNK": 32, "EARLY": True, "WITH_CUT": True}

def check(kernel, kind, online, ones=(), splits=2):
    values = VALUES | {"KIND": kind, "ONLINE": online, "NEED_WEIGHT": kind in (1, 2), "SPLITS": splits}
    values |= dict.fromkeys(ones, 1)  # Triton compiles an integer argument of 1 in
    constants = {n: values[n] for n in kernel.arg_names if n in values}
    types = dict.fromkeys(kernel.arg_names, "i32") | POINTERS | NUMBERS
    types |= dict.fromkeys(constants, "constexpr")
    types = {n: types[n] for n in kernel.arg_names}
    backend = make_backend(GPUTarget("cuda", 90, 32))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({})
    source = ASTSource(kernel, types, constants)
    source.make_ir(GPUTarget("cuda", 90, 32), options, backend.get_codegen_implementation(options),
                   backend.get_module_map(), context)
    print("compiled", kernel.__name__, kind)

for kind in range(4):
    check(forward_kernels.forward_kernel, kind, False)
    check(query_grad_kernels.query_grad_kernel, kind, False)
    check(key_grad_kernels.key_grad_kernel, kind, False)
    check(query_grad_kernels.prepare_kernel, kind, False)
    for kernel in (forward_kernels.forward_kernel, query_grad_kernels.query_grad_kernel,
                   key_grad_kernels.key_grad_kernel):
        check(kernel, kind, False, ("num_keys", "num_tiles", "num_queries", "num_blocks"))
check(forward_kernels.forward_kernel, 1, True)
check(forward_kernels.forward_kernel, 1, False, splits=1)
check(forward_kernels.merge_kernel, 0, False)
for name in "code rank flag list transpose".split():
    check(getattr(tiles, name + "_kernel"), 1, False)
"""


def test_the_compiler_takes_every_kernel():
    # In a process of its own: with the interpreter on, a kernel is no source for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == 4 * 4 + 4 * 3 + 3 + 5
