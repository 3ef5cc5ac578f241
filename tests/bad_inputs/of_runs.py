"""Bad words, configs, plans, settings, recipes, checkpoints, rows, study folders, cluster files, URIs."""

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.place import CONFIG, Bad, Place, Words

MINI = "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"


def plan(*words: str) -> Callable[[Place], Words]:
    return lambda place: ["plan", CONFIG, *words]


def config(text: str) -> Callable[[Place], Words]:
    return lambda place: ["plan", place.config(text)]


def alone(text: str) -> Callable[[Place], Words]:
    """A config file that inherits from nothing."""
    return lambda place: ["plan", place.written("mine.py", text)]


def train(*words: str) -> Callable[[Place], Words]:
    return lambda place: ["train", "smoke", "--local", "--runs-dir", str(place.tmp), *words]


def evaluate(place: Place, checkpoint: str, *words: str) -> Words:
    data = ["--data", str(place.good / "data"), "--conditions", "clean"]
    return ["evaluate", checkpoint, *data, "--runs-dir", str(place.tmp / "runs"), *words]


def checkpoint(make: Callable[[Place], str]) -> Callable[[Place], Words]:
    return lambda place: evaluate(place, make(place))


def cut_weights(place: Place) -> str:
    return place.written("weights.safetensors", (place.root / MINI).read_bytes()[:5000])


def other_weights(place: Place) -> str:
    held = load_file(place.root / MINI)
    name = next(key for key, value in held.items() if value.ndim == 2)
    path = place.tmp / "other.safetensors"
    save_file({**held, name: torch.zeros(3, 5)}, path)
    return str(path)


class Harmful:
    """What runs code when a pickle of it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1 + 1",)


def harmful_weights(place: Place) -> str:
    path = place.tmp / "harmful.pth"
    torch.save({"state_dict": Harmful()}, path)
    return str(path)


def settings(change: Callable[[Any], Any]) -> Callable[[Place], Callable[[], Any]]:
    """Settings of a recipe of the user's own: made in Python, checked before anything runs."""

    def make(place: Place) -> Callable[[], Any]:
        from experiments.recipes.mini import smoke
        from pipeline.training.preflight import check

        data = str(place.good / "data")
        first = smoke().trials[0]
        good = replace(first, data=replace(first.data, train=(data,), val=data))
        return lambda: check(change(good), place.tmp / "trial", torch.device("cpu"))

    return make


def data(**changes: Any) -> Callable[[Place], Callable[[], Any]]:
    return settings(lambda s: replace(s, data=replace(s.data, **changes)))


def steps(**changes: Any) -> Callable[[Place], Callable[[], Any]]:
    return settings(lambda s: replace(s, train=replace(s.train, **changes)))


def report_with_config(config: str) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        from experiments.recipes.mini import smoke

        folder = place.study()
        named = {**smoke().trials[0].to_dict(), "config": config}
        (folder / "trials/w00-s0/settings.json").write_text(json.dumps(named))
        return ["study", "report", str(folder), "--plan-config"]

    return make


def report(change: Callable[[Path], Any]) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        folder = place.study()
        change(folder)
        return ["study", "report", str(folder)]

    return make


def line(number: int, change: Callable[[str], str]) -> Callable[[Path], Any]:
    """Change one line of the rows of the first trial."""

    def spoil(folder: Path) -> None:
        path = sorted(folder.glob("trials/*/rows.jsonl"))[0]
        lines = path.read_text().splitlines()
        lines[number] = change(lines[number])
        path.write_text("\n".join(lines) + "\n")

    return spoil


def renamed(text: str) -> str:
    held = json.loads(text)
    held["metrik"] = held.pop("metric")
    return json.dumps(held)


def cluster(name: str, old: str, new: str) -> Callable[[Place], Words]:
    """Change the text of a cluster file that ships."""

    def make(place: Place) -> Words:
        text = (place.root / name).read_text()
        assert old in text
        return ["cluster", "check", place.written(name, text.replace(old, new, 1))]

    return make


def uri(value: str, *words: str) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        place.environment("MLFLOW_TRACKING_URI", value)
        folder = place.study()
        return [*words] if words else ["study", "sync", str(folder)]

    return make


