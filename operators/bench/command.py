"""``biaswise operators bench``: time every implementation on every bias, at the decoder's real shapes.

An implementation whose result exceeds its error budget (``operators.testing.oracle``) is not timed. For the
others the benchmark measures the time of a forward pass, and of a forward and backward pass with gradients to
q, k, v and the bias's weights; the peak memory beyond inputs and gradients; and with ``--growth`` how both
grow with keys and queries. It writes ``rows.parquet``, ``table.md`` and plots. Run it on a GPU, or with
``--shapes cpu`` on a CPU; ``--shapes mini`` is a smoke test for one.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from operators.bench.options import add_arguments
from operators.bench.report import write_report
from operators.bench.rows import BenchRow, write_rows
from operators.bench.shapes import CPU, MINI, REAL, for_kind, growing
from operators.bench.timing import peak_extra_mib, time_call
from operators.registry import objections
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS
from operators.testing.cases import Case, Sizes, gradients_served, make_case, outputs_and_grads
from operators.testing.oracle import Oracle, make_oracle

SETS = {"real": REAL, "mini": MINI, "cpu": CPU}
"""Shapes that one word names."""

_UNITS = {"latency": "ms", "host": "ms", "peak_extra": "MiB", "error_over_budget": "ratio"}
MODES = {"forward": "none", "forward_backward": "all"}
_GROWTH = (("window", "rects"), ("none", "rects"), ("none", "sdpa_flash"), ("none", "flash"))
_DENSE = (
    "window",
    "sdpa_efficient",
)  # the fused dense implementation that gives the bias a gradient on a GPU


class BenchError(ValueError):
    """The benchmark cannot run with these arguments."""


@dataclass(frozen=True)
class Run:
    """What is the same for all measurements of a benchmark.

    Attributes:
        device, dtype: of q, k and v.
        budget_ms: time per measurement, in ms.
        device_name, versions, commit: see ``BenchRow``.
    """

    device: torch.device
    dtype: torch.dtype
    budget_ms: float
    device_name: str
    versions: str
    commit: str

    def row(self, case: Case, place: tuple[str, str], what: tuple[str, str, str], note: str = "") -> BenchRow:
        """Return a row without a value; place is (suite, shape), what is (implementation, mode, metric)."""
        (suite, shape), (impl, mode, metric) = place, what
        sizes, unit = case.sizes, _UNITS[metric]
        return BenchRow(
            suite=suite,
            shape=shape,
            impl=impl,
            bias=case.kind,
            mode=mode,
            metric=metric,
            unit=unit,
            batch=sizes.batch,
            heads=sizes.heads,
            queries=sizes.queries,
            keys=sizes.grid.num_keys,
            head_size=sizes.head_size,
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device_name,
            versions=self.versions,
            commit=self.commit,
            time=time.time(),
            note=note,
        )


def measure(run: Run, case: Case, impl: str, place: tuple[str, str], mode: str) -> Iterator[BenchRow]:
    """Measure time and memory of one implementation on one case."""
    call = _caller(case, impl, mode)
    timing = time_call(call, run.device, run.budget_ms)
    row = run.row(case, place, (impl, mode, "latency"))
    yield replace(row, value=timing.median_ms, low=timing.low_ms, high=timing.high_ms, n=timing.n)
    yield replace(run.row(case, place, (impl, mode, "host")), value=timing.host_ms, n=timing.n)
    extra = peak_extra_mib(call, run.device)
    if extra is not None:
        yield replace(run.row(case, place, (impl, mode, "peak_extra")), value=extra, n=1)


def _caller(case: Case, impl: str, mode: str) -> Callable[[], object]:
    """Return a function that runs the case once; the leaves are made here, outside the measured time."""
    from operators.api import attention

    grad = mode != "forward"
    leaves = {name: leaf.detach().clone().requires_grad_(grad) for name, leaf in case.leaves.items()}

    def call() -> object:
        for leaf in leaves.values():
            leaf.grad = None
        with torch.set_grad_enabled(grad):
            out = attention(leaves["q"], leaves["k"], leaves["v"], case.bias(leaves.get("weight")), impl=impl)
        if grad:
            torch.autograd.backward(out, case.upstream)
        return out

    return call


def _refusal(case: Case, impl: str, mode: str) -> str:
    """Return why an implementation cannot run a case in a mode; empty if it can."""
    grad = mode != "forward"
    return "; ".join(objections(impl, case.request(grad, grad)))


class _CorrectnessCheck:
    """Compares implementations with the reference on one sample with the same keys and queries."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.known: dict[tuple[str, Sizes], tuple[Case, Oracle]] = {}

    def error(self, kind: str, sizes: Sizes, impl: str, mode: str) -> float:
        """Return the largest error of output and gradients, divided by its budget; above 1 is wrong."""
        # Two heads of one sample, because the float64 reference of the whole batch would not fit in memory.
        reduced = replace(sizes, batch=1, heads=min(2, sizes.heads))
        if (kind, reduced) not in self.known:
            case = make_case(kind, reduced, self.run.dtype, self.run.device)
            self.known = {(kind, reduced): (case, make_oracle(case.leaves, case.bias, case.upstream))}
        case, oracle = self.known[kind, reduced]
        return max(oracle.used(outputs_and_grads(case, impl, grads=MODES[mode])).values())


