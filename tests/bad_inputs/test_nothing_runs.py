"""A study folder of a stranger runs nothing, and nothing outside it is written or emptied."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.recipes.mini import smoke
from pipeline.storage.files import file_lock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "tests/golden/report", tmp_path / "golden"))


@pytest.mark.parametrize("more", [[], ["--figures"]])
def test_a_report_runs_no_config(study: Path, tmp_path: Path, more: list[str]) -> None:
    code = f"with open({str(tmp_path / 'it_ran')!r}, 'w'):\n    pass\n"
    for name in ("evil.py", "recommended.py", "sitecustomize.py"):
        (study / name).write_text(code)
    for trial in study.glob("trials/*"):
        settings = {**smoke().trials[0].to_dict(), "config": str(study / "evil.py")}
        (trial / "settings.json").write_text(json.dumps(settings))
    assert main(["study", "report", str(study), *more]) == 0
    assert not (tmp_path / "it_ran").exists()


def test_a_report_writes_through_no_link(study: Path, tmp_path: Path) -> None:
    assert main(["study", "report", str(study), "--figures"]) == 0
    written = [*study.glob("*.csv"), *study.glob("report.*"), *study.glob("figures/*")]
    assert len(written) > 5
    for path in written:
        mine = tmp_path / f"mine_{path.name}"
        mine.write_text("mine")
        path.unlink()
        path.symlink_to(mine)
    assert main(["study", "report", str(study), "--figures"]) == 0
    assert {path.read_text() for path in tmp_path.glob("mine_*")} == {"mine"}
    assert not any(path.is_symlink() for path in written)


def test_a_lock_empties_no_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), file_lock(tmp_path / "lock"):
        pass
    with file_lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
