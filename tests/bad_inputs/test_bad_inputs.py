"""Every bad input of docs/bad_inputs.md is made, given to who meets it, and answered in one sentence.

The table is the union of those of the files ``of_*.py``; the document is made of it:

    python -m tests.bad_inputs.test_bad_inputs > docs/bad_inputs.md
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from experiments.cli import main
from pipeline.errors import is_user_error
from tests.bad_inputs import reported
from tests.bad_inputs.of_attacks import ATTACKS
from tests.bad_inputs.of_configs import CONFIGS
from tests.bad_inputs.of_data import DATA
from tests.bad_inputs.of_objects import OBJECTS
from tests.bad_inputs.of_runs import RUNS
from tests.bad_inputs.of_sensors import SENSORS
from tests.bad_inputs.place import SPLIT, VERSION, Bad, Place

ROOT = Path(__file__).parents[2]
TABLE = [*DATA, *SENSORS, *OBJECTS, *RUNS, *ATTACKS, *CONFIGS]
HEAD = """# Bad inputs, and what is said about them

Each line is a test (`tests/bad_inputs`). The test makes the bad input and gives it to the command or
function that a user would reach. The answer is this one sentence, with an exit code above 0 and
without a traceback. `…` stands for what differs from place to place.

`python -m tests.bad_inputs.test_bad_inputs` prints this file; a test checks that it is current.

| in | at | value | sentence |
|---|---|---|---|
"""


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with its shards and its info file."""
    from pipeline.data.formats.infos.writer import write_infos
    from pipeline.data.formats.nuscenes_tables import read_frames
    from pipeline.data.formats.shard_writer import write_shards
    from pipeline.data.synthetic import generate

    folder = tmp_path_factory.mktemp("good")
    generate(folder / "data", 3, frames_per_scene=2, scenes_per_split={"mini_train": 1, SPLIT: 1}, workers=1)
    write_shards(folder / "data", VERSION, SPLIT, folder / "shards")
    write_infos(read_frames(folder / "data", VERSION, SPLIT), folder / "data/infos.pkl", VERSION)
    return folder


def name(case: Bad) -> str:
    return f"{case.file}, {case.key}, {case.value}"


@pytest.mark.filterwarnings("ignore")  # of the libraries that read what is broken
@pytest.mark.parametrize("case", TABLE, ids=name)
def test_one_sentence(case: Bad, good: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    made = case.make(Place(tmp_path, good, ROOT, monkeypatch.setenv))
    if callable(made):
        with pytest.raises((ValueError, RuntimeError)) as error:
            made()
        assert is_user_error(error.value), f"{type(error.value)} is no refusal"
        said = [str(error.value)]
    else:
        code, said = outcome(made, capfd)
        assert code in (1, 2)
    wanted = re.compile(".*".join(map(re.escape, case.sentence.split("…"))))
    assert any(wanted.fullmatch(sentence) for sentence in said), said


def outcome(words: list[str], capfd: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """Run a command; return its exit code and the sentences that it said."""
    try:
        code = main(list(words))
    except SystemExit as left:
        code = int(left.code)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    said = [line.partition("error: ")[2] for line in err.splitlines() if "error: " in line]
    return code, said or list(findings(out))


def findings(out: str) -> Iterator[str]:
    """Yield what a check found."""
    for line in out.splitlines():
        yield line.removeprefix("problem: ")


def test_the_document_is_the_table() -> None:
    assert (ROOT / "docs/bad_inputs.md").read_text() == document()


def test_there_are_more_than_a_hundred_and_each_is_named_once() -> None:
    assert len({name(case) for case in TABLE}) == len(TABLE) >= 100


def document() -> str:
    lines = []
    for case in TABLE:
        cells = (case.file, f"`{case.key}`", case.value, case.sentence)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    data = found("Data, checkpoints and tensors", reported.DATA)
    return HEAD + "".join(lines) + data + found("Attacks", reported.ATTACKS)


def found(title: str, cases: Sequence[reported.Reported]) -> str:
    """The table of what was found in version da22db2."""
    lines = [
        f"| {case.case} | {case.before} | {case.now} | {case.test.rpartition('::')[2]} |\n" for case in cases
    ]
    head = "| case | before | now | test |\n|---|---|---|---|\n"
    return f"\n## {title}: what did version da22db2 do?\n\n{head}" + "".join(lines)


@pytest.mark.parametrize("case", [*reported.DATA, *reported.ATTACKS], ids=lambda case: case.case)
def test_what_was_found_has_its_test(case: reported.Reported) -> None:
    file, function, test = case.test.partition("::")
    if function:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text()
    else:
        assert case.test in {name(bad) for bad in TABLE}


if __name__ == "__main__":
    sys.stdout.write(document())
