"""A window bias as attention without a bias plus a window pass: errors, then times, on one GPU.

    PYTHONPATH=$PWD python docs/studies/window-pass/measure.py --out runs/window-pass --seconds 95

Sixteen processes (a shape and a group of contenders each) compile the kernels and compare the results with
the float64 reference. Then all contenders that passed take turns. What fails is named and left out. Without a
GPU, small cases are compared with the reference: set TRITON_INTERPRET=1.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import GROUPS, MODES, SHAPES, How, caller, check_small, contenders, reason
from passes import BACKENDS

from operators.bench.shapes import REAL
from operators.bench.timing import _on_gpu
from operators.impl import flash
from operators.testing.cases import make_case

ASKED = {  # window over the best without a bias: forward, forward + backward
    "r50 B1 Q900": (1.26, 1.31),
    "vov B1 Q900": (1.18, 1.24),
    "r50 B2 Q1500": (1.32, 1.59),
    "vov B2 Q1500": (1.25, 1.50),
}
CHECKS, WARM = 0.68, 0.85  # shares of the time at which checks and the first calls must have ended
HEAD = (
    "| bias | implementation | forward, ms (20-80 %) | over the best without | forward + backward, ms "
    "| over the best without | error over budget |\n|---|---|---:|---:|---:|---:|---:|"
)

Key = tuple[str, str, str, str]
"""Shape, mode, bias kind, contender."""
Errors = dict[tuple[str, str, str], float | str]
"""Shape, bias kind, contender -> error over budget, or why there is none."""


class Clock:
    """All contenders' calls, and the times that they took."""

    def __init__(self) -> None:
        self.times: dict[Key, list[float]] = {}
        self.calls: dict[Key, tuple[Callable[[], object], float]] = {}

    def add(self, shape: str, kind: str, how: How) -> None:
        """Run a contender a few times in both modes; one that fails is named and left out."""
        case = make_case(kind, REAL[shape], torch.bfloat16, "cuda")
        for mode in MODES:
            try:
                call = caller(case, how, mode)
                _on_gpu(call, 2, 0.0)
                once = sum(_on_gpu(call, 1, 0.0)[0])
                self.calls[shape, mode, kind, str(how)] = call, min(2 * once, 20.0)
            except Exception as error:  # noqa: BLE001  one that fails must not cost the others
                print(f"{shape} {kind} {how} {mode}: {reason(error)}", flush=True)

    def rounds(self, until: float, most: int) -> int:
        """Let all calls take turns until the time is over; return the number of rounds."""
        for done in range(most):
            for key, (call, ahead) in self.calls.items():
                if time.time() > until:
                    return done
                self.times.setdefault(key, []).append(_on_gpu(call, 1, ahead)[0][0])
        return most


def start_checks(out: Path) -> dict[Path, subprocess.Popen[bytes]]:
    """Start a process for every shape and group; return them by the file of their findings."""
    script, started = Path(__file__).with_name("cases.py").resolve(), {}
    for shape in SHAPES:
        for group in GROUPS:
            file = out / f"{shape} {group}.jsonl"
            words = [sys.executable, str(script), shape, group, str(file)]
            with file.with_suffix(".log").open("w") as log:
                started[file] = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    return started


def compile_flash() -> None:
    """Let flash-attn-4 compile its kernels in this process; it keeps none on disk."""
    if "flash-attn-4" not in flash.installed():
        print("flash-attn-4 is not installed: no rows of flash", flush=True)
        return
    try:
        case = make_case("none", REAL[SHAPES[0]], torch.bfloat16, "cuda")
        for mode in MODES:
            caller(case, "flash", mode)()
        forward, backward = BACKENDS["flash"]
        q, k, v = (case.leaves[name] for name in "qkv")
        out, lse, saved = forward(q, k, v, q.shape[-1] ** -0.5)
        backward(case.upstream, q, k, v, out, lse, saved, q.shape[-1] ** -0.5)
    except Exception as error:  # noqa: BLE001  one that fails must not cost the others
        print(f"flash: {reason(error)}", flush=True)


