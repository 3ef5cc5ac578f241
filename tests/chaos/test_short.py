"""The short form: four runs of the campaign, with cohorts and a fault each, lose and double nothing."""

import subprocess
import sys

import pytest

from tests.chaos.cluster import ROOT
from tests.chaos.table import read_runs

pytestmark = [pytest.mark.cluster, pytest.mark.slow(seconds=160)]

FAULTS = ("trial_driver", "study_driver", "nan", "mlflow_pause")


def test_a_study_survives_one_fault_at_a_time(tmp_path):
    words = [sys.executable, "-m", "tests.chaos.run", "--runs", str(len(FAULTS)), "--seed", "0"]
    words += [
        "--arms",
        "3",
        "--faults",
        ",".join(FAULTS),
        "--out",
        str(tmp_path),
        "--place",
        str(tmp_path / "place"),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = read_runs(tmp_path)
    assert [(run["fault"], run["hit"], run["well"]) for run in runs] == [(f, "True", "True") for f in FAULTS]