def bench_shapes(
    run: Run, shapes: dict[str, Sizes], kinds: list[str], impls: list[str]
) -> Iterator[BenchRow]:
    """Check and time every implementation on every bias kind and shape."""
    check = _CorrectnessCheck(run)
    for shape, sizes in shapes.items():
        for kind in kinds:
            case = make_case(kind, for_kind(sizes, kind), run.dtype, run.device)
            for impl in impls:
                if gradients_served(impl, case) is None:
                    continue  # ``biaswise operators list`` prints the reason
                for mode in MODES:
                    yield from _checked(run, check, case, impl, (("shapes", shape), mode))


def _checked(
    run: Run, check: _CorrectnessCheck, case: Case, impl: str, where: tuple[tuple[str, str], str]
) -> Iterator[BenchRow]:
    """Measure an implementation that can run the case and is correct; else yield a row with the reason."""
    place, mode = where
    refusal = _refusal(case, impl, mode)
    if refusal:
        yield run.row(case, place, (impl, mode, "latency"), refusal)
        return
    error = check.error(case.kind, case.sizes, impl, mode)
    yield replace(run.row(case, place, (impl, mode, "error_over_budget")), value=error, n=1)
    if not error <= 1:
        note = f"wrong: error {error:.3g} times its budget, so it is not timed"
        yield run.row(case, place, (impl, mode, "latency"), note)
        return
    try:
        yield from measure(run, case, impl, place, mode)
    except torch.OutOfMemoryError:
        yield run.row(case, place, (impl, mode, "latency"), "out of memory")


def bench_growth(run: Run) -> Iterator[BenchRow]:
    """Measure the time over the number of keys (6k to 400k) and of queries (100 to 4000), and the memory."""
    for suite, sizes in growing():
        yield from _grow(run, sizes, suite, (_DENSE, *_GROWTH[:2]) if suite == "memory" else _GROWTH)


def _grow(run: Run, sizes: Sizes, suite: str, pairs: tuple[tuple[str, str], ...]) -> Iterator[BenchRow]:
    """Measure some implementations at one size, if they have no objection."""
    cases: dict[str, Case] = {}
    for kind, impl in pairs:
        if kind not in cases:
            cases = {kind: make_case(kind, sizes, run.dtype, run.device)}
        case = cases[kind]
        for mode in MODES:
            if not _refusal(case, impl, mode):
                yield from measure(run, case, impl, (suite, str(sizes)), mode)


def run_bench(arguments: argparse.Namespace) -> Iterator[BenchRow]:
    """Run the measurements that the command line asks for.

    Yields:
        One row per number, as soon as it is measured.

    Raises:
        BenchError: unknown shapes, kinds or implementations, or shapes that need a GPU and none is here.
    """
    shapes = _chosen_shapes(arguments.shapes)
    kinds = _chosen(arguments.kinds, BIAS_KINDS, "bias kinds")
    impls = _chosen(arguments.impls, IMPLEMENTATIONS, "implementations")
    gpu = torch.cuda.is_available()
    if not gpu and (arguments.growth or not set(shapes) <= set(MINI | CPU)):
        raise BenchError(
            "no GPU here: the decoder's shapes and --growth need one; `--shapes cpu` runs without"
        )
    device = torch.device("cuda" if gpu else "cpu")
    run = Run(device, torch.bfloat16 if gpu else torch.float32, arguments.budget_ms, *_origin(device))
    yield from bench_shapes(run, shapes, kinds, impls)
    if arguments.growth:
        yield from bench_growth(run)


def _chosen_shapes(text: str) -> dict[str, Sizes]:
    """Return the shapes of a set, or those named, separated by commas."""
    if text in SETS:
        return SETS[text]
    known = REAL | MINI | CPU
    return {name: known[name] for name in _chosen(text, (*SETS, *known), "shapes")}


def _chosen(text: str, known: tuple[str, ...], what: str) -> list[str]:
    """Split names at commas, and refuse unknown ones."""
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchError(f"unknown {what} {', '.join(unknown)}; expected some of {', '.join(known)}")
    return names


def _print(row: BenchRow) -> None:
    """Print the row if it is a time."""
    if row.metric == "latency":
        text = row.note or f"{row.value:.3f} ms"
        print(f"{row.shape:<14} {row.bias:<9} {row.impl:<15} {row.mode:<17} {text}", flush=True)


def _origin(device: torch.device) -> tuple[str, str, str]:
    """Return the name of the device, the versions of the packages and the commit."""
    from operators.impl.flash import installed

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    packages = {"torch": torch.__version__, **installed()}
    versions = ";".join(f"{package}={version}" for package, version in packages.items())
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return name, versions, git.stdout.strip() or os.environ.get("BIASWISE_COMMIT", "unknown")


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark, write its folder, print the table, and return the exit code 0.

    An interrupted run writes the rows that it has measured.

    Raises:
        BenchError: see ``run_bench``.
    """
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[BenchRow] = []
    try:
        for row in run_bench(arguments):
            rows.append(row)
            _print(row)
    finally:
        if rows:
            write_rows(rows, folder / "rows.parquet")
            print(write_report(rows, folder))
    return 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(_parser)
    # Without a handler, SIGTERM would skip ``finally``. The command ``biaswise`` has a handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main(_parser.parse_args()))
