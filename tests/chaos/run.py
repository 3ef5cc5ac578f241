"""Many runs, each with one fault: a table of what was lost.

    python -m tests.chaos.run --runs 100 --seed 0 --out DIR
    python -m tests.chaos.run --runs 40 --seed 0 --arms 3 --out DIR    # cohorts of three trials

The kinds take turns. A run that is finished is a line of ``DIR/runs.csv``; started again with the same
words, the campaign goes on behind it. ``--place`` keeps data and the unbroken study between campaigns.
"""

import argparse
import csv
import fcntl
import sys
import time
from pathlib import Path

from tests.chaos.check import Result
from tests.chaos.faults import FAULTS
from tests.chaos.stage import stage
from tests.chaos.strike import perform
from tests.chaos.table import write_table

TURN_S = 480
"""How long a shared machine is held at a time."""


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
    parser.add_argument("--arms", type=int, default=1, metavar="N", help="trials of a cohort (%(default)s)")
    parser.add_argument("--until", default="", metavar="HH:MM", help="start no run after this time of today")
    parser.add_argument("--lock", type=Path, help="file to lock, 8 minutes at a time, if others run beside")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = arguments.faults.split(",")
    wanted = [(kinds[i % len(kinds)], arguments.seed + i) for i in range(arguments.runs)]
    done = finished(arguments.out / "runs.csv")
    with _Turn(arguments.lock) as turn, stage(arguments.place, arguments.arms) as ready:
        for number, (fault, seed) in enumerate(wanted, 1):
            if (fault, str(seed)) in done:
                continue
            if arguments.until and time.strftime("%H:%M") >= arguments.until:
                break
            turn.renew()
            result = perform(ready, fault, seed)
            append(arguments.out / "runs.csv", result)
            say(number, arguments.runs, result)
            write_table(arguments.out)
    return 0 if write_table(arguments.out) else 1


class _Turn:
    """Holds a lock file, if there is one, for a few minutes at a time."""

    def __init__(self, lock: Path | None) -> None:
        self._file = lock.open("a") if lock else None

    def __enter__(self) -> "_Turn":
        self._take()
        return self

    def __exit__(self, *info: object) -> None:
        if self._file:
            self._file.close()

    def _take(self) -> None:
        if self._file:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._since = time.monotonic()

    def renew(self) -> None:
        """Let others have their turn, if it was held for long."""
        if self._file and time.monotonic() - self._since > TURN_S:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            time.sleep(1)  # whoever waits gets it
            self._take()


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
        f"{'' if result.hit else 'NOT HIT'} {'' if result.tally.clean else result.tally} {result.odd}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
