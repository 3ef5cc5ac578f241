"""A benchmark that is told to stop keeps what it has measured."""

import signal
import subprocess
import sys

from operators.bench.rows import read_rows


def test_a_terminated_run_keeps_its_rows(tmp_path):
    command = [
        sys.executable,
        "-u",
        "-m",
        "operators.bench.command",
        "--shapes",
        "mini",
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen([*command, "--budget-ms", "1e5"], stdout=subprocess.PIPE, text=True) as run:
        line = run.stdout.readline()
        run.send_signal(signal.SIGTERM)
        run.communicate()
    assert "ms" in line
    assert run.returncode == 128 + signal.SIGTERM
    assert any(row.metric == "latency" for row in read_rows(tmp_path / "rows.parquet"))
