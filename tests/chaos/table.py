"""Table: the runs of a campaign by kind of fault, and a picture of the seconds lost."""

import csv
from pathlib import Path
from statistics import median

COLUMNS = (
    "fault",
    "runs",
    "hit",
    "rows lost",
    "rows doubled",
    "numbers changed",
    "verdicts changed",
    "from the start again",
    "resumes",
    "restarts",
    "seconds lost, median",
    "seconds lost, most",
    "not well",
)


def write_table(out: Path) -> bool:
    """Read ``runs.csv``, write ``table.csv``; tell whether every study survived."""
    runs = read_runs(out)
    lines = [_line(kind, [run for run in runs if run["fault"] == kind]) for kind in _kinds(runs)]
    with (out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*lines, _line("all", runs)] if runs else [])
    return all(run["well"] == "True" for run in runs)


def read_runs(out: Path) -> list[dict[str, str]]:
    """Return the runs, a dict of texts each."""
    path = out / "runs.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _kinds(runs: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(run["fault"] for run in runs))


def _line(kind: str, runs: list[dict[str, str]]) -> list[object]:
    def total(column: str) -> int:
        return sum(int(run[column]) for run in runs)

    lost = [float(run["seconds_lost"]) for run in runs if run["seconds_lost"]]
    return [
        kind,
        len(runs),
        sum(was_hit(run) for run in runs),
        total("lost"),
        total("doubled"),
        total("changed"),
        total("verdicts"),
        total("from_start"),
        total("resumes"),
        total("restarts"),
        f"{median(lost):.1f}" if lost else "",
        f"{max(lost):.1f}" if lost else "",
        sum(run["well"] != "True" for run in runs),
    ]


def was_hit(run: dict[str, str]) -> bool:
    """Tell whether the fault struck anything: a trial may have ended before its moment came."""
    return not run["what"].startswith(("came too late", "hit nothing"))
