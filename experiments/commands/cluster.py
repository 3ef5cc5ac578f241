"""``biaswise cluster``: check cluster files; turn a spot machine's notice into a drain."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console


def check(arguments: Namespace) -> int:
    """Check cluster files; 1 if something is wrong."""
    from experiments.cluster.check import check_cluster

    console, wrong = Console(), 0
    for name in arguments.file or ("cluster.yaml", "ray-job.yaml"):
        found = check_cluster(Path(name))
        wrong += len(found)
        for sentence in found:
            console.print(f"{name}: {sentence}", markup=False, highlight=False, soft_wrap=True)
        if not found:
            console.print(f"{name}: nothing wrong", markup=False, highlight=False)
    return 1 if wrong else 0


def watch(arguments: Namespace) -> int:
    """Wait for the cloud's notice and drain this machine."""
    from experiments.cluster.preemption_watch import watch as wait

    return wait(arguments.address, arguments.node_id, lambda text: print(text, flush=True))