def end_checks(started: dict[Path, subprocess.Popen[bytes]], until: float) -> Errors:
    """Wait for the checks, and return what they found."""
    found: Errors = {}
    for file, process in started.items():
        try:
            if code := process.wait(timeout=max(0.0, until - time.time())):
                tail = file.with_suffix(".log").read_text(errors="replace")[-600:]
                print(f"{file.stem}: ended with {code}: {tail}", flush=True)
        except subprocess.TimeoutExpired:
            process.kill()
            print(f"{file.stem}: not done in time; what it has not checked is not timed", flush=True)
        for line in file.read_text().splitlines() if file.exists() else ():
            if line.endswith("]"):  # whole: the process was not stopped while it wrote it
                shape, kind, how, used, worst = json.loads(line)
                found[shape, kind, how] = used
                print(f"{shape}, {kind}, {how}: error over budget {used} {worst}", flush=True)
    return found


def table(times: dict[Key, list[float]], errors: Errors) -> str:
    """Return for every shape all medians with spreads, the ratios, and what was asked."""
    lines: list[str] = []
    for shape in SHAPES:
        medians = {key[1:]: statistics.median(values) for key, values in times.items() if key[0] == shape}
        best = {mode: min([m for k, m in medians.items() if k[:2] == (mode, "none")], default=float("nan"))
                for mode in MODES}  # fmt: skip
        lines += [f"\n{shape}", HEAD] if medians else []
        for kind, how in dict.fromkeys(key[1:] for key in medians):
            cells = []
            for mode in MODES:
                values = sorted(times.get((shape, mode, kind, how), [float("nan")]))
                spread = f"{values[len(values) // 5]:.3f}-{values[len(values) - 1 - len(values) // 5]:.3f}"
                middle = statistics.median(values)
                cells += [f"{middle:.3f} ({spread})", f"{middle / best[mode]:.2f}"]
            lines.append(f"| {kind} | {how} | {' | '.join(cells)} | {errors.get((shape, kind, how), '')} |")
        for mode, asked in zip(MODES, ASKED[shape], strict=True):
            over = {k[2]: m / best[mode] for k, m in medians.items() if k[:2] == (mode, "window")}
            if over:
                name, today = min(over, key=lambda how: over[how]), over.get("rects", float("nan"))
                lines.append(f"{mode}: {name} {over[name]:.2f}, rects {today:.2f}, asked {asked}")
    return "\n".join(lines)


def main() -> int:
    """Check, measure, print, and write ``results.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/window-pass"))
    parser.add_argument("--seconds", type=float, default=95.0, help="for all; what is not done is left out")
    parser.add_argument("--rounds", type=int, default=30, help="at most")
    given = parser.parse_args()
    began = time.time()
    if not torch.cuda.is_available():
        return check_small()
    given.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started, clock, errors = start_checks(given.out), Clock(), {}
    try:
        print(torch.cuda.get_device_name(), torch.__version__, flash.installed(), flush=True)
        compile_flash()
        errors = end_checks(started, began + CHECKS * given.seconds)
        print(f"checked after {time.time() - began:.0f} s", flush=True)
        for shape in SHAPES:
            for kind, how in [one for group in GROUPS for one in contenders(group)]:
                used: Any = errors.get((shape, kind, str(how)), "not checked")
                if time.time() < began + WARM * given.seconds and not isinstance(used, str) and used <= 1:
                    clock.add(shape, kind, how)
        done = clock.rounds(began + given.seconds - 4, given.rounds)
        print(f"{done} whole rounds of {len(clock.calls)} calls, {time.time() - began:.0f} s", flush=True)
    finally:
        for process in started.values():
            process.kill()
        print(table(clock.times, errors), flush=True)
        rows = [[*key, *values] for key, values in clock.times.items()]
        found = {"times_ms": rows, "error_over_budget": [[*key, used] for key, used in errors.items()]}
        (given.out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
