"""Bad words, configs, plans, settings, recipes, checkpoints, rows, study folders, cluster files, URIs."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from place import CONFIG, Bad, Place, Words
from safetensors.torch import load_file, save_file

MINI = "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"


def plan(*words: str) -> Callable[[Place], Words]:
    return lambda place: ["plan", CONFIG, *words]


def config(text: str) -> Callable[[Place], Words]:
    return lambda place: ["plan", place.config(text)]


def alone(text: str) -> Callable[[Place], Words]:
    """A config file that inherits from nothing."""
    return lambda place: ["plan", place.written("mine.py", text)]


def train(*words: str) -> Callable[[Place], Words]:
    return lambda place: ["train", "smoke", "--local", "--out", str(place.tmp), *words]


def evaluate(place: Place, checkpoint: str, *words: str) -> Words:
    data = ["--data", str(place.good / "data"), "--conditions", "clean"]
    return ["evaluate", checkpoint, *data, "--out", str(place.tmp / "runs"), *words]


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
        from experiments.recipes import smoke
        from pipeline.preflight import check

        data = str(place.good / "data")
        first = smoke().trials[0]
        good = replace(first, data=replace(first.data, train=(data,), val=data))
        return lambda: check(change(good), place.tmp / "trial", torch.device("cpu"))

    return make


def data(**changes: Any) -> Callable[[Place], Callable[[], Any]]:
    return settings(lambda s: replace(s, data=replace(s.data, **changes)))


def steps(**changes: Any) -> Callable[[Place], Callable[[], Any]]:
    return settings(lambda s: replace(s, train=replace(s.train, **changes)))


def report(change: Callable[[Path], Any]) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        folder = place.study()
        change(folder)
        return ["report", str(folder)]

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
        return [*words] if words else ["sync", str(folder)]

    return make


WORDS = [
    Bad("command line", "recipe", "demmo", lambda p: ["study", "run", "demmo"], ""),
    Bad("command line", "study", "never run", lambda p: ["report", "nosuch", "--runs", str(p.tmp)], ""),
    Bad(
        "study resume",
        "recipe",
        "never run",
        lambda p: ["study", "resume", "smoke", "--runs", str(p.tmp)],
        "",
    ),
    Bad(
        "study run",
        "--concurrent",
        "0",
        lambda p: ["study", "run", "smoke", "--concurrent", "0", "--runs", str(p.tmp)],
        "",
    ),
    Bad(
        "study run",
        "--trials",
        "0",
        lambda p: ["study", "run", "smoke", "--trials", "0", "--runs", str(p.tmp)],
        "",
    ),
    Bad(
        "study run",
        "--gpu-hours",
        "-1",
        lambda p: ["study", "run", "smoke", "--gpu-hours", "-1", "--runs", str(p.tmp)],
        "",
    ),
    Bad(
        "study run",
        "--gpu-hours",
        "nan",
        lambda p: ["study", "run", "smoke", "--gpu-hours", "nan", "--runs", str(p.tmp)],
        "",
    ),
    Bad("study run", "--gpu-hours", "ten", lambda p: ["study", "run", "smoke", "--gpu-hours", "ten"], ""),
    Bad(
        "data synth",
        "--scenes",
        "mini_train",
        lambda p: ["data", "synth", "--root", str(p.tmp / "d"), "--scenes", "mini_train"],
        "",
    ),
    Bad(
        "data synth",
        "--scenes",
        "mini_trian=1",
        lambda p: ["data", "synth", "--root", str(p.tmp / "d"), "--scenes", "mini_trian=1"],
        "",
    ),
    Bad(
        "data synth",
        "--frames",
        "0",
        lambda p: ["data", "synth", "--root", str(p.tmp / "d"), "--frames", "0"],
        "",
    ),
    Bad(
        "data synth",
        "--workers",
        "0",
        lambda p: ["data", "synth", "--root", str(p.tmp / "d"), "--workers", "0"],
        "",
    ),
    Bad(
        "data synth",
        "--root",
        "holds a dataset",
        lambda p: ["data", "synth", "--root", str(p.dataset()), "--frames", "1"],
        "",
    ),
    Bad(
        "data draw",
        "--config",
        "has no train_pipeline",
        lambda p: ["data", "draw", str(p.good / "data"), "--config", CONFIG],
        "",
    ),
    Bad(
        "data draw",
        "--frames",
        "0",
        lambda p: ["data", "draw", str(p.good / "data"), "--frames", "0", "--out", str(p.tmp)],
        "",
    ),
    Bad(
        "throughput",
        "--plans",
        "quick",
        lambda p: ["throughput", CONFIG, "--plans", "quick", "--device", "cpu"],
        "",
    ),
    Bad("ui", "--port", "99999", lambda p: ["ui", "--port", "99999"], ""),
    Bad(
        "evaluate",
        "--conditions",
        "fog",
        lambda p: [*evaluate(p, MINI)[:4], "--conditions", "fog", "--out", str(p.tmp)],
        "",
    ),
    Bad("train", "--trial", "nosuch", train("--trial", "nosuch"), ""),
    Bad("train", "--set", "no '='", train("--set", "model.x"), ""),
    Bad("train", "--cfg-options", "unknown key", train("--cfg-options", "model.nosuch=1"), ""),
    Bad("train", "--workers", "0", train("--workers", "0"), ""),
]
PLANS = [
    Bad("plan", "text", "nonsense", train("--plan", "nonsense"), ""),
    Bad("plan", "pattern", "decoder.9.cross", plan("--set", "decoder.9.cross=none/sdpa_math"), ""),
    Bad("plan", "bias", "soft", plan("--set", "decoder.1.cross=soft/sdpa_math"), ""),
    Bad("plan", "implementation", "magic", plan("--set", "decoder.1.cross=none/magic"), ""),
    Bad("plan", "rank", "of sdpa_math", plan("--set", "decoder.1.cross=none/sdpa_math@4"), ""),
    Bad("plan", "site", "a bias it cannot have", plan("--set", "decoder.1.self=window/sdpa_math"), ""),
    Bad(
        "plan",
        "patterns",
        "two for one site",
        train("--plan", "decoder.*=none/sdpa_math;decoder.0.cross=none/sdpa_math;aqr.*=local/sdpa_math"),
        "",
    ),
    Bad("plan", "patterns", "none for a site", train("--plan", "decoder.*=none/sdpa_math"), ""),
]
CONFIGS = [
    Bad("config", "file", "missing", lambda p: ["plan", str(p.tmp / "none.py")], ""),
    Bad("config", "file", "no Python", alone("model = dict("), ""),
    Bad("config", "file", "raises", alone("model = nothing"), ""),
    Bad("config", "_base_", "missing", alone('_base_ = "./none.py"\n'), ""),
    Bad("config", "model", "missing", alone("x_ = 1\n"), ""),
    Bad("config", "top level", "a key nobody reads", config("modle = dict()"), ""),
    Bad("config", "model.type", "unknown", config('model = dict(type="CmtDetektor")'), ""),
    Bad("config", "model", "a key nobody reads", config("model = dict(image_sise=[96, 240])"), ""),
    Bad(
        "config",
        "pts_bbox_head.num_query",
        "a word",
        config('model = dict(pts_bbox_head=dict(num_query="many"))'),
        "",
    ),
    Bad(
        "config",
        "pts_branch.grid_shape",
        "0 x 0",
        config("model = dict(pts_branch=dict(grid_shape=[0, 0]))"),
        "",
    ),
    Bad(
        "config",
        "optim_wrapper.optimizer.type",
        "unknown",
        config('optim_wrapper = dict(optimizer=dict(type="AdamX"))'),
        "",
    ),
    Bad(
        "config",
        "optim_wrapper.clip_grad",
        "a list",
        config("optim_wrapper = dict(clip_grad=dict(max_nrom=1))"),
        "",
    ),
]
SETTINGS = [
    Bad("settings", "config", "missing", settings(lambda s: replace(s, config="none.py")), ""),
    Bad("settings", "init", "missing", settings(lambda s: replace(s, init="none.safetensors")), ""),
    Bad("settings", "conditions", "fog", settings(lambda s: replace(s, conditions=("fog",))), ""),
    Bad(
        "settings",
        "conditions",
        "clean, clean",
        settings(lambda s: replace(s, conditions=("clean", "clean"))),
        "",
    ),
    Bad("settings", "device", "cuda, on a CPU", settings(lambda s: replace(s, device="cuda")), ""),
    Bad("settings", "data.train", "empty", data(train=()), ""),
    Bad("settings", "data.train", "no such folder", data(train=("/none",)), ""),
    Bad("settings", "data.val", "s3://…", data(val="s3://bucket/val"), ""),
    Bad("settings", "data.skip_broken", "-1", data(skip_broken=-1), ""),
    Bad("settings", "data.train", "a password", data(train=("s3://me:" + "Xq7vPlanted" + "@bucket/x",)), ""),
    Bad("settings", "train.steps", "-1", steps(steps=-1), ""),
    Bad("settings", "train.lr_scale", "0", steps(lr_scale=0.0), ""),
    Bad("settings", "train.mask_lidar", "-0.1", steps(mask_lidar=-0.1), ""),
    Bad("settings", "train.amp", "on a CPU", steps(amp=True), ""),
]
CHECKPOINTS = [
    Bad("checkpoint", "file", "missing", checkpoint(lambda p: str(p.tmp / "none.safetensors")), ""),
    Bad("checkpoint", "file", "cut short", checkpoint(cut_weights), ""),
    Bad("checkpoint", "file", "text, named .pth", checkpoint(lambda p: p.written("x.pth", "no weights")), ""),
    Bad("checkpoint", "state_dict", "an object that runs code", checkpoint(harmful_weights), ""),
    Bad(
        "checkpoint",
        "file",
        "a pickle",
        checkpoint(lambda p: p.written("x.pth", pickle.dumps(Harmful()))),
        "",
    ),
    Bad("checkpoint", "a tensor", "of another shape", checkpoint(other_weights), ""),
    Bad(
        "checkpoint",
        "file",
        "no tensors",
        checkpoint(lambda p: (torch.save({}, p.tmp / "x.pth"), str(p.tmp / "x.pth"))[1]),
        "",
    ),
]
STUDIES = [
    Bad("rows.jsonl", "a line", "no JSON", report(line(1, lambda t: t[: len(t) // 2])), ""),
    Bad("rows.jsonl", "metric", "metrik", report(line(1, renamed)), ""),
    Bad(
        "rows.jsonl",
        "value",
        "a word",
        report(line(1, lambda t: json.dumps({**json.loads(t), "value": "high"}))),
        "",
    ),
    Bad("study.json", "file", "cut short", report(lambda f: (f / "study.json").write_text('{"name": ')), ""),
    Bad("study.json", "file", "a list", report(lambda f: (f / "study.json").write_text("[]")), ""),
    Bad("study.json", "file", "missing", report(lambda f: (f / "study.json").unlink()), ""),
    Bad(
        "study.json",
        "rule.confidence",
        "2",
        report(
            lambda f: (f / "study.json").write_text(
                (f / "study.json").read_text().replace('"confidence": 0.95', '"confidence": 2')
            )
        ),
        "",
    ),
    Bad(
        "study folder",
        "--runs",
        "a file",
        lambda p: ["study", "run", "smoke", "--runs", p.written("file", "")],
        "",
    ),
]
CLUSTERS = [
    Bad("cluster.yaml", "file", "missing", lambda p: ["cluster", "check", str(p.tmp / "cluster.yaml")], ""),
    Bad(
        "cluster.yaml",
        "file",
        "no YAML",
        lambda p: ["cluster", "check", p.written("cluster.yaml", "a: [")],
        "",
    ),
    Bad(
        "cluster.yaml", "file", "a list", lambda p: ["cluster", "check", p.written("cluster.yaml", "- 1")], ""
    ),
    Bad(
        "cluster.yaml",
        "max_workers",
        "max_worker",
        cluster("cluster.yaml", "\nmax_workers:", "\nmax_worker:"),
        "",
    ),
    Bad(
        "cluster.yaml",
        "idle_timeout_minutes",
        "0",
        cluster("cluster.yaml", "\nidle_timeout_minutes: ", "\nidle_timeout_minutes: 0  # "),
        "",
    ),
    Bad("ray-job.yaml", "kind", "RayJop", cluster("ray-job.yaml", "kind: RayJob", "kind: RayJop"), ""),
    Bad("ray-job.yaml", "file", "empty", lambda p: ["cluster", "check", p.written("ray-job.yaml", "")], ""),
]
URIS = [
    Bad("MLFLOW_TRACKING_URI", "scheme", "gopher", uri("gopher://host/x"), ""),
    Bad(
        "MLFLOW_TRACKING_URI",
        "database",
        "in a folder that is a file",
        uri("sqlite:////etc/hostname/mlflow.db"),
        "",
    ),
    Bad("MLFLOW_TRACKING_URI", "server", "for `biaswise ui`", uri("http://127.0.0.1:1", "ui"), ""),
    Bad(
        "MLFLOW_TRACKING_URI",
        "database",
        "none yet, for `biaswise ui`",
        uri("sqlite:////none/mlflow.db", "ui"),
        "",
    ),
    Bad(
        "RAY_API_SERVER_ADDRESS",
        "job server",
        "nobody there",
        lambda p: ["submit", "smoke", "--address", "http://127.0.0.1:1"],
        "",
    ),
]
RUNS = [*WORDS, *PLANS, *CONFIGS, *SETTINGS, *CHECKPOINTS, *STUDIES, *CLUSTERS, *URIS]
