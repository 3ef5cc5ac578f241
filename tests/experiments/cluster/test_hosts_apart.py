"""A study on hosts that share no disk with the driver or each other: all goes through a bucket."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.recipes.mini import smoke
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder
from experiments.study.preflight.datasets import make_datasets
from pipeline.runtime.event_log import starts_of
from pipeline.storage.files import writer_lock
from tests.experiments.cluster.hosted import PATIENCE_S, numbers, redone, settings_of
from tests.experiments.cluster.hosts import Host, made_hosts, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(seconds=200),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

BUCKET, S3_PORT = "kept", 9000
EVERY = 10
"""Steps between checkpoints."""

PROGRAM = f"""
import os, pickle, sys
from pathlib import Path
from urllib.parse import urlsplit
from pyarrow import fs
from rich.console import Console
from experiments.study.run_study import RunOptions, run_study

if __name__ == "__main__":
    recipe, runs, storage = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), sys.argv[3]
    if storage:
        server = urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
        store = fs.S3FileSystem(allow_bucket_creation=True, scheme="http", endpoint_override=server)
        store.create_dir("{BUCKET}")
    options = RunOptions(runs, 1, tracking=False, storage=storage)
    sys.exit(not run_study(recipe, options, Console(width=200)).complete)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Two trials of two ranks."""
    world = replace(smoke().datasets[0], root=str(tmp_path / "world"))
    make_datasets((world,), Console(quiet=True))
    settings = settings_of(tmp_path / "world", workers=2, steps=60, every=EVERY)
    trials = tuple(replace(settings, plan=trial.plan, study=trial.study) for trial in smoke().trials)
    return replace(smoke(), trials=trials, datasets=(world,))


def up(hosts: list[Host], logs: Path) -> tuple[Host, list[Host]]:
    """Start a head with an S3 server beside it, and nodes with one CPU each."""
    head, *others = hosts
    for host in hosts:
        host.environment |= {
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{head.address}:{S3_PORT}",
        }
    server = [sys.executable, "-m", "moto.server", "-H", head.address, "-p", str(S3_PORT)]
    head.start(server, logs / "s3.log")
    head.join(head, logs / "head.log", "--num-cpus=0", '--resources={"tune_driver": 1}')
    for i, host in enumerate(others):
        host.join(head, logs / f"{i}.log", "--num-cpus=1")
    return head, others


class Study:
    """A study under way on the head.

    Args:
        head: where its driver runs.
        place: of its folder, on the driver's disk.
        storage: URI; empty: none.
    """

    def __init__(self, head: Host, place: Path, storage: str) -> None:
        self.log = place.with_suffix(".log")
        files = [str(place.with_name(name)) for name in ("program.py", "recipe")]
        self.driver = head.drive([sys.executable, *files, str(place), storage], self.log)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.driver.poll() is None, f"{what}: the study ended\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()}"
            time.sleep(0.1)

    def end(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.driver.wait(PATIENCE_S)
        assert self.driver.poll() == 0, self.log.read_text()


def trained(trial: Path) -> int:
    """How many steps of a trial are in the rows of one disk."""
    rows = trial / "rows.jsonl"
    return rows.read_text().count('"metric": "loss"') if rows.exists() else 0


def test_a_trial_loses_its_host_and_goes_on_from_the_bucket_on_another(recipe, tmp_path):
    (tmp_path / "recipe").write_bytes(pickle.dumps(recipe))
    (tmp_path / "program.py").write_text(PROGRAM)
    runs, names = tmp_path / "runs", list(recipe.named_trials())
    runs.mkdir()
    with made_hosts(3) as hosts:
        trial = {}  # host -> folder of the first trial on its disk
        for host in hosts[1:]:
            disk = tmp_path / f"disk-{host.address}"
            disk.mkdir()
            host.own[runs] = disk
            trial[host.address] = disk / recipe.name / "trials" / names[0]
        head, others = up(hosts, tmp_path)
        Study(head, tmp_path / "shared", "").end()

        # two of three hosts train; the one of rank 0 goes silent, and with it the only disk with checkpoints
        study = Study(head, runs, f"s3://{BUCKET}/studies")
        study.wait(lambda: max(map(trained, trial.values())) > EVERY * 2, "it trains")
        lost = next(host for host in others if writer_lock(trial[host.address]).exists())
        begun = time.monotonic()
        lost.unplug()
        left = [trial[host.address] for host in others if host is not lost]
        study.wait(lambda: any(map(trained, left)), "it fetches what was measured")
        there = max(map(trained, left))
        print(f"cut off after step {trained(trial[lost.address])}, rows up to step {there} fetched")
        study.wait(lambda: max(map(trained, left)) > there, "it trains on")
        print(f"trains on after {time.monotonic() - begun:.0f} s")
        study.end()
    folder, unbroken = StudyFolder(runs / recipe.name), StudyFolder(tmp_path / "shared" / recipe.name)
    for name in names:
        assert folder.is_complete(name)
        assert not (folder.trial(name) / "checkpoints").exists(), "they are on other disks, and in the bucket"
        assert not writer_lock(folder.trial(name)).exists(), "no worker has been on the driver's disk"
        assert numbers(folder.trial(name)) == numbers(unbroken.trial(name))
    starts = [event.step for event in starts_of(folder.trial(names[0]))]
    print(f"started from steps {starts}, steps trained again: {redone(folder.trial(names[0]))}")
    assert len(starts) == 2
    assert starts[1] >= EVERY
