"""Memory and disk that run out: one sentence, no half line, no half checkpoint."""

import errno
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experiments.recipes.mini import smoke
from pipeline.errors import TrialError
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.runtime.event_log import RESUMED, STARTED, append_event, describe_restarts, read_events
from pipeline.runtime.resource_errors import explain_resource_errors, is_full_disk
from pipeline.storage.checkpoint import Trained, newest_checkpoint, save_checkpoint

LOWER = r"out of memory on the cpu .*lower train.batch_size \(now 1\)"
ROW = Row("study", "trial", "a.0.cross=none/flex", "NDS", "fraction", 0.1, time=1.5)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB; its free bytes can be taken."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, spare: int) -> Path:
    ballast = place / "ballast"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    ballast.write_bytes(b"\0" * (free - spare))
    return ballast


def test_rows_that_do_not_fit_leave_the_file_as_it_was(small_disk):
    path = small_disk / "rows.jsonl"
    append_rows(path, [ROW])
    before = path.read_bytes()
    ballast = fill(small_disk, 4096)
    with pytest.raises(OSError, match="No space left") as caught:
        append_rows(path, [ROW] * 40)  # more than the rest of its page and the page that is free
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    ballast.unlink()
    append_rows(path, [ROW])
    assert read_rows(path) == [ROW, ROW]


def test_half_a_checkpoint_gives_its_room_back(small_disk):
    model = torch.nn.Linear(100, 100)
    trained = Trained(model, torch.optim.AdamW(model.parameters()))
    first = save_checkpoint(small_disk / "checkpoints", 1, "digest", trained)
    fill(small_disk, 20_000)
    free = os.statvfs(small_disk).f_bavail
    with pytest.raises(Exception, match=r"No space left|os error 28") as caught:
        save_checkpoint(small_disk / "checkpoints", 2, "digest", trained)
    assert is_full_disk(caught.value)
    assert os.statvfs(small_disk).f_bavail == free
    assert newest_checkpoint(small_disk / "checkpoints") == first


def test_a_full_disk_is_told_whoever_writes(small_disk):
    fill(small_disk, 4096)
    with pytest.raises(TrialError, match="no space left on its disk; make room"), told(small_disk):
        save_file({"a": torch.zeros(100_000)}, small_disk / "weights.safetensors")
    with pytest.raises(TrialError, match="no space left on its disk; make room"), told(small_disk):
        (small_disk / "more").write_bytes(b"\0" * 100_000)


def told(folder):
    return explain_resource_errors(smoke().trials[0], folder)


def test_memory_that_cannot_be_had_says_what_to_lower(tmp_path):
    program = "import torch, resource\n" + (
        "resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))\ntorch.empty(2**33, dtype=torch.uint8)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    real = RuntimeError(done.stderr.strip().splitlines()[-1])  # what torch says on this machine
    for error in (
        real,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        OSError(12, "no"),
    ):
        with pytest.raises(TrialError, match=LOWER), told(tmp_path):
            raise error
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 2**32


def test_a_gpu_is_told_that_graphs_take_memory(tmp_path):
    settings = replace(smoke().trials[0], device="cuda")
    for graph in (True, False):
        less = replace(settings, train=replace(settings.train, cuda_graphs=graph))
        with (
            pytest.raises(TrialError, match="on the cuda") as caught,
            explain_resource_errors(less, tmp_path),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        assert ("train.cuda_graphs=False" in str(caught.value)) == graph


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("a bug"), OSError(errno.EACCES, "no"), TrialError("a sentence")):
        with pytest.raises(type(error)) as caught, told(tmp_path):
            raise error
        assert caught.value is error


def test_the_event_log_names_starts_and_leaves_out_a_line_cut_short(tmp_path):
    append_event(tmp_path, STARTED)
    assert not describe_restarts(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"what": "sta\n')
    append_event(tmp_path, RESUMED, 6)
    assert [event.step for event in read_events(tmp_path)] == [0, 6]
    assert describe_restarts(tmp_path) == "started 2 times, resumed after step 6"
