"""`study run` and `study submit` take the same options, and a job gets them as they were typed."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from experiments.cli.cluster import SubmitStudy
from experiments.cli.options import Command
from experiments.cli.study.run import ResumeStudy, RunDemo, RunStudy
from experiments.cli.study.run_options import run_words

TYPED = [
    "--set", "train.steps=3", "--set", "a=b", "--data", "d", "--init", "c.pth", "--init", "d.pth",
    "--gpus-per-trial", "2",
    "--storage", "s3://b", "--concurrent", "3", "--arms-per-worker", "4", "--auto-concurrency",
    "--max-trials", "0", "--gpu-hours", "1.5", "--hang-timeout", "0.0", "--skip-confirmation",
    "--underpowered", "--no-mlflow", "--no-register",
]  # fmt: skip
"""Every option that a job of a cluster and a run on this machine share."""


def parser_of(command: Command) -> ArgumentParser:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return parser


def options_of(command: Command) -> set[str]:
    return set(vars(parser_of(command).parse_args([] if command.name == "demo" else ["demo"]))) - {"study"}


@pytest.mark.parametrize("command", [RunDemo(), ResumeStudy()], ids=["demo", "resume"])
def test_whatever_runs_a_study_takes_the_same_options(command: Command) -> None:
    assert options_of(command) == options_of(RunStudy())


def test_a_job_takes_them_too_and_its_home_in_place_of_the_folder() -> None:
    run, submit = options_of(RunStudy()), options_of(SubmitStudy())
    assert run - submit == {"runs_dir"}
    assert submit - run == {"address", "home", "no_wait"}
    typed = {word[2:].replace("-", "_") for word in TYPED if word.startswith("--")}
    assert typed == run - {"runs_dir"}, "TYPED has them all"


def test_a_job_runs_with_the_words_that_were_typed() -> None:
    parser = parser_of(SubmitStudy())
    assert run_words(parser.parse_args(["demo", "--home", "/h", "--no-wait", *TYPED])) == TYPED
    assert run_words(parser.parse_args(["demo"])) == []
    again = parser_of(RunStudy()).parse_args(["demo", *TYPED])
    assert again.no_register
    assert (again.max_trials, again.hang_timeout) == (0, 0)
    assert not Path("d").exists()  # where data are is the cluster's matter
