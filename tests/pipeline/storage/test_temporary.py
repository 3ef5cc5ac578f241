import os
import subprocess
import sys
from pathlib import Path

from pipeline.storage.temporary import LOCK, PREFIX, temporary_folder

ROOT = Path(__file__).parents[3]


def test_a_folder_lives_as_long_as_its_block(tmp_path):
    with temporary_folder("x", tmp_path) as folder:
        (folder / "deep").mkdir()
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_living_owners_folder_is_left_alone(tmp_path):
    with temporary_folder("a", tmp_path) as first, temporary_folder("b", tmp_path) as second:
        assert first.exists()
        assert second.exists()


def test_a_killed_owners_folder_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.storage.temporary import temporary_folder\n"
        "with temporary_folder('x', Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ}, check=False)
    (left,) = tmp_path.iterdir()
    with temporary_folder("y", tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not left.exists()


def test_a_folder_just_made_is_left_alone(tmp_path):
    fresh = tmp_path / f"{PREFIX}z"
    fresh.mkdir()
    with temporary_folder("x", tmp_path):
        assert fresh.exists()
    assert not (fresh / LOCK).exists()
