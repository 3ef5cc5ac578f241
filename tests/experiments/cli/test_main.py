import argparse
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.cli.main import build_parser
from experiments.cli.options import Command
from experiments.cli.trial import _print_scores
from experiments.recipes.mini import smoke
from experiments.recipes.registry import RECIPES
from experiments.storage.study_folder import StudyFolder
from experiments.terminal import Terminal
from pipeline.metrics.rows import Row, append_rows
from pipeline.storage.paths import JOB_HOME, default_runs_dir
from pipeline.storage.trial_status import TrialState, update_status
from pipeline.tracking.study_reader import StudyEnd, write_end
from pipeline.yaml_files import parse_yaml

ROOT = Path(__file__).parents[3]


def parsers(parser=None, words=()):
    """Yield (words, parser) of all commands that do something."""
    parser = parser or build_parser()
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for name, child in (item for group in groups for item in group.choices.items()):
        yield from parsers(child, (*words, name))


def test_the_commands_of_the_design_are_there():
    assert {" ".join(words) for words, _ in parsers()} == {
        "demo", "study list", "study run", "study resume", "study status", "study screen", "study report",
        "study sync", "study submit", "study new",
        "study power", "study time", "calibrate", "data synth", "data shard",
        "data check", "data infos", "data objects", "data show", "lint", "plan", "throughput",
        "operators list", "operators bench", "train", "evaluate", "cluster check", "cluster watch",
        "cluster runtime-env", "ui",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "parser"), list(parsers()), ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_every_command_has_an_example_that_parses(words, parser):
    example = parser.epilog.removeprefix("example: biaswise ").split()
    assert tuple(example[: len(words)]) == words
    assert build_parser().parse_args(example).run == parser.get_default("run")


