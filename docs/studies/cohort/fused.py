"""Are the decoders of several arms faster as one? Batched calls, two streams, one optimiser step; one GPU.

An arm's part of a step is CUDA graphs that are replayed arm after arm. Here stand-ins for parts of the
decoder (``decoder_parts.py``) run ``in turn``, as today; ``batched``, where one call does what all arms do;
and on ``two streams``, where graphs of two arms are replayed side by side.

- ``rows``: self-attention, norms, feed-forward, projections of the queries;
- ``keys``: projections of keys and values, of every arm's own features;
- ``cross``: the attention over all keys;
- ``optimiser``: clipping of the gradients' norms and fused AdamW, which no graph holds.

Example: ``python docs/studies/cohort/fused.py r50 vov --out runs/cohort/fused.json``; ``tiny --device cpu``
tries the script. It refuses batched results and gradients that are not those in turn.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from decoder_parts import PARTS, SIZES, Call, Sizes, parts_of

WARM = 2


def captured(run: Call, pool: Any) -> Call:
    """Return a replay of a call that a CUDA graph holds; on a CPU the call itself."""
    if not torch.cuda.is_available():
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool, side):
        run()
    return graph.replay


def on_streams(calls: Sequence[Call], streams: Sequence[Any]) -> None:
    """Make calls on streams by turns, and let the current stream wait for all."""
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for i, call in enumerate(calls):
        with torch.cuda.stream(streams[i % len(streams)]):
            call()
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)


def each_of(calls: Sequence[Call]) -> None:
    """Make calls one after another."""
    for call in calls:
        call()


def reserved() -> float:
    """Return GiB that the allocator holds; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() / 2**30


def ways_of(name: str, sizes: Sizes, arms: int, device: str) -> tuple[dict[str, Call], dict[str, float]]:
    """Return the ways to run a part for all arms, and GiB of their graphs' pools."""
    each, every = parts_of(name, sizes, arms, device)
    on_gpu = device == "cuda"
    pools = [torch.cuda.graph_pool_handle() if on_gpu else None for _ in range(3)]
    held, replays, gib = reserved(), [lambda: None] * arms, {}
    for way, chosen in {"in turn": range(0, arms, 2), "second stream": range(1, arms, 2)}.items():
        for i in chosen:
            replays[i] = captured(each[i].run, pools[i % 2])
        gib[way], held = reserved() - held, reserved()
    joint = captured(every.run, pools[2])
    gib["batched"] = reserved() - held
    ways = {"in turn": lambda: each_of(replays), "batched": joint}
    if on_gpu:
        streams = [torch.cuda.Stream() for _ in range(2)]
        ways["two streams"] = lambda: on_streams(replays, streams)
    return ways, gib


def optimiser_ways(sizes: Sizes, arms: int, device: str) -> dict[str, Call]:
    """Return clipping and AdamW of every arm in turn, and of all arms with one optimiser."""
    lists = [
        [
            torch.nn.Parameter(torch.randn(sizes.trained // sizes.tensors, device=device))
            for _ in range(sizes.tensors)
        ]
        for _ in range(arms)
    ]
    flat = [p for one in lists for p in one]
    for p in flat:
        p.grad = torch.randn_like(p)
    single, joint = (
        [torch.optim.AdamW(one, 1e-6, fused=True) for one in lists],
        torch.optim.AdamW(flat, 1e-6, fused=True),
    )

    def in_turn() -> None:
        for one, optimiser in zip(lists, single, strict=True):
            torch.nn.utils.clip_grad_norm_(one, 35.0)
            optimiser.step()

    def batched() -> None:
        norms = torch.stack(torch._foreach_norm([p.grad for p in flat])).view(arms, -1).norm(dim=1)
        for one, factor in zip(lists, (35.0 / (norms + 1e-6)).clamp(max=1.0), strict=True):
            torch._foreach_mul_([p.grad for p in one], factor)
        joint.step()

    return {"in turn": in_turn, "batched": batched}


def times(ways: dict[str, Call], rounds: int, ahead: bool) -> dict[str, dict[str, float]]:
    """Return medians of interleaved rounds, ms: ``gpu`` and ``wall``.

    Args:
        ways: what is timed.
        rounds: how often.
        ahead: let the GPU sleep first, so that ``gpu`` leaves out what the host takes to launch.
    """
    found: dict[str, dict[str, list[float]]] = {way: {"gpu": [], "wall": []} for way in ways}
    order, on_gpu = random.Random(0), torch.cuda.is_available()
    for turn in range(WARM + rounds):
        for way in order.sample(list(ways), len(ways)):
            gpu, wall = timed(ways[way], on_gpu, ahead)
            if turn >= WARM:
                found[way]["gpu"].append(gpu)
                found[way]["wall"].append(wall)
    return {way: {k: statistics.median(v) for k, v in kinds.items()} for way, kinds in found.items()}


def timed(call: Call, on_gpu: bool, ahead: bool) -> tuple[float, float]:
    """Return milliseconds of a call on the GPU, and by the clock until it is done."""
    wall = time.perf_counter()
    if not on_gpu:
        call()
        took = 1e3 * (time.perf_counter() - wall)
        return took, took
    torch.cuda.synchronize()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if ahead:
        torch.cuda._sleep(200_000_000)  # some 100 ms
    wall = time.perf_counter()
    begun.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended), 1e3 * (time.perf_counter() - wall)


def main() -> None:
    """Time every part in every way, and print what an arm would save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", choices=[*SIZES], nargs="+")
    parser.add_argument("--arms", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    summary: dict[str, Any] = {}
    for name in asked.names:
        sizes, rows = SIZES[name], {}
        for part in PARTS:
            ways, gib = ways_of(part, sizes, asked.arms, asked.device)
            rows[part] = {"ms": times(ways, asked.rounds, ahead=False), "gib": gib}
            del ways
        ways = optimiser_ways(sizes, asked.arms, asked.device)
        rows["optimiser"] = {"ms": times(ways, asked.rounds, ahead=True)}
        summary[name] = rows
        for part, row in rows.items():
            turn = row["ms"]["in turn"]["gpu"]
            for way, ms in row["ms"].items():
                saved = (turn - ms["gpu"]) / asked.arms
                share = f"{saved / sizes.own_ms:6.1%} of an arm's {sizes.own_ms} ms"
                print(
                    f"{name} {part:9} {way:11} {ms['gpu']:8.2f} ms, saves {saved:6.2f} an arm: {share}",
                    row.get("gib", ""),
                )
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
