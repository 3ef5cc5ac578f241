"""Strike: one run of the study, in which one thing happens to it."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.runtime.event_log import starts_of
from pipeline.storage.checkpoint import newest_checkpoint
from tests.chaos.check import Result, Tally, tally
from tests.chaos.cluster import CPUS, ROOT, shim
from tests.chaos.faults import FAULTS, LONELY, QUIET, TRACKED, Scene
from tests.chaos.server import Server
from tests.chaos.stage import Stage
from tests.chaos.study import NAME, STEPS, half_done, poison

LONGEST_S = 300
"""A run takes half a minute."""

DEAF_S = 60
"""A study driver whose head is gone is given so long to notice; it takes 10 s."""

GIVEN_BACK_S = 30
"""Within this time after the end of a study its workers have ended; it takes a second."""

PATIENCE_S = 12
"""Of the watchdog: a step takes a tenth of a second."""

ALONE = 0.75
"""Share of the runs in which the victim's worker is the only one; in the others there is a second one."""

DRAWS = 3
"""How often a moment is drawn until the fault hits something."""

DISK_BYTES = 400 * 2**20
"""Of the small disk: a study holds 100 MB."""


def perform(stage: Stage, fault: str, seed: int) -> Result:
    """Run the study and let one thing happen to it; again at another moment, if it hit nothing."""
    for draw in range(1, DRAWS + 1):
        with _runs_folder(stage, fault, seed) as runs:
            found = _Run(stage, fault, seed, draw, runs).result()
            if not found.well:  # to be looked into
                shutil.copytree(runs, stage.place / f"bad-{fault}-{seed}", dirs_exist_ok=True)
        if found.hit or not found.well:
            break
    return found