def trickling_server(place: Place) -> Words:
    """A server that answers correctly, a byte a second; the user waits a second for it, not ten."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_answer_slowly, args=(server,), daemon=True).start()
    place.environment("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    return uri(f"http://127.0.0.1:{server.getsockname()[1]}")(place)


def _answer_slowly(server: socket.socket) -> None:
    with server, server.accept()[0] as line, suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}       ":
            line.send(bytes([byte]))
            time.sleep(0.5)


def built(text: str) -> Callable[[Place], Words]:
    """Build the model of a config: scores the shipped checkpoint with it."""
    return lambda place: evaluate(place, MINI, "--config", place.config(text))


WORDS = [
    Bad(
        "command line",
        "recipe",
        "demmo",
        lambda p: ["study", "run", "demmo"],
        "no recipe 'demmo'; there are demo, demo_gpu, …",
    ),
    Bad(
        "command line",
        "study",
        "never run",
        lambda p: ["study", "report", "nosuch", "--runs-dir", str(p.tmp)],
        "no study 'nosuch': neither …/nosuch nor nosuch holds a study.json; `biaswise study run` makes one",
    ),
    Bad(
        "study resume",
        "recipe",
        "never run",
        lambda p: ["study", "resume", "smoke", "--runs-dir", str(p.tmp)],
        "…/smoke: nothing to resume; start with `biaswise study run smoke`",
    ),
    Bad(
        "study run",
        "--concurrent",
        "0",
        lambda p: ["study", "run", "smoke", "--concurrent", "0", "--runs-dir", str(p.tmp)],
        "--concurrent 0: expected 1 or more",
    ),
    Bad(
        "study run",
        "--max-trials",
        "0",
        lambda p: ["study", "run", "smoke", "--max-trials", "0", "--runs-dir", str(p.tmp)],
        "the budget is 0 trials; expected more than 0",
    ),
    Bad(
        "study run",
        "--gpu-hours",
        "-1",
        lambda p: ["study", "run", "smoke", "--gpu-hours", "-1", "--runs-dir", str(p.tmp)],
        "the budget is 2 trials and -1 GPU hours; expected more than 0",
    ),
    Bad(
        "study run",
        "--gpu-hours",
        "nan",
        lambda p: ["study", "run", "smoke", "--gpu-hours", "nan", "--runs-dir", str(p.tmp)],
        "the budget is 2 trials and nan GPU hours; expected more than 0",
    ),
    Bad(
        "study run",
        "--gpu-hours",
        "ten",
        lambda p: ["study", "run", "smoke", "--gpu-hours", "ten"],
        "argument --gpu-hours: invalid float value: 'ten'",
    ),
    Bad(
        "data synth",
        "--scenes",
        "mini_train",
        lambda p: ["data", "synth", "--out", str(p.tmp / "d"), "--scenes", "mini_train"],
        "--scenes mini_train: cannot read 'mini_train'; expected e.g. mini_train=8,mini_val=2",
    ),
    Bad(
        "data synth",
        "--scenes",
        "mini_trian=1",
        lambda p: ["data", "synth", "--out", str(p.tmp / "d"), "--scenes", "mini_trian=1"],
        "unknown split 'mini_trian'; the devkit has train, val, test, mini_train, mini_val, train_detect, train_track",
    ),
    Bad(
        "data synth",
        "--frames",
        "0",
        lambda p: ["data", "synth", "--out", str(p.tmp / "d"), "--frames", "0"],
        "--frames 0: expected 1 or more",
    ),
    Bad(
        "data synth",
        "--processes",
        "0",
        lambda p: ["data", "synth", "--out", str(p.tmp / "d"), "--processes", "0"],
        "--processes 0: expected 1 or more",
    ),
    Bad(
        "data synth",
        "--out",
        "holds a dataset",
        lambda p: ["data", "synth", "--out", str(p.dataset()), "--frames", "1"],
        "…/v1.0-mini: holds another generated dataset (…); expected … or nothing, choose another folder",
    ),
    Bad(
        "data show",
        "--config",
        "has no train_pipeline",
        lambda p: ["data", "show", str(p.good / "data"), "--config", CONFIG],
        "experiments/configs/cmt_aqr_pillar_mini.py: has no train_dataloader, hence no train_pipeline to draw",
    ),
    Bad(
        "data show",
        "--frames",
        "0",
        lambda p: ["data", "show", str(p.good / "data"), "--frames", "0", "--out", str(p.tmp)],
        "--frames 0: expected 1 or more",
    ),
    Bad(
        "throughput",
        "--plans",
        "quick",
        lambda p: ["throughput", CONFIG, "--plans", "quick", "--device", "cpu"],
        "--plans quick: expected one of config, plain, dense, rects, mask, dense_mask, or NAME:pattern=bias/impl;...",
    ),
    Bad("ui", "--port", "99999", lambda p: ["ui", "--port", "99999"], "--port 99999: expected 1 to 65535"),
    Bad(
        "evaluate",
        "--conditions",
        "fog",
        lambda p: [*evaluate(p, MINI)[:4], "--conditions", "fog", "--runs-dir", str(p.tmp)],
        "unknown sensor condition 'fog'; expected clean, lidar_sector, …",
    ),
    Bad(
        "train",
        "--trial",
        "nosuch",
        train("--trial", "nosuch"),
        "--trial 'nosuch' fits 0 trials of smoke; they are …",
    ),
    Bad(
        "train",
        "--cfg-options",
        "no '='",
        train("--cfg-options", "model.x"),
        "--cfg-options model.x: expected KEY=VALUE, such as optim_wrapper.optimizer.lr=1e-4",
    ),
    Bad(
        "train",
        "--cfg-options",
        "an open bracket",
        train("--cfg-options", "model.x=[1,(2,3]"),
        "--cfg-options model.x=[1,(2,3]: the brackets of '1,(2,3' do not match",
    ),
    Bad(
        "evaluate",
        "--cfg-options",
        "leads nowhere",
        lambda p: evaluate(p, MINI, "--cfg-options", "model.nosuch.x=1"),
        "override model.nosuch.x: the config has no model.nosuch",
    ),
    Bad(
        "evaluate",
        "--cfg-options",
        "no '='",
        lambda p: evaluate(p, MINI, "--cfg-options", "model.x"),
        "--cfg-options model.x: expected KEY=VALUE, such as optim_wrapper.optimizer.lr=1e-4",
    ),
    Bad(
        "evaluate",
        "--plan",
        "two patterns for one site",
        lambda p: evaluate(
            p, MINI, "--plan", "decoder.*=none/sdpa_math;decoder.0.cross=none/sdpa_math;aqr.*=local/sdpa_math"
        ),
        "site decoder.0.cross is matched by 'decoder.*' and 'decoder.0.cross'; name it once",
    ),
    Bad(
        "evaluate",
        "--plan",
        "none for a site",
        lambda p: evaluate(p, MINI, "--plan", "decoder.*=none/sdpa_math"),
        "site aqr.0.cross has no choice; add a pattern for it (the baseline too is written out)",
    ),
]
PLANS = [
    Bad(
        "plan",
        "text",
        "nonsense",
        train("--plan", "nonsense"),
        "cannot read 'nonsense' in a plan; expected 'pattern=bias/impl'",
    ),
    Bad(
        "plan",
        "pattern",
        "decoder.9.cross",
        plan("--choice", "decoder.9.cross=none/sdpa_math"),
        "pattern 'decoder.9.cross' matches no site; the model has aqr.0.cross, decoder.0.self, …",
    ),
    Bad(
        "plan",
        "bias",
        "soft",
        plan("--choice", "decoder.1.cross=soft/sdpa_math"),
        "unknown bias kind 'soft'; expected one of none, global, …",
    ),
    Bad(
        "plan",
        "implementation",
        "magic",
        plan("--choice", "decoder.1.cross=none/magic"),
        "unknown implementation 'magic'; expected one of reference, sdpa_math, …",
    ),
    Bad(
        "plan",
        "rank",
        "of sdpa_math",
        plan("--choice", "decoder.1.cross=none/sdpa_math@4"),
        "rank=4 with impl='sdpa_math': a positive rank goes with lowrank alone",
    ),
    Bad(
        "plan",
        "site",
        "a bias it cannot have",
        plan("--choice", "decoder.1.self=window/sdpa_math"),
        "site decoder.1.self cannot have the bias 'window'; it takes none",
    ),
]
CONFIGS = [
    Bad(
        "config",
        "file",
        "missing",
        lambda p: ["plan", str(p.tmp / "none.py")],
        "there is no config file …/none.py",
    ),
    Bad(
        "config",
        "file",
        "no Python",
        alone("model = dict("),
        "…/mine.py: cannot be read as a config (SyntaxError: …); correct it, or its _base_",
    ),
    Bad(
        "config",
        "file",
        "raises",
        alone("model = nothing"),
        "…/mine.py: cannot be read as a config (NameError: name 'nothing' is not defined); correct it, or its _base_",
    ),
    Bad(
        "config",
        "_base_",
        "missing",
        alone('_base_ = "./none.py"\n'),
        "…/mine.py: cannot be read as a config (FileNotFoundError: …none.py…); correct it, or its _base_",
    ),
    Bad("config", "model", "missing", alone("_x = 1\n"), "mine.py: the section 'model' is missing"),
    Bad(
        "config",
        "top level",
        "an unknown key",
        config("modle = dict()"),
        "mine.py: unknown keys modle; remove them, correct the name, or begin the name of a variable with '_'",
    ),
    Bad(
        "config",
        "model.type",
        "unknown",
        built('model = dict(type="CmtDetektor")'),
        "…/mine.py: no class of that name can be built (CmtDetektor is not in the mmdet3d::model registry. …); correct its type",
    ),
    Bad(
        "config",
        "model",
        "an unknown key",
        built("model = dict(image_sise=[96, 240])"),
        "CmtDetector does not read the key 'image_sise' (model.image_sise); remove it",
    ),
    Bad(
        "config",
        "pts_branch.grid_shape",
        "0 x 0",
        built("model = dict(pts_branch=dict(grid_shape=[0, 0]))"),
        "expected a grid of at least 1 x 1 pillars and minima below maxima, got [0, 0] and …",
    ),
    Bad(
        "config",
        "optim_wrapper.optimizer",
        "no lr",
        config('optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW"))'),
        "optim_wrapper.optimizer: expected a learning rate 'lr', got none",
    ),
    Bad(
        "config",
        "optim_wrapper",
        "an unknown key",
        config("optim_wrapper = dict(clip_gard=dict(max_norm=1))"),
        "optim_wrapper: unknown keys clip_gard; remove them or correct their names",
    ),
]
SETTINGS = [
    Bad(
        "settings",
        "config",
        "missing",
        settings(lambda s: replace(s, config="none.py")),
        "config: there is no …/none.py",
    ),
    Bad(
        "settings",
        "init",
        "missing",
        settings(lambda s: replace(s, init_checkpoint="none.safetensors")),
        "init checkpoint: there is no …/none.safetensors",
    ),
    Bad(
        "settings",
        "conditions",
        "fog",
        settings(lambda s: replace(s, conditions=("fog",))),
        "unknown sensor condition 'fog'; expected clean, lidar_sector, …",
    ),
    Bad(
        "settings",
        "conditions",
        "clean, clean",
        settings(lambda s: replace(s, conditions=("clean", "clean"))),
        "a sensor condition is named twice: clean, clean",
    ),
    Bad(
        "settings",
        "device",
        "cuda, on a CPU",
        settings(lambda s: replace(s, device="cuda")),
        "the settings ask for cuda, the session gives cpu",
    ),
    Bad(
        "settings",
        "data.train",
        "empty",
        data(train=()),
        "settings.data.train is empty; name a dataset (its kernels are profiled on it too)",
    ),
    Bad(
        "settings",
        "data.train",
        "no such folder",
        data(train=("/none",)),
        "dataset /none: no such folder; name another with --data PLACE",
    ),
    Bad(
        "settings",
        "data.val",
        "s3://…",
        data(val="s3://bucket/val"),
        "dataset s3://bucket/val: the official metric needs nuScenes tables on disk",
    ),
    Bad(
        "settings",
        "data.max_broken_frames",
        "-1",
        data(max_broken_frames=-1),
        "settings.data.max_broken_frames is -1; expected 0 or more",
    ),
    Bad(
        "settings",
        "data.train",
        "a password",
        data(train=("s3://me:" + "Xq7vPlanted" + "@bucket/x",)),
        "settings.data.train[0] holds a password in a URI, and settings are copied into files, rows and MLflow; take it out, and give it to the workers in their environment or by their machine's role",
    ),
    Bad("settings", "train.steps", "-2", steps(steps=-2), "settings.train.steps is -2; expected 0 or more"),
    Bad(
        "settings",
        "train.lr_scale",
        "0",
        steps(lr_scale=0.0),
        "settings.train.lr_scale is 0.0; expected a positive factor",
    ),
    Bad(
        "settings",
        "train.lidar_dropout_prob",
        "-0.1",
        steps(lidar_dropout_prob=-0.1),
        "settings.train.camera_dropout_prob and lidar_dropout_prob are 0.0 and -0.1; expected shares of the samples, together 1 at most",
    ),
    Bad(
        "settings",
        "train.amp",
        "on a CPU",
        steps(amp=True),
        "settings.train.amp (bfloat16 autocast) is for cuda; set amp=False on a CPU",
    ),
]
CHECKPOINTS = [
    Bad(
        "checkpoint",
        "file",
        "missing",
        checkpoint(lambda p: str(p.tmp / "none.safetensors")),
        "init checkpoint: there is no …/none.safetensors",
    ),
    Bad(
        "checkpoint",
        "file",
        "cut short",
        checkpoint(cut_weights),
        "…/weights.safetensors is not a whole safetensors file (…); copy or make it again",
    ),
    Bad(
        "checkpoint",
        "file",
        "text, named .pth",
        checkpoint(lambda p: p.written("x.pth", "no weights")),
        "…/x.pth is not a whole checkpoint of PyTorch (…); copy or make it again",
    ),
    Bad(
        "checkpoint",
        "state_dict",
        "an object that runs code",
        checkpoint(harmful_weights),
        "…/harmful.pth holds no named tensors; expected a state dict, at the top or under 'state_dict'",
    ),
    Bad(
        "checkpoint",
        "file",
        "a pickle",
        checkpoint(lambda p: p.written("x.pth", pickle.dumps(Harmful()))),
        "…/x.pth is not a whole checkpoint of PyTorch (it is no file of torch.save); copy or make it again",
    ),
    Bad(
        "checkpoint",
        "a tensor",
        "of another shape",
        checkpoint(other_weights),
        "…/other.safetensors is of another architecture than the model (1 of another shape: … ((3, 5), the model has …)); use the config that it was trained with",
    ),
    Bad(
        "checkpoint",
        "file",
        "no tensors",
        checkpoint(lambda p: (torch.save({}, p.tmp / "x.pth"), str(p.tmp / "x.pth"))[1]),
        "…/x.pth is of another architecture than the model (… missing: …); use the config that it was trained with",
    ),
]
STUDIES = [
    Bad(
        "rows.jsonl",
        "a line",
        "no JSON",
        report(line(1, lambda t: t[: len(t) // 2])),
        "…/rows.jsonl, line 2: not a row (…); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "metric",
        "metrik",
        report(line(1, renamed)),
        "…/rows.jsonl, line 2: not a row (expected the columns study, trial, plan, metric, …); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "rows.jsonl",
        "value",
        "a word",
        report(line(1, lambda t: json.dumps({**json.loads(t), "value": "high"}))),
        "…/rows.jsonl, line 2: not a row (value is 'high', expected a number); restore the file, or remove its folder and run again what wrote it",
    ),
    Bad(
        "study.json",
        "file",
        "cut short",
        report(lambda f: (f / "study.json").write_text('{"name": ')),
        "…/study.json is not JSON of a study (Expecting value: …); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "study.json",
        "file",
        "a list",
        report(lambda f: (f / "study.json").write_text("[]")),
        "…/study.json is not JSON of a study (expected an object, got a list); restore it, or delete it: `biaswise study run` writes it anew, and trials of the same recipe stay",
    ),
    Bad(
        "study.json",
        "file",
        "missing",
        report(lambda f: (f / "study.json").unlink()),
        "no study '…': neither … nor … holds a study.json; `biaswise study run` makes one",
    ),
    Bad(
        "study.json",
        "rule.confidence",
        "2",
        report(
            lambda f: (f / "study.json").write_text(
                (f / "study.json").read_text().replace('"confidence": 0.95', '"confidence": 2')
            )
        ),
        "…/study.json has a rule that cannot be read (the rule's confidence is 2; expected 0.5 <= it < 1)",
    ),
    Bad(
        "settings.json",
        "config",
        "no such file, for `study report --plan-config`",
        report_with_config("/none.py"),
        "! The plan is not printed as a config: there is no config file /none.py.",
    ),
    Bad(
        "study folder",
        "--runs-dir",
        "a file",
        lambda p: ["study", "run", "smoke", "--runs-dir", p.written("file", "")],
        "…/file/smoke: cannot write here (Not a directory); choose another --runs-dir",
    ),
]
CLUSTERS = [
    Bad(
        "cluster.yaml",
        "file",
        "missing",
        lambda p: ["cluster", "check", str(p.tmp / "cluster.yaml")],
        "…/cluster.yaml: cannot be read (No such file or directory)",
    ),
    Bad(
        "cluster.yaml",
        "file",
        "no YAML",
        lambda p: ["cluster", "check", p.written("cluster.yaml", "a: [")],
        "…/cluster.yaml: not YAML: while parsing a flow node …",
    ),
    Bad(
        "cluster.yaml",
        "file",
        "a list",
        lambda p: ["cluster", "check", p.written("cluster.yaml", "- 1")],
        "…/cluster.yaml: expected keys and values at its top level",
    ),
    Bad(
        "cluster.yaml",
        "max_workers",
        "max_worker",
        cluster("cluster.yaml", "\nmax_workers:", "\nmax_worker:"),
        "…/cluster.yaml: top level: Additional properties are not allowed ('max_worker' was unexpected)",
    ),
    Bad(
        "cluster.yaml",
        "idle_timeout_minutes",
        "0",
        cluster("cluster.yaml", "\nidle_timeout_minutes: ", "\nidle_timeout_minutes: 0  # "),
        "…/cluster.yaml: idle_timeout_minutes is 0; expected 1 to 60: less loses the machine between two trials, more bills for nothing",
    ),
    Bad(
        "ray-job.yaml",
        "kind",
        "RayJop",
        cluster("ray-job.yaml", "kind: RayJob", "kind: RayJop"),
        "…/ray-job.yaml: Ray refuses it: kind is RayJop; expected RayJob",
    ),
    Bad(
        "ray-job.yaml",
        "file",
        "empty",
        lambda p: ["cluster", "check", p.written("ray-job.yaml", "")],
        "…/ray-job.yaml: expected keys and values at its top level",
    ),
]
URIS = [
    Bad(
        "MLFLOW_TRACKING_URI",
        "scheme",
        "gopher",
        uri("gopher://host/x"),
        "warning: MLflow at gopher://host/x did not take everything (… got unsupported URI 'gopher://host/x' …); the rows are safe in …, send them later with `biaswise study sync`",
    ),
    Bad(
        "MLFLOW_TRACKING_URI",
        "database",
        "in a folder that is a file",
        uri("sqlite:////etc/hostname/mlflow.db"),
        "warning: MLflow at sqlite:////etc/hostname/mlflow.db did not take everything ([Errno 17] File exists: '/etc/hostname'); the rows are safe in …, send them later with `biaswise study sync`",
    ),
    Bad(
        "MLFLOW_TRACKING_URI",
        "database server",
        "nobody there",
        uri("postgresql://me@127.0.0.1:1/x"),
        "warning: MLflow at postgresql://me@127.0.0.1:1/x did not take everything (… Connection refused); the rows are safe in …, send them later with `biaswise study sync`",
    ),
    Bad(
        "MLFLOW_TRACKING_URI",
        "server",
        "sends a byte a second",
        trickling_server,
        "warning: MLflow at http://… did not take everything (no answer within 1 s); the rows are safe in …, send them later with `biaswise study sync`",
    ),
    Bad(
        "MLFLOW_TRACKING_URI",
        "server",
        "for `biaswise ui`",
        uri("http://127.0.0.1:1", "ui"),
        "the tracking server http://127.0.0.1:1 has its own UI; open that address in a browser",
    ),
    Bad(
        "MLFLOW_TRACKING_URI",
        "database",
        "none yet, for `biaswise ui`",
        uri("sqlite:////none/mlflow.db", "ui"),
        "there is no /none/mlflow.db; run a study or `biaswise study sync` first",
    ),
    Bad(
        "RAY_API_SERVER_ADDRESS",
        "job server",
        "nobody there",
        lambda p: ["study", "submit", "smoke", "--address", "http://127.0.0.1:1"],
        "job server http://127.0.0.1:1: nothing answers; `ray start --head` starts one here, `ray dashboard cluster.yaml` reaches one",
    ),
]
RUNS = [*WORDS, *PLANS, *CONFIGS, *SETTINGS, *CHECKPOINTS, *STUDIES, *CLUSTERS, *URIS]
