"""Table: the runs of a campaign by kind of fault, and a picture of the seconds lost.

python -m tests.chaos.table DIR     # of DIR/runs.csv: table.csv, seconds_lost.png, and the table in Markdown
"""

import csv
import sys
from pathlib import Path
from statistics import median

WORDS = {
    "worker": "a worker is killed",
    "trial_driver": "a trial's driver is killed",
    "study_driver": "the study driver is killed",
    "raylet": "the worker node is killed, another comes",
    "head": "head and GCS are killed",
    "hang": "a worker hangs",
    "oom": "a worker is out of memory",
    "disk": "the disk is full",
    "data": "a file of the data is gone",
    "nan": "a trial diverges",
    "mlflow_pause": "MLflow is away for a while",
    "mlflow_gone": "MLflow is away for ever",
}

COLUMNS = (
    "fault",
    "runs",
    "hit",
    "drawn anew",
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

    lost = [float(run["seconds_lost"]) for run in runs if _has_lost(run)]
    return [
        WORDS.get(kind, kind),
        len(runs),
        sum(run["hit"] == "True" for run in runs),
        total("draws") - len(runs),
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


def _has_lost(run: dict[str, str]) -> bool:
    """Tell whether a run lost time: something was started again, and the trial that was hit went on."""
    again = int(run["restarts"]) + int(run["resumes"])
    return bool(again and run["seconds_lost"])


def markdown(out: Path) -> str:
    """Return ``table.csv`` as Markdown."""
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        head, *lines = list(csv.reader(file))
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def draw(out: Path) -> None:
    """Write ``seconds_lost.png``: a dot a run, kinds from the dearest to the cheapest."""
    import matplotlib.pyplot as plt

    lost: dict[str, list[float]] = {}
    for run in read_runs(out):
        if _has_lost(run):
            lost.setdefault(run["fault"], []).append(float(run["seconds_lost"]))
    kinds = sorted(lost, key=lambda kind: median(lost[kind]))
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(kinds) + 1.2), layout="constrained")
    for place, kind in enumerate(kinds):
        axes.plot(lost[kind], [place] * len(lost[kind]), "o", color="C0", alpha=0.6)
        axes.plot(median(lost[kind]), place, "|", color="black", markersize=16)
    axes.set(yticks=range(len(kinds)), yticklabels=[WORDS[kind] for kind in kinds])
    axes.set_xlim(left=0)
    figure.supxlabel(
        "seconds from the fault to the next new row of the trial that was hit (bar: median)",
        fontsize="medium",
    )
    figure.savefig(out / "seconds_lost.png", dpi=130)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_table(folder)
    draw(folder)
    print(markdown(folder))
