"""The environment of a local Ray: when it is made, what wins, and what a session restores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.ray_train.local_cluster import LOCAL, LOCAL_RAY, QUIET, _environment, prepare_ray

ROOT = Path(__file__).parents[3]
OURS = (*LOCAL, *QUIET, "RAY_AUTH_TOKEN", "RAY_ADDRESS")


def python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a process where nothing is prepared."""
    bare = {name: value for name, value in os.environ.items() if name not in OURS}
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{code}"],
        env=bare | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


PREPARE = "from pipeline.ray_train.local_cluster import prepare_ray; prepare_ray()\n"


def test_settings_are_made_without_importing_ray_and_once():
    code = (
        "token = os.environ['RAY_AUTH_TOKEN']; prepare_ray(); assert token == os.environ['RAY_AUTH_TOKEN']\n"
    )
    done = python(PREPARE + code + "print(len(token), os.environ['RAY_AUTH_MODE'], 'ray' in sys.modules)")
    assert done.stdout.split() == ["64", "token", "False"], done.stderr


def test_users_settings_win():
    code = "print(os.environ['RAY_AUTH_MODE'], os.environ['TUNE_PRINT_ALL_TRIAL_ERRORS'])"
    done = python(PREPARE + code, RAY_AUTH_MODE="disabled", TUNE_PRINT_ALL_TRIAL_ERRORS="1")
    assert done.stdout.split() == ["disabled", "1"], done.stderr


def test_a_process_that_joins_a_cluster_gets_no_settings_of_a_local_ray():
    code = f"print([name in os.environ for name in ({LOCAL_RAY!r}, 'RAY_AUTH_MODE', 'RAY_AUTH_TOKEN')])"
    done = python(PREPARE + code, RAY_ADDRESS="10.0.0.1:6379")
    assert done.stdout.strip() == "[False, False, False]", done.stderr


def test_settings_that_come_too_late_are_refused():
    done = python("import ray\n" + PREPARE)
    assert "Ray was imported before its settings were made; call prepare_ray() first" in done.stderr


def test_this_process_was_prepared_in_time():
    """As tests/conftest.py does, before any test imports Ray."""
    import ray  # noqa: F401

    prepare_ray()
    assert {name: os.environ[name] for name in LOCAL} == LOCAL


def test_a_sessions_environment_is_restored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TMPDIR", "/mine")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    before = dict(os.environ)
    with _environment({"RAY_TMPDIR": "/theirs", "PYTHONPYCACHEPREFIX": "/cache"}):
        assert os.environ["RAY_TMPDIR"] == "/theirs"
    assert dict(os.environ) == before
