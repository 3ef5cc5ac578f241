"""Inputs that were made to break a promise: JSON of a hostile depth or type, configs that run, odd paths."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.of_runs import alone, config, line, report, train
from tests.bad_inputs.of_sensors import pipe
from tests.bad_inputs.place import CONFIG, Bad, Place, Words

DEEP = "[" * 200_000 + "]" * 200_000


def row(**changes: Any) -> Callable[[Place], Words]:
    """Change columns of one row of the first trial."""
    return report(line(1, lambda text: json.dumps({**json.loads(text), **changes})))


def row_number(column: str, number: str) -> Callable[[Place], Words]:
    """Write a number as it stands into one row."""
    marked = lambda text: json.dumps({**json.loads(text), column: "HERE"})  # noqa: E731
    return report(line(1, lambda text: marked(text).replace('"HERE"', number)))


def study_json(**changes: Any) -> Callable[[Place], Words]:
    """Change keys of study.json."""

    def change(folder: Path) -> None:
        path = folder / "study.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return report(change)


def rule(**changes: Any) -> Callable[[Place], Words]:
    """Change fields of the rule in study.json."""

    def change(folder: Path) -> None:
        path = folder / "study.json"
        plain = json.loads(path.read_text())
        path.write_text(json.dumps({**plain, "rule": {**plain["rule"], **changes}}))

    return report(change)


def replaced(name: str, content: bytes) -> Callable[[Place], Words]:
    """Replace a file of a study."""
    return report(lambda folder: next(iter(sorted(folder.glob(name)))).write_bytes(content))


def settings(**changes: Any) -> Callable[[Place], Words]:
    """Ask for the plan as a config, with changed settings of the trials."""

    def make(place: Place) -> Words:
        from experiments.recipes.mini import smoke

        place.environment("COLUMNS", "999")
        folder = place.study()
        plain = {**smoke().trials[0].to_dict(), **changes}
        (folder / "trials/w00-s0/settings.json").write_text(json.dumps(plain))
        return ["study", "report", str(folder), "--plan-config"]

    return make


def pictured(change: Callable[[Path], object] | None) -> Callable[[Place], Words]:
    """Ask for the page of a study of which the pictures are changed, or their folder is a link."""

    def make(place: Place) -> Words:
        folder = place.study()
        for path in sorted(folder.glob("trials/*/")) if change else ():
            (path / "scene.png").unlink(missing_ok=True)
            change(path / "scene.png")
        if change is None:
            (folder / "figures").symlink_to(place.tmp)
        return ["study", "report", str(folder), "--figures"]

    return make


def status(name: str, content: str) -> Callable[[Place], Words]:
    """Look at a study with a file that holds this."""

    def make(place: Place) -> Words:
        from experiments.recipes.mini import smoke
        from experiments.storage.study_folder import StudyFolder

        folder = StudyFolder(place.tmp / "smoke")
        folder.claim(smoke(), {})
        trial = next(iter(smoke().named_trials()))
        (folder.path / name.replace("TRIAL", f"trials/{trial}")).write_text(content)
        return ["study", "status", "smoke", "--runs-dir", str(place.tmp)]

    return make


def data_config(name: str, text: str) -> Callable[[Place], Words]:
    """A config that is data."""
    return lambda place: ["lint", place.written(name, text)]


def used_port(place: Place) -> Words:
    listener = socket.create_server(("127.0.0.1", 0))
    KEPT.append(listener)
    return ["ui", "--port", str(listener.getsockname()[1])]


KEPT: list[socket.socket] = []
"""Sockets that listen until the process ends."""


def loop(place: Place) -> Words:
    os.symlink(place.tmp / "b", place.tmp / "a")
    os.symlink(place.tmp / "a", place.tmp / "b")
    return ["study", "run", "smoke", "--runs-dir", str(place.tmp / "a")]


def secret_variable(place: Place) -> Words:
    place.environment("MY_SERVICE_TOKEN", "planted-" + "9f3a71c2")
    return config("_x = '{{$MY_SERVICE_TOKEN:}}'")(place)


ROWS = [
    Bad(
        "rows.jsonl",
        "a line",
        "nested 200,000 deep",
        report(line(1, lambda t: DEEP)),
        "…/rows.jsonl, line 2: not a row (nested too deep); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "file",
        "not UTF-8",
        replaced("trials/*/rows.jsonl", b"\xff\xfe{}\n"),
        "…/rows.jsonl, line 1: not a row ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "metric",
        "half a surrogate pair",
        row(metric="\ud800"),
        "…/rows.jsonl, line 2: not a row (metric holds half of a surrogate pair, which is no text); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "value",
        "1e400",
        row_number("value", "1e400"),
        "…/rows.jsonl, line 2: not a row (value is inf, expected a number between -1e+39 and 1e+39); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "value",
        "1e308",
        row_number("value", "1e308"),
        "…/rows.jsonl, line 2: not a row (value is 1e+308, expected a number between -1e+39 and 1e+39); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "value",
        "500 digits",
        row_number("value", "9" * 500),
        "…/rows.jsonl, line 2: not a row (value is 9999…, expected a number between -1e+39 and 1e+39); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "time",
        "1e20",
        row_number("time", "1e20"),
        "…/rows.jsonl, line 2: not a row (time is 1e+20, expected a number between 0 and 1e+11); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "seed",
        "1.5",
        row(seed=1.5),
        "…/rows.jsonl, line 2: not a row (seed is 1.5, expected a whole number); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "step",
        "-1",
        row(step=-1),
        "…/rows.jsonl, line 2: not a row (step is -1, expected a number between 0 and …); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "plan",
        "a list",
        row(plan=[]),
        "…/rows.jsonl, line 2: not a row (plan is [], expected text); restore the file, or remove its folder and run again what wrote it",
    ),
]
FILES = [
    Bad(
        "study.json",
        "file",
        "nested 200,000 deep",
        replaced("study.json", DEEP.encode()),
        "…/study.json is not JSON of a study (nested too deep, expected 64 levels at most); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "study.json",
        "file",
        "not UTF-8",
        replaced("study.json", b'{"name": "\xff"}'),
        "…/study.json is not JSON of a study (not UTF-8 (byte 10)); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "study.json",
        "name",
        "half a surrogate pair",
        study_json(name="\udfff"),
        "…/study.json is not JSON of a study (holds half of a surrogate pair, which is no text); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "study.json",
        "name",
        "a number",
        study_json(name=3),
        "…/study.json is not JSON of a study (study.name is 3, expected text); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "study.json",
        "rule",
        "a list",
        study_json(rule=[1]),
        "…/study.json has a rule that cannot be read (it is no object)",
    ),
    Bad(
        "study.json",
        "rule.confidence",
        "a word",
        rule(confidence="high"),
        "…/study.json has a rule that cannot be read (the rule.confidence is 'high', expected a number)",
    ),
    Bad(
        "study.json",
        "rule.sites",
        "a number",
        rule(sites=3),
        "…/study.json has a rule that cannot be read (the rule.sites is 3, expected a list)",
    ),
    Bad(
        "study.json",
        "rule.seeds",
        "words",
        rule(seeds=["a"]),
        "…/study.json has a rule that cannot be read (the rule.seeds[0] is 'a', expected a whole number)",
    ),
    Bad(
        "study.json",
        "rule.stopwatch_s",
        "1e400",
        rule(stopwatch_s=float("inf")),
        "…/study.json is not JSON of a study (holds a number that is out of range); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "settings.json",
        "seed",
        "a word",
        settings(seed="x"),
        "! The plan is not printed as a config: …/settings.json: not the settings of a trial (settings.seed is 'x', expected a whole number).",
    ),
    Bad(
        "settings.json",
        "data",
        "a list",
        settings(data=[]),
        "! The plan is not printed as a config: …/settings.json: not the settings of a trial (settings.data is a list, expected an object).",
    ),
    Bad(
        "settings.json",
        "overrides",
        "a word",
        settings(overrides="x"),
        "! The plan is not printed as a config: …/settings.json: not the settings of a trial (settings.overrides is 'x', expected a list).",
    ),
    Bad(
        "settings.json",
        "plan",
        "a number",
        settings(plan=3),
        "! The plan is not printed as a config: …/settings.json: not the settings of a trial (settings.plan is 3, expected text).",
    ),
    Bad(
        "status.json",
        "file",
        "a list",
        status("TRIAL/status.json", "[]"),
        "…/status.json: cannot be read as the status of a trial (expected an object, got a list); delete it to run the trial again",
    ),
    Bad(
        "status.json",
        "state",
        "a list",
        status("TRIAL/status.json", '{"state": []}'),
        "…/status.json: cannot be read as the status of a trial (state: [] is not a valid TrialState); delete it to run the trial again",
    ),
    Bad(
        "status.json",
        "error",
        "a number",
        status("TRIAL/status.json", '{"state": "FAILED", "error": 3}'),
        "…/status.json: cannot be read as the status of a trial (error is 3, expected text); delete it to run the trial again",
    ),
    Bad(
        "status.json",
        "sessions",
        "numbers",
        status("TRIAL/status.json", '{"state": "FAILED", "sessions": [3]}'),
        "…/status.json: cannot be read as the status of a trial (sessions[0] is 3, expected an object); delete it to run the trial again",
    ),
    Bad(
        "interim_analyses.json",
        "waves",
        "a number",
        status("interim_analyses.json", '{"waves": 3}'),
        "…/interim_analyses.json: not the waves of a study (waves is 3, expected a list); delete it, and a run goes on by the rows",
    ),
    Bad(
        "interim_analyses.json",
        "ended",
        "a word",
        status("interim_analyses.json", '{"waves": [], "ended": "x"}'),
        "…/interim_analyses.json: not the waves of a study (ended is 'x', expected an object); delete it, and a run goes on by the rows",
    ),
    Bad(
        "study.json",
        "rule.seeds",
        "a million",
        rule(seeds=list(range(1_000_000))),
        "…/study.json has a rule that cannot be read (the rule names more than 10000 seeds, sites, arms or treatments; expected fewer)",
    ),
]
CODE = [
    Bad(
        "config",
        "a .yaml file",
        "an object that runs code",
        data_config("mine.yaml", 'model: !!python/object/apply:os.system ["true"]'),
        "…/mine.yaml: cannot be read as a config (not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system' …); correct it, or its _base_",
    ),
    Bad(
        "config",
        "_base_ of a .yaml file",
        "a .py file",
        lambda p: ["lint", p.written("mine.yaml", f"_base_: {p.root / CONFIG}")],
        "…/mine.yaml: …/cmt_aqr_pillar_mini.py: is the _base_ of a config that is data, and would be run; write the config in Python",
    ),
    Bad(
        "config",
        "custom_imports of a .json file",
        "a module",
        data_config("mine.json", '{"custom_imports": {"imports": ["this"]}}'),
        "…/mine.json: has custom_imports, which runs code; write the config in Python",
    ),
    Bad(
        "config",
        "a .json file",
        "nested 200,000 deep",
        data_config("mine.json", DEEP),
        "…/mine.json: cannot be read as a config (nested too deep, expected 64 levels at most); correct it, or its _base_",
    ),
    Bad(
        "config",
        "a .yaml file",
        "references that double and double",
        data_config(
            "mine.yaml",
            "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        ),
        "…/mine.yaml: cannot be read as a config (holds more than 100000 values, references counted); correct it, or its _base_",
    ),
    Bad(
        "config",
        "model.img_backbone.type",
        "subprocess.Popen",
        lambda p: [
            "lint",
            p.config('model = dict(img_backbone=dict(_delete_=True, type="subprocess.Popen", args="true"))'),
        ],
        "mine.py: model.img_backbone.type is 'subprocess.Popen', which names no class of a registry; expected a name such as 'ResNet' or 'mmdet.ResNet'",
    ),
    Bad(
        "config",
        "model.img_backbone.type",
        "mmengine.mkdir_or_exist",
        lambda p: [
            "plan",
            p.config(
                'model = dict(img_backbone=dict(_delete_=True, type="mmengine.mkdir_or_exist", dir_name="x"))'
            ),
        ],
        "mine.py: model.img_backbone.type is 'mmengine.mkdir_or_exist', which names no class of a registry; expected a name such as 'ResNet' or 'mmdet.ResNet'",
    ),
    Bad(
        "config",
        "a .yaml file",
        "maps that merge one another, 9^29 keys in all",
        data_config(
            "mine.yaml",
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        ),
        "…/mine.yaml: cannot be read as a config (holds more than 100000 values, references counted); correct it, or its _base_",
    ),
    Bad(
        "cluster.yaml",
        "file",
        "references that double and double",
        lambda p: [
            "cluster",
            "check",
            p.written(
                "cluster.yaml",
                "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
            ),
        ],
        "…/cluster.yaml: holds more than 100000 values, references counted",
    ),
    Bad(
        "cluster.yaml",
        "file",
        "nested 100,000 deep",
        lambda p: ["cluster", "check", p.written("cluster.yaml", "[" * 100_000)],
        "…/cluster.yaml: nested too deep",
    ),
    Bad(
        "config",
        "a variable",
        "the value of a secret of the environment",
        secret_variable,
        "…/mine.py: reads the environment variable MY_SERVICE_TOKEN, which holds a secret; configs are printed and copied",
    ),
    Bad(
        "config",
        "file",
        "leaves with exit code 0",
        alone("import sys\nsys.exit(0)\n"),
        "…/mine.py: cannot be read as a config (SystemExit: 0); correct it, or its _base_",
    ),
    Bad(
        "train",
        "--cfg-options",
        "named like a secret",
        train("--cfg-options", "_api_key=hunter2"),
        "settings.overrides[0] holds the value of _api_key, and settings are copied into files, rows and MLflow; take it out, and give it to the workers in their environment or by their machine's role",
    ),
    Bad(
        "train",
        "--cfg-options",
        "a type to import",
        train("--cfg-options", "model.img_backbone.type=os.system"),
        "cmt_aqr_pillar_mini.py: model.img_backbone.type is 'os.system', which names no class of a registry; expected a name such as 'ResNet' or 'mmdet.ResNet'",
    ),
    Bad(
        "config",
        "model.image_size",
        "text",
        lambda p: ["lint", p.config('model = dict(image_size="abc")')],
        "mine.py: model.image_size is 'abc'; expected height and width, such as (320, 800)",
    ),
    Bad(
        "config",
        "model.image_size",
        "two words",
        lambda p: ["plan", p.config('model = dict(image_size=["a", "b"])')],
        "mine.py: model.image_size is \"['a', 'b']\"; expected height and width, such as (320, 800)",
    ),
]
PATHS = [
    Bad(
        "study folder",
        "scene.png",
        "a link to a file elsewhere, for a page",
        pictured(lambda path: path.symlink_to("/etc/hostname")),
        "…/scene.png: is a link, expected the file itself",
    ),
    Bad(
        "study folder",
        "scene.png",
        "a named pipe, for a page",
        pictured(os.mkfifo),
        "…/scene.png: is no regular file",
    ),
    Bad(
        "study folder",
        "figures",
        "a link to a folder elsewhere, for a page",
        pictured(None),
        "…/figures: is a link, expected a folder; remove it",
    ),
    Bad(
        "study folder",
        "a table",
        "a named pipe",
        report(lambda folder: os.mkfifo(folder / "x.csv")),
        "…/x.csv: is no regular file",
    ),
    Bad(
        "study folder",
        "report.md",
        "a named pipe",
        report(lambda folder: pipe(folder / "report.md")),
        "…/report.md: is a device or a pipe, expected a file",
    ),
    Bad(
        "ui",
        "--port",
        "in use",
        used_port,
        "127.0.0.1:…: nobody can listen there (Address already in use); choose another --port or --host",
    ),
    Bad(
        "plan",
        "--out",
        "a folder",
        lambda p: ["plan", CONFIG, "--out", str(p.tmp)],
        "…: is a folder, expected a file",
    ),
    Bad(
        "data shard",
        "--out",
        "5,000 characters",
        lambda p: ["data", "shard", str(p.good / "data"), "--split", "mini_val", "--out", "x" * 5000],
        "…xxx…xxx…: File name too long; check the path",
    ),
    Bad("study run", "--runs-dir", "links in a loop", loop, "…a…; check the path"),
    Bad(
        "study report",
        "study",
        "5,000 characters",
        lambda p: ["study", "report", "x" * 5000],
        "…xxx…xxx…: File name too long; check the path",
    ),
]
ATTACKS = [*ROWS, *FILES, *CODE, *PATHS]