def mount_small_disk(place: Path) -> None:
    """Mount one; only root may, and not everywhere."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], check=True)


@contextmanager
def _runs_folder(stage: Stage, fault: str, seed: int) -> Iterator[Path]:
    """Make the folder of a run; for a full disk on a small disk of its own."""
    runs = stage.place / f"{fault}-{seed}"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir()
    if fault != "disk":
        yield runs
        shutil.rmtree(runs, ignore_errors=True)
        return
    mount_small_disk(runs)
    try:
        yield runs
    finally:
        subprocess.run(["umount", "-l", str(runs)], check=True)
        runs.rmdir()


class _Run:
    """One run."""

    def __init__(self, stage: Stage, fault: str, seed: int, draw: int, runs: Path) -> None:
        self.stage, self.fault, self.seed, self.draw, self.runs = stage, fault, seed, draw, runs
        self.rng = random.Random(f"{fault}/{seed}/{draw}")
        self.recipe = stage.recipe()
        self.unbroken = stage.unbroken()
        self.log = stage.place / "logs" / f"{fault}-{seed}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.log.write_text("")
        drawn = [name for name, settings in self.recipe.named_trials().items() if settings.seed == 1]
        self.rng.shuffle(drawn)
        self.victim = drawn[0]
        self.alone = fault in LONELY or self.rng.random() < ALONE
        under_way = drawn[: stage.arms if self.alone else 2 * stage.arms]
        self.folder = half_done(self.unbroken, self.recipe, runs, under_way)
        if fault == "nan":
            poison(self.folder.trial(self.victim), self.unbroken.trial(self.victim))
        self.target = 0 if fault == "nan" else self.rng.randint(0, STEPS + 1)
        self.wait_s = self.rng.uniform(0, 3 if self.target in (0, STEPS + 1) else 0.5)
        self.begun = time.monotonic()
        self.resumes = 0
        self.codes: list[int] = []
        self.struck_at: float | None = None
        self.rows_then = self.starts_then = 0
        self.recovered_s: float | None = None
        self.checkpoints: dict[str, int] = {}
        self.what = "came too late"

    def result(self) -> Result:
        """Start, strike, resume as often as need be, compare."""
        mlflow = Server(self.stage.scratch, self.runs) if self.fault in TRACKED else None
        try:
            if mlflow:
                mlflow.start()
            self._play(mlflow)
            odd = self._oddities(mlflow)
        finally:
            if mlflow:
                mlflow.kill()
        ends_by_design = self.fault == "nan"
        names = [name for name in self.recipe.named_trials() if not (ends_by_design and name == self.victim)]
        found = tally(self.folder, self.unbroken, names, self.checkpoints, judged=not ends_by_design)
        return Result(
            self.fault,
            self.seed,
            self.what,
            self._hit(found),
            self.draw,
            f"step {self.target}" if self.target else "start",
            self.resumes,
            None if self.fault == "nan" else self.recovered_s,
            round(time.monotonic() - self.begun, 1),
            os.getloadavg()[0],
            found,
            odd,
        )

    def _play(self, mlflow: Server | None) -> None:
        driver = self._start("run")
        scene = Scene(
            self.rng,
            self.stage.cluster,
            self.stage.nursery,
            driver,
            self.folder.trial(self.victim),
            self.alone,
            self.folder.path,
            self.stage.world,
            mlflow,
        )
        try:
            self._await_moment(driver)
            self._strike(scene)
            self._see_through(scene)
        finally:
            scene.heal()

    def _see_through(self, scene: Scene) -> None:
        """Wait for the end; resume what did not end well."""
        while True:
            self.codes.append(self._await_end(scene))
            scene.heal()
            if self.codes[-1] == 0 or self.fault == "nan" or self.resumes == 3:
                return
            self.resumes += 1
            scene.driver = self._start("resume")

    def _start(self, verb: str) -> "subprocess.Popen[bytes]":
        """Start the study driver."""
        words = [str(shim(self.stage.scratch)), "-m", "tests.chaos.drive", "study", verb, NAME]
        words += ["--runs-dir", str(self.runs), "--hang-timeout", str(PATIENCE_S)]
        arms = self.stage.arms if verb == "run" else self.rng.randint(1, self.stage.arms)
        words += ["--arms-per-worker", str(arms)]
        words += [] if self.fault in TRACKED else ["--no-mlflow"]
        given = {
            **os.environ,
            "RAY_ADDRESS": self.stage.cluster.address,
            "CHAOS_WORLD": str(self.stage.world),
            "MLFLOW_TRACKING_URI": Server.uri(self.runs),
            "COLUMNS": "250",
        }
        with self.log.open("a") as log:
            log.write(f"--- {verb}\n")
            log.flush()
            return subprocess.Popen(words, env=given, cwd=ROOT, stdout=log, stderr=log)

    def _await_moment(self, driver: "subprocess.Popen[bytes]") -> None:
        """Wait until the victim is where it is to be hit."""
        trial = self.folder.trial(self.victim)
        while driver.poll() is None and not self._overdue():
            if self.target == 0:
                there = (trial / "status.json").exists()
            elif self.target > STEPS:
                there = (trial / "weights.safetensors").exists()
            else:
                there = self._steps(trial) >= self.target
            if there:
                time.sleep(self.wait_s)
                return
            time.sleep(0.03)

    def _strike(self, scene: Scene) -> None:
        if scene.driver.poll() is not None:
            return
        for name in self.recipe.named_trials():
            newest = newest_checkpoint(self.folder.trial(name) / "checkpoints")
            self.checkpoints[name] = int(newest.name[5:]) if newest and not self._done(name) else 0
        if scene.mlflow:
            scene.mlflow.await_answer()
        while scene.driver.poll() is None and not self._overdue():  # until there is something to hit
            self.rows_then, self.starts_then = self._num_rows(), self._num_starts()
            self.struck_at = time.monotonic()
            try:
                self.what = FAULTS[self.fault](scene)
                return
            except (LookupError, ProcessLookupError) as error:
                self.what = f"hit nothing: {error}"
                self.struck_at = None
            time.sleep(0.2)

    def _await_end(self, scene: Scene) -> int:
        """Wait for the study driver, note when the victim goes on, and do what is to be done later."""
        lost_head = self.fault == "head" and not self.resumes
        deaf = time.monotonic() + DEAF_S
        while scene.driver.poll() is None:
            self._note_recovery()
            for when, what in list(scene.later):
                if time.monotonic() >= when:
                    scene.later.remove((when, what))
                    what()
            if self._overdue() or (lost_head and time.monotonic() > deaf):
                with suppress(ProcessLookupError):
                    scene.driver.kill()
                self.what += "; the study driver did not end by itself"
            time.sleep(0.03)
        self._note_recovery()
        for _, what in scene.later:
            what()
        scene.later.clear()
        return scene.driver.wait()

    def _note_recovery(self) -> None:
        if self.struck_at is None:
            return
        starts = self._num_starts()
        if starts > self.starts_then:  # what a dying worker still wrote was no recovery
            self.starts_then, self.rows_then, self.recovered_s = starts, self._num_rows(), None
        if self.recovered_s is not None:
            return
        if self._num_rows() > self.rows_then or self._done(self.victim):
            self.recovered_s = round(time.monotonic() - self.struck_at, 2)

    def _oddities(self, mlflow: Server | None) -> str:
        """Say what is wrong beside the rows."""
        text = self.log.read_text()
        odd = []
        if self.fault == "nan":
            if "not finite" not in text or self.codes != [1]:
                odd.append(f"the divergence is not told, or the exit code is not 1: {self.codes}")
        elif self.codes[-1] != 0:
            odd.append(f"the study did not end well: exit codes {self.codes}")
        hit = self.struck_at is not None
        if self.fault in ("study_driver", "head") and hit and not self.resumes:
            odd.append("the study ended without being resumed")
        if self.fault in ("worker", "trial_driver", "raylet", "hang", *TRACKED) and self.resumes:
            odd.append(f"the study had to be resumed {self.resumes} times")
        if "Traceback" in text:
            odd.append("a traceback was printed")
        if mlflow is not None:
            odd += mlflow.oddities(self.folder.path)
        return "; ".join(odd + self._still_held())

    def _still_held(self) -> list[str]:
        """Say which CPUs of the cluster the study has not given back some time after its end."""
        deadline = time.monotonic() + GIVEN_BACK_S
        while (free := self.stage.cluster.free_cpus()) < CPUS:
            if time.monotonic() > deadline:
                return [f"the cluster still holds {CPUS - free:g} CPU"]
            time.sleep(0.5)
        return []

    def _hit(self, found: Tally) -> bool:
        noticed = found.restarts > 0 or self.codes != [0]
        return self.struck_at is not None and (noticed or self.fault not in QUIET)

    def _steps(self, trial: Path) -> int:
        rows = trial / "rows.jsonl"
        return rows.read_bytes().count(b'"metric": "loss"') if rows.exists() else 0

    def _num_rows(self) -> int:
        rows = self.folder.trial(self.victim) / "rows.jsonl"
        return rows.read_bytes().count(b"\n") if rows.exists() else 0

    def _num_starts(self) -> int:
        return len(starts_of(self.folder.trial(self.victim)))

    def _done(self, name: str) -> bool:
        return self.folder.is_complete(name)

    def _overdue(self) -> bool:
        return time.monotonic() - self.begun > LONGEST_S