@pytest.mark.parametrize(
    ("words", "parser"), list(parsers()), ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_every_command_leads_to_its_class(words, parser):
    run = parser.get_default("run")
    assert isinstance(run.__self__, Command)
    assert run.__self__.name == words[-1]
    assert run.__module__.startswith("experiments.cli.")


def test_a_flag_has_one_meaning():
    """Flags that several commands have are declared alike, but for defaults that differ by command."""
    declared = {}
    for words, parser in parsers():
        for action in parser._actions:
            for flag in action.option_strings:
                meaning = (action.dest, action.type, action.nargs)
                declared.setdefault(flag, {}).setdefault(meaning, []).append(" ".join(words))
    assert {flag: uses for flag, uses in declared.items() if len(uses) > 1} == {}


def test_help_loads_neither_torch_nor_ray():
    code = (
        "import sys, experiments.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'ray', 'mlflow', 'numpy', 'mmengine'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_listing_recipes_loads_neither_ray_nor_models():
    code = (
        "import sys, experiments.cli as cli\n"
        "assert cli.main(['study', 'list']) == 0\n"
        "print({'ray', 'mlflow', 'mmengine'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "In which decoder layers" in done.stdout


@pytest.mark.parametrize(
    "words", [[], ["nope"], ["study"], ["study", "run"], ["train", "demo", "--seed", "x"]]
)
def test_wrong_words_are_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: biaswise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "run", "nope"], f"no recipe 'nope'; there are {', '.join(RECIPES)}"),
        (["study", "resume", "smoke"], "nothing to resume; start with `biaswise study run smoke`"),
        (["study", "run", "smoke", "--concurrent", "0"], "--concurrent 0: expected 1 or more"),
        (["study", "run", "smoke", "--arms-per-worker", "0"], "--arms-per-worker 0: expected 1 or more"),
        (
            ["study", "run", "smoke", "--max-trials", "0"],
            "the budget is 0 trials; expected more",
        ),
        (["study", "run", "smoke", "--gpu-hours", "-1"], "and -1 GPU hours; expected more than 0"),
        (["study", "run", "smoke", "--gpus-per-trial", "0"], "0 workers a trial: expected 1 or more"),
        (
            ["study", "screen", "pretrain"],
            "recipe pretrain has no rule, so nothing says which bias to switch off",
        ),
        (
            ["study", "run", "r50_waves"],
            "r50_800x320_cbgs.pth; name yours with --init CHECKPOINT",
        ),
        (["study", "report", "nope"], "no study 'nope'"),
        (["study", "sync"], "no study here"),
        (["data", "synth", "--scenes", "all"], "--scenes all: cannot read 'all'"),
        (["train", "demo", "--trial", "w"], "--trial 'w' fits 8 trials of demo; they are none-none-none_s0"),
        (
            ["train", "smoke", "--cfg-options", "x"],
            "--cfg-options x: expected KEY=VALUE, such as optim_wrapper",
        ),
        (
            ["study", "run", "smoke", "--hang-timeout", "-1"],
            "--hang-timeout -1: expected seconds, or 0 to wait",
        ),
        (
            ["data", "shard", "x", "--split", "a", "--out", "b", "--ray-tasks", "0"],
            "--ray-tasks 0: expected 1",
        ),
        (["train", "smoke", "--plan", "a=b"], "cannot read the choice 'b'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_refusals_are_one_line_and_exit_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("biaswise: error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_warning_of_ours_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    study = tmp_path / "s"
    rows = study / "trials" / "t" / "rows.jsonl"
    append_rows(rows, [Row("s", "t", "a=none/sdpa_math", "loss", "", 1.0)] * 2)
    rows.write_bytes(rows.read_bytes()[:-20])
    (study / "study.json").write_text('{"name": "s", "question": "", "digest": "", "rule": null}')
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["study", "report", "s", "--runs-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"biaswise: warning: {rows}: the last line was cut short and is left out"]


def test_a_checkout_whose_code_does_not_run_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("BIASWISE_HOME", raising=False)
    (tmp_path / "experiments/cli").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "list"]) == 0
    assert capsys.readouterr().err == "", "any other folder"
    (tmp_path / "experiments/cli/main.py").touch()
    assert main(["study", "list"]) == 0
    said = capsys.readouterr().err
    assert f"the code that runs is that of {ROOT}, and so are its configs" in said
    assert f"data, runs and mlflow.db are those of {tmp_path}" in said
    monkeypatch.chdir(ROOT)
    assert main(["study", "list"]) == 0
    assert capsys.readouterr().err == ""


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("experiments.cli.study.run.ListStudies.run", lambda self, arguments: int("bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["study", "list"])


def test_an_interrupt_says_that_work_is_kept(monkeypatch, capsys):
    def interrupted(self, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.study.run.ListStudies.run", interrupted)
    assert main(["study", "list"]) == 130
    said = "biaswise: interrupted; what is done is kept, the same command goes on: biaswise study list\n"
    assert capsys.readouterr().err == said


def test_an_interrupt_says_that_nothing_is_kept(monkeypatch, capsys):
    def interrupted(self, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.calibrate.Calibrate.run", interrupted)
    assert main(["calibrate"]) == 130
    said = "biaswise: interrupted; nothing of it is kept, the same command begins anew: biaswise calibrate\n"
    assert capsys.readouterr().err == said


def replaced():
    """What Tune makes of an interrupt."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


@pytest.mark.parametrize(
    "end",
    [lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: sys.exit(signal.SIGTERM), replaced],
    ids=["ours", "Ray's", "Tune's"],
)
def test_sigterm_says_that_work_is_kept(end, monkeypatch, capsys):
    """Raised by our handler, by Ray's, which Ray sets while it starts, and replaced by Tune."""
    before = signal.getsignal(signal.SIGTERM)

    def stopped(self, arguments):
        end()

    monkeypatch.setattr("experiments.cli.study.run.ListStudies.run", stopped)
    try:
        assert main(["study", "list"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    said = "interrupted; what is done is kept, the same command goes on: biaswise study list\n"
    assert capsys.readouterr().err == f"biaswise: {said}"


def test_status_tells_what_failed_and_exits_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = StudyFolder(tmp_path / "smoke")
    folder.claim(smoke(), {})
    first, second = smoke().named_trials()
    assert main(["study", "status", "smoke", "--runs-dir", str(tmp_path)]) == 0
    assert "No process of this machine runs it; `biaswise study resume smoke`" in capsys.readouterr().out
    folder.finish(first)
    folder.finish(second, "it broke")
    assert main(["study", "status", "smoke", "--runs-dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{first}" in out
    assert "failed: it broke" in out
    assert out.startswith(f"folder {tmp_path / 'smoke'}\n")


def test_a_study_that_is_not_here_is_found_where_ray_jobs_keep_theirs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["study", "status", "smoke"]) == 0
    here = f"no study has begun in {tmp_path / 'here/runs/smoke'}"
    assert capsys.readouterr().out.startswith(f"{here}\n")
    (tmp_path / "here/my_study.py").write_text(
        'from experiments.recipes.mini import smoke\n\nrecipe = smoke().renamed("my_study")\n'
    )
    StudyFolder(tmp_path / "biaswise/runs/my_study").claim(smoke().renamed("my_study"), {})
    there = "Ray jobs keep theirs in ~/biaswise, and it is there: `BIASWISE_HOME=~/biaswise biaswise study"
    assert main(["study", "status", "my_study.py"]) == 0
    assert f"; {there} status my_study.py`" in capsys.readouterr().out
    for command, study in (("report", "my_study.py"), ("sync", "my_study"), ("resume", "my_study.py")):
        assert main(["study", command, study]) == 2
        assert f"; {there} {command} {study}`\n" in capsys.readouterr().err
    monkeypatch.setenv("BIASWISE_HOME", "~/biaswise")
    assert main(["study", "status", "my_study.py", "--runs-dir", default_runs_dir()]) == 0
    assert capsys.readouterr().out.startswith(f"folder {tmp_path / 'biaswise/runs/my_study'}\n")


def test_what_ray_jobs_get_is_found_from_any_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", "runtime-env"]) == 0
    file = Path(capsys.readouterr().out.removesuffix("\n"))
    assert parse_yaml(file.read_text())["env_vars"]["BIASWISE_DEFAULT_HOME"] == JOB_HOME


def test_status_tells_whether_a_study_runs_and_what_mlflow_shows_of_one_that_was_killed(tmp_path, capsys):
    folder, (first, second) = StudyFolder(tmp_path / "smoke"), smoke().named_trials()

    def said() -> str:
        main(["study", "status", "smoke", "--runs-dir", str(tmp_path)])
        return capsys.readouterr().out

    folder.claim(smoke(), {})
    with folder.lock():
        assert "A process of this machine runs it." in said()
    assert "it was killed, and MLflow shows it as running until then" in said()
    update_status(folder.trial(first), lambda status: replace(status, state=TrialState.RUNNING))
    assert [first, "running"] in map(str.split, said().splitlines())
    write_end(folder.path, StudyEnd("KILLED", "The run broke off: it was interrupted"))
    lines = [line.split() for line in said().splitlines()]
    assert [first, "interrupted"] in lines
    assert [second, "pending"] in lines
    assert "goes on with it." in (interrupted := said())
    assert "MLflow shows it as running" not in interrupted
    write_end(folder.path, None)
    folder.finish(first)
    folder.finish(second)
    assert "It is finished." in said()


def test_scores_are_those_of_the_whole_split(tmp_path):
    """Rows of the bootstrap and of scenes have the same metric, and come later."""
    score = Row("s", "t", "p", "NDS", "fraction", 0.6, condition="clean")
    rows = [score, replace(score, value=0.1, draw=0), replace(score, value=0.2, scene="scene-1")]
    append_rows(tmp_path / "rows.jsonl", [*rows, replace(score, metric="mAP", value=0.5)])
    console = Terminal(file=io.StringIO(), width=80)
    _print_scores(tmp_path, console)
    assert console.file.getvalue().split() == ["condition", "mAP", "NDS", "clean", "50.00", "%", "60.00", "%"]


def test_a_study_named_by_its_folder_is_brought_up_to_date_there(tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(
        "experiments.storage.remote_study.download_study", lambda uri, folder: places.append(folder)
    )
    there = tmp_path / "elsewhere" / "demo"
    there.mkdir(parents=True)
    (there / "study.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    words = ["study", "report", "elsewhere/demo", "--storage", "s3://bucket/demo", "--runs-dir", "runs"]
    assert main(words) == 2  # it has no rows
    assert places == [Path("elsewhere/demo")]


def test_train_applies_what_the_command_line_says(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("experiments.study.preflight.datasets.make_datasets", lambda datasets, console: None)
    monkeypatch.setattr(
        "experiments.cli.trial._run_here",
        lambda settings, folder, measured: seen.append((settings, folder, measured)),
    )
    monkeypatch.setattr("experiments.cli.trial._print_scores", lambda folder, console: None)
    words = ["train", "smoke", "--trial", "window", "--seed", "4", "--steps", "9"]
    words += ["--cfg-options", "optim_wrapper.optimizer.lr=1e-3", "--set", "train.lr_scale=3"]
    words += ["--measure-every", "4"]
    assert main([*words, "--num-workers", "2", "--local", "--runs-dir", str(tmp_path)]) == 0
    ((settings, folder, measured),) = seen
    assert (settings.seed, settings.train.steps, settings.num_workers) == (4, 9, 2)
    assert settings.train.lr_scale == 3
    assert measured.thresholds == ((4, None), (8, None))
    assert settings.overrides == (("optim_wrapper.optimizer.lr", "0.001"),)
    assert settings.plan == smoke().trials[1].plan
    assert folder.parent == tmp_path / "smoke" / "trials"
    assert json.loads((folder / "settings.json").read_text()) == json.loads(json.dumps(settings.to_dict()))
