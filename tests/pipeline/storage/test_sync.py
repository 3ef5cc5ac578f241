"""A folder and its copy in a bucket of a real S3 server: order, resumption, and who may run a study."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.storage.checkpoint import newest_checkpoint
from pipeline.storage.lease import Lease
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import StudySync

TRIAL = "trials/a_s0"


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path):
    """The folder of another machine."""
    return tmp_path / "there"


def fill(folder, rows=2, step=10):
    """A trial under way, as the pipeline leaves it."""
    trial = folder / TRIAL
    state = trial / f"checkpoints/step_{step:08d}"
    state.mkdir(parents=True)
    (state / "tensors.safetensors").write_bytes(b"t" * 1000)
    (state / "state.json").write_text(json.dumps({"step": step}))
    add_rows(folder, rows)
    (trial / "settings.json").write_text("{}")
    (trial / "progress.json").write_text("{}")
    (folder / "study.json").write_text('{"digest": "d1"}')
    return trial


def add_rows(folder, number, word="row"):
    with (folder / TRIAL / "rows.jsonl").open("a") as file:
        file.writelines(f'"{word} {i} {time.time_ns()}"\n' for i in range(number))


def content(folder):
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = (path for path in files if not any(part.startswith(".") for part in path.parts))
    return {path.as_posix(): (folder / path).read_bytes() for path in shown}


def test_what_is_fetched_elsewhere_is_what_was_copied(s3, here, there):
    trial = fill(here)
    study_sync = StudySync(f"{s3.uri}/study", here)
    study_sync.upload_study()
    again = StudySync(study_sync.uri, there)
    again.download_study()
    assert not (there / TRIAL / "checkpoints").exists(), "what is heavy is left until a trial needs it"
    again.download(TRIAL)
    (trial / "progress.json").unlink()
    assert content(there) == content(here)
    assert newest_checkpoint(there / TRIAL / "checkpoints").name == "step_00000010"
    assert set(s3.objects()) == {f"studies/study/{name}" for name in content(here)}


def test_nothing_is_copied_twice(s3, here):
    fill(here)
    study_sync = StudySync(f"{s3.uri}/study", here)
    sent = []
    object.__setattr__(study_sync.store, "upload", lambda source, path: sent.append(path))
    study_sync.upload_study()
    add_rows(here, 1)
    first, _ = len(sent), sent.clear()
    study_sync.upload_study()
    assert (first, sent) == (5, [f"{TRIAL}/rows.jsonl"])


def test_cut_off_anywhere_the_copy_can_be_gone_on_with(s3, here, tmp_path):
    """A copy that ends after each number of files: rows are never behind the checkpoint, the end is last."""
    fill(here)
    (here / TRIAL / "status.json").write_text("{}")
    names = []
    recorder = StudySync(f"{s3.uri}/study", here)
    object.__setattr__(recorder.store, "upload", lambda source, path: names.append(path))
    recorder.upload(TRIAL)
    (here / TRIAL / ".sync_state.json").unlink()
    assert names[-1] == f"{TRIAL}/status.json"
    for cut in range(len(names) + 1):
        study_sync = StudySync(f"{s3.uri}/cut{cut}", here)
        for name in names[:cut]:
            study_sync.store.upload(here / name, name)
        there = tmp_path / f"there{cut}"
        StudySync(study_sync.uri, there).download(TRIAL)
        state = newest_checkpoint(there / TRIAL / "checkpoints")
        if state is not None:
            assert {path.name for path in state.iterdir()} == {"tensors.safetensors", "state.json"}
            assert (there / TRIAL / "rows.jsonl").read_bytes() == (here / TRIAL / "rows.jsonl").read_bytes()
        assert (there / TRIAL / "status.json").exists() == (cut == len(names))


def test_a_fetched_checkpoint_is_not_sent_back_and_leaves_the_bucket_with_its_folder(s3, here, there):
    """Who is told to delete a checkpoint can: otherwise it would come down again."""
    fill(here)
    StudySync(f"{s3.uri}/study", here).upload_study()
    other = StudySync(f"{s3.uri}/study", there)
    other.download_study()
    other.download(TRIAL)
    sent = []
    upload = other.store.upload
    object.__setattr__(other.store, "upload", lambda source, path: (sent.append(path), upload(source, path)))
    other.upload_study()
    assert sent == []
    shutil.rmtree(there / TRIAL / "checkpoints/step_00000010")
    other.upload_study()
    other.download(TRIAL)
    assert newest_checkpoint(there / TRIAL / "checkpoints") is None
    assert not [name for name in s3.objects() if "checkpoints" in name]


def test_old_checkpoints_leave_the_bucket_and_nothing_else_does(s3, here):
    trial = fill(here)
    (trial / "status.json").write_text('{"state": "FAILED"}')
    study_sync = StudySync(f"{s3.uri}/study", here)
    study_sync.upload_study()
    (trial / "checkpoints/step_00000010").rename(trial / "checkpoints/step_00000020")
    (trial / "status.json").write_text('{"state": "RUNNING"}')
    (trial / "rows.jsonl").unlink()
    study_sync.upload_study()
    names = {name.partition(f"{TRIAL}/")[2] for name in s3.objects() if TRIAL in name}
    step = "checkpoints/step_00000020"
    files = {"rows.jsonl", "settings.json", "status.json"}
    assert names == {*files, f"{step}/state.json", f"{step}/tensors.safetensors"}
    assert "RUNNING" in s3.objects()[f"studies/study/{TRIAL}/status.json"].decode(), "the failure is mended"


def test_who_was_left_behind_takes_what_went_on_elsewhere(s3, here, there):
    fill(here)
    study_sync, other = StudySync(f"{s3.uri}/study", here), StudySync(f"{s3.uri}/study", there)
    study_sync.upload_study()
    other.download(TRIAL)
    add_rows(there, 3)
    (there / TRIAL / "checkpoints/step_00000010").rename(there / TRIAL / "checkpoints/step_00000020")
    other.upload_study()
    study_sync.download(TRIAL)
    assert (here / TRIAL / "rows.jsonl").read_bytes() == (there / TRIAL / "rows.jsonl").read_bytes()
    assert [path.name for path in (here / TRIAL / "checkpoints").iterdir()] == ["step_00000020"]
    assert not (here / ".superseded").exists(), "nothing was lost by it"


def test_rows_that_only_this_machine_has_are_put_aside_not_deleted(s3, here, there):
    fill(here)
    study_sync, other = StudySync(f"{s3.uri}/study", here), StudySync(f"{s3.uri}/study", there)
    study_sync.upload_study()
    other.download(TRIAL)
    add_rows(here, 1, "only here")
    add_rows(there, 3, "gone on with")
    other.upload_study()
    study_sync.download_study()
    assert b"only here" not in (here / TRIAL / "rows.jsonl").read_bytes()
    (kept,) = (here / ".superseded").iterdir()
    assert b"only here" in (kept / "rows.jsonl").read_bytes()


def test_rows_that_were_not_copied_yet_stay(s3, here):
    fill(here)
    study_sync = StudySync(f"{s3.uri}/study", here)
    study_sync.upload_study()
    add_rows(here, 1, "new")
    study_sync.download(TRIAL)
    assert b"new" in (here / TRIAL / "rows.jsonl").read_bytes()


def test_a_rank_that_follows_drops_a_checkpoint_that_the_first_rank_has_not(s3, here, there):
    fill(here)
    StudySync(f"{s3.uri}/study", here).upload_study()
    ahead = there / TRIAL / "checkpoints/step_00000099"
    ahead.mkdir(parents=True)
    (there / TRIAL / "rows.jsonl").write_bytes((here / TRIAL / "rows.jsonl").read_bytes())
    follower = StudySync(f"{s3.uri}/study", there)
    follower.download(TRIAL)
    assert ahead.exists()
    follower.download(TRIAL, exact=True)
    assert newest_checkpoint(there / TRIAL / "checkpoints").name == "step_00000010"


def test_another_recipe_under_the_same_name_is_refused(s3, here, there):
    fill(here)
    StudySync(f"{s3.uri}/study", here).upload_study()
    there.mkdir()
    (there / "study.json").write_text('{"digest": "d2"}')
    with pytest.raises(StorageError, match=r"holds the recipe d1 and .*there the recipe d2; move the folder"):
        StudySync(f"{s3.uri}/study", there).download_study()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "s3://me:hunter22222@bucket/x",
            r"holds a password in a URI; leave it out and set AWS_ACCESS_KEY_ID",
        ),
        ("ftp://host/x", "not a place that can be used"),
        ("nowhere", "not a place that can be used"),
        ("s3://no-such-bucket/x", "did not take the study .*NO_SUCH_BUCKET"),
    ],
)
def test_a_uri_that_cannot_be_is_refused_in_a_sentence(s3, here, uri, sentence):
    fill(here)
    with pytest.raises(StorageError, match=sentence) as refused:
        StudySync(uri, here).upload()
    assert "\n" not in str(refused.value)
    assert "hunter" not in str(refused.value)


def test_a_mirror_takes_no_secret_along_to_other_processes(s3, here):
    study_sync = StudySync(f"{s3.uri}/study", here, "claim")
    study_sync.store.exists("x")
    packed = pickle.dumps(study_sync)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in packed
    assert pickle.loads(packed) == study_sync


def test_one_process_runs_a_study_and_gives_it_back(s3, here):
    study_sync = StudySync(f"{s3.uri}/study", here)
    with Lease(study_sync, print) as held:
        with (
            pytest.raises(StorageError, match=rf"process {os.getpid()} on .* runs this study"),
            Lease(study_sync, print),
        ):
            pass
        held.upload_study()
    with Lease(study_sync, print):
        pass
    assert not s3.objects()


def test_of_many_who_claim_at_once_one_at_most_gets_it(s3, here):
    study_sync, got, barrier = StudySync(f"{s3.uri}/study", here), [], threading.Barrier(6)
    held = threading.Event()

    def claim():
        barrier.wait()
        try:
            with Lease(StudySync(study_sync.uri, here), print):
                got.append(1)
                held.wait(10)
        except StorageError:
            pass

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    held.set()
    for thread in threads:
        thread.join()
    assert len(got) <= 1
    with Lease(study_sync, print):
        pass


def test_a_claim_that_fails_leaves_no_lease(s3, here, monkeypatch):
    def broken(self, path):
        raise OSError("the store broke off")

    study_sync = StudySync(f"{s3.uri}/study", here)
    with Lease(study_sync, print):
        with monkeypatch.context() as patch:
            patch.setattr(type(study_sync.store), "read", broken)  # of the other's lease
            with pytest.raises(StorageError, match=r"cannot be written .the store broke off"):
                Lease(StudySync(study_sync.uri, here), print).__enter__()
        assert len(s3.objects()) == 1


def test_a_dead_process_of_this_machine_is_taken_over_at_once(s3, here):
    code = (
        "import sys, os; from pathlib import Path\n"
        "from pipeline.storage.lease import Lease; from pipeline.storage.sync import StudySync\n"
        "Lease(StudySync(sys.argv[1], Path('x')), print).__enter__(); os._exit(9)"
    )
    study_sync = StudySync(f"{s3.uri}/study", here)
    dead = subprocess.Popen([sys.executable, "-c", code, study_sync.uri])
    assert dead.wait() == 9
    claim = Lease(study_sync, print)
    with claim:
        assert [f"process {dead.pid} on " in note for note in claim.notes] == [True]
        assert len(s3.objects()) == 1


def test_a_silent_process_elsewhere_is_taken_over_after_a_while_and_then_copies_nothing(s3, here, there):
    fill(here)
    slow = Lease(StudySync(f"{s3.uri}/study", here), print, renew_s=100)
    slow._text = json.dumps({"host": "elsewhere", "pid": 1, "life": "x"}).encode()
    with slow as held:
        held.upload(TRIAL)
        successor = Lease(StudySync(held.uri, there), print, silent_s=3)
        with pytest.raises(StorageError, match="process 1 on elsewhere runs this study"), successor:
            pass
        time.sleep(4.5)  # S3 tells whole seconds
        successor = Lease(StudySync(held.uri, there), print, silent_s=3)
        with successor:
            assert ["taken over from process 1 on elsewhere" in note for note in successor.notes] == [True]
            add_rows(here, 1, "late")
            with pytest.raises(StorageError, match="another process has taken this study over"):
                held.upload(TRIAL)
            assert not held.holds()
    assert b"late" not in b"".join(s3.objects().values())


def test_a_claim_that_was_taken_over_interrupts_its_process(s3, here):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run where it is ignored
    claim = Lease(StudySync(f"{s3.uri}/study", here), print, renew_s=0.2)

    def lose(held):
        held.store.remove(f".leases/{claim.name}.json")
        time.sleep(120)

    with claim as held, pytest.raises(KeyboardInterrupt):
        lose(held)
    signal.signal(signal.SIGINT, before)
    assert claim.lost


def test_a_store_that_does_not_answer_is_told_once_and_waited_for(s3, here, monkeypatch):
    fill(here)
    told = []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    dead = StudySync(f"{s3.uri}/study", here)
    with pytest.raises(StorageError, match=r"did not take the study .*its files are in .*here"):
        dead.upload()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    claim = Lease(StudySync(f"{s3.uri}/study", here), told.append, renew_s=0.2)
    with claim as held:
        object.__setattr__(claim, "_study_sync", dead)
        while not told:
            time.sleep(0.1)
        time.sleep(1)
        object.__setattr__(claim, "_study_sync", held)
        while len(told) < 2:
            time.sleep(0.1)
        held.upload_study()
    assert "does not answer" in told[0]
    assert "answers again" in told[1]
