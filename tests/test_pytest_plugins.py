"""Plugins that a user's environment happens to have do not stop the tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = """
import warnings
def pytest_configure(config):
    warnings.warn("Benchmarks are automatically disabled because xdist plugin is active.", UserWarning)
"""


def test_pytest_benchmark_is_not_loaded(tmp_path: Path) -> None:
    """It warns where xdist is on, and here a warning is an error."""
    (tmp_path / "pytest_benchmark").mkdir()
    (tmp_path / "pytest_benchmark/plugin.py").write_text(PLUGIN)
    about = tmp_path / "pytest_benchmark-9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pytest-benchmark\nVersion: 9\n")
    (about / "entry_points.txt").write_text("[pytest11]\nbenchmark = pytest_benchmark.plugin\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "--collect-only", "tests/smallest.py"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "Benchmarks" not in done.stdout + done.stderr
    assert done.returncode == 5, done.stdout + done.stderr  # no test was collected
