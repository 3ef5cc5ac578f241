"""Many runs, each with one fault: a table of what was lost.

    python -m tests.chaos.run --runs 100 --seed 0 --out DIR

The kinds take turns. A run that is finished is a line of ``DIR/runs.csv``; started again with the same
words, the campaign goes on behind it. ``--place`` keeps data and the unbroken study between campaigns.
"""

import argparse
import csv
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.stage import stage
from tests.chaos.strike import Result, perform
from tests.chaos.table import write_table


def main() -> int:
    """Run what is missing; 1 if a study did not survive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs.csv and table.csv")
    parser.add_argument("--place", type=Path, default=Path("/tmp/biaswise-chaos"), help="(%(default)s)")
    parser.add_argument("--faults", default=",".join(FAULTS), help="kinds, comma-separated (all)")
    parser.add_argument("--until", default="", metavar="HH:MM", help="start no run after this time of today")
    parser.add_argument("--lock", type=Path, help="file to lock during each run, where machines are shared")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = arguments.faults.split(",")
    wanted = [(kinds[i % len(kinds)], arguments.seed + i) for i in range(arguments.runs)]
    done = finished(arguments.out / "runs.csv")
    with stage(arguments.place) as ready:
        for number, (fault, seed) in enumerate(wanted, 1):
            if (fault, str(seed)) in done:
                continue
            if arguments.until and time.strftime("%H:%M") >= arguments.until:
                break
            with _turn(arguments.lock):
                result = perform(ready, fault, seed)
            append(arguments.out / "runs.csv", result)
            say(number, arguments.runs, result)
            write_table(arguments.out)
    return 0 if write_table(arguments.out) else 1


@contextmanager
def _turn(lock: Path | None) -> Iterator[None]:
    """Hold a lock file, if there is one."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finished(path: Path) -> set[tuple[str, str]]:
    """Return kind and seed of the runs in a table."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {(line["fault"], line["seed"]) for line in csv.DictReader(file)}


def append(path: Path, result: Result) -> None:
    """Add a run to the table."""
    line = result.plain()
    fresh = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, line)
        if fresh:
            writer.writeheader()
        writer.writerow(line)


def say(number: int, of: int, result: Result) -> None:
    """Print a run."""
    lost = "" if result.seconds_lost is None else f", next row after {result.seconds_lost:.1f} s"
    print(
        f"{time.strftime('%H:%M:%S')} {number}/{of} {'ok ' if result.well else 'BAD'} "
        f"{result.fault} {result.seed} at {result.moment}: {result.what}; {result.seconds:.0f} s, "
        f"{result.resumes} resumes, {result.tally.restarts} restarts{lost} "
        f"{'' if result.tally.clean else result.tally} {result.odd}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
