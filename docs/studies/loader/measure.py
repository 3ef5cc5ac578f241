"""Our loader on shards against mmdet3d's file pipeline: samples per second, first batch, memory.

Generates data, then runs each reader in a process of its own, interleaved, cold (page cache dropped) and
warm, and on the same frames repeated to 200, 2,000 and 20,000. Both sides decode, resize and crop six
images and read the points of a frame; the script first checks that images and points are equal. Example:

    python docs/studies/loader/measure.py --out runs/loader

The numbers in README.md were made at the commit that it names. The script runs on today's code.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

READERS = ("mmdet3d", "files", "shards", "shards_buffer")
BATCH, WORKERS = 4, 2
BUFFER = 64
SIZE = (96, 240)
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
VERSION, SPLIT = "v1.0-mini", "mini_train"
CUT = {
    "H": 225, "W": 400, "final_dim": SIZE, "resize_lim": (0.6, 0.6), "bot_pct_lim": (0.0, 0.0),
    "rot_lim": (0.0, 0.0), "rand_flip": False,
}  # fmt: skip


def main() -> None:
    """Make the data, measure, write summary.json and loader.svg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/loader"))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--samples", type=int, default=320, help="per run")
    parser.add_argument("--growth", type=int, default=800, help="samples per run of the growth")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000, 20000])
    parser.add_argument("--child", nargs=3, metavar=("READER", "FRAMES", "SAMPLES"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--grow", nargs="+", default=["mmdet3d", "shards"], help="readers whose memory is taken"
    )
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(asked.out, asked.child[0], int(asked.child[1]), int(asked.child[2]))))
        return
    make(asked.out, asked.sizes)
    compare(asked.out)
    for reader in READERS:
        OPEN[reader](asked.out, asked.sizes[0])  # imports, once for all forks
    runs: list[dict[str, Any]] = []
    for repeat in range(asked.repeats):
        for state in ("cold", "warm"):
            for reader in READERS[repeat % len(READERS) :] + READERS[: repeat % len(READERS)]:
                runs.append(forked(asked.out, reader, asked.sizes[0], asked.samples, state))
    for frames in asked.sizes:
        runs += [fresh(asked.out, reader, frames, asked.growth) for reader in asked.grow]
    summary = {"machine": f"{os.cpu_count()} cores", "runs": runs, "table": tabulate(runs)}
    (asked.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for row in summary["table"]:
        print(row)
    draw(runs, asked.out / "loader.svg")


def make(out: Path, sizes: list[int]) -> None:
    """Generate 160 training frames once, and info files and shards of them, repeated to each size."""
    from pipeline.data.formats.infos.writer import write_infos
    from pipeline.data.formats.nuscenes_tables import read_frames
    from pipeline.data.formats.shard_writer import write_shards
    from pipeline.data.synthetic import generate

    data = out / "data"
    if not (data / VERSION).is_dir():
        generate(data, seed=7)
        write_shards(data, VERSION, SPLIT, out / "shards")
    records = read_frames(data, VERSION, SPLIT)
    for frames in sizes:
        info = data / f"infos_{frames}.pkl"
        if not info.exists():
            write_infos([records[i % len(records)] for i in range(frames)], info, VERSION)
        if not (out / f"shards_{frames}" / f"{SPLIT}.json").exists():
            repeat_shards(out / "shards", out / f"shards_{frames}", frames)


def repeat_shards(shards: Path, out: Path, frames: int) -> None:
    """Make a folder of at least so many frames, whose files are those of another under many names."""
    held = json.loads((shards / f"{SPLIT}.json").read_text())
    files, tokens, scenes = [], [], []
    out.mkdir(parents=True, exist_ok=True)
    first = 0
    while len(tokens) < frames:
        entry = held["files"][len(files) % len(held["files"])]
        first = 0 if entry is held["files"][0] else first
        name = f"{SPLIT}-{len(files):05d}.parquet"
        (out / name).unlink(missing_ok=True)
        os.link(shards / entry["name"], out / name)
        files.append({**entry, "name": name})
        tokens += held["tokens"][first : first + entry["rows"]]
        scenes += held["scenes"][first : first + entry["rows"]]
        first += entry["rows"]
    made = {**held, "files": files, "tokens": tokens, "scenes": scenes}
    (out / f"{SPLIT}.json").write_text(json.dumps(made))


def forked(out: Path, reader: str, frames: int, samples: int, state: str) -> dict[str, Any]:
    """Run a reader in a fork of this process, which has imported all; cold: no data in the page cache."""
    if state == "cold":
        drop_caches(out)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=lambda: sender.send(measure(out, reader, frames, samples, watched=False))
    )
    process.start()
    sender.close()
    found = {"state": state, **receiver.recv()}
    process.join()
    print(json.dumps(found), flush=True)
    return found


def fresh(out: Path, reader: str, frames: int, samples: int) -> dict[str, Any]:
    """Run a reader in a process of its own, for its memory."""
    words = [sys.executable, __file__, "--out", str(out), "--child", reader, str(frames), str(samples)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    found = {"state": "growth", **json.loads(done.stdout.splitlines()[-1])}
    print(json.dumps(found), flush=True)
    return found


def drop_caches(out: Path) -> None:
    """Take the data's files out of the page cache; libraries stay, so that start-up is alike."""
    os.sync()
    for path in out.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(out: Path, reader: str, frames: int, samples: int, watched: bool = True) -> dict[str, Any]:
    """Load samples; return their rate, the seconds until the first batch, and the peak of all processes.

    Watching the memory costs a tenth of a core, so rates are measured without.
    """
    import torch

    torch.set_num_threads(1)
    opened = OPEN[reader](out, frames)  # imports happen here and are not counted
    watch = Memory() if watched else None
    spent = cpu_s()
    begun, steps = time.perf_counter(), -(-samples // BATCH)
    batches = opened()(steps)
    next(batches)
    first = time.perf_counter() - begun
    for _ in batches:
        pass
    seconds = time.perf_counter() - begun
    rest = seconds - first
    del batches  # ends the loader processes, whose time counts once they have ended
    return {
        "reader": reader,
        "frames": frames,
        "samples_per_s": (steps - 1) * BATCH / rest,
        "samples_per_s_with_start": steps * BATCH / seconds,
        "cpu_ms_per_sample": 1e3 * (cpu_s() - spent) / (steps * BATCH),
        "first_batch_s": first,
        **({"peak_pss_mib": watch.stop()} if watch else {}),
    }


def cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


class Memory:
    """Samples the proportional set size of this process and its children, in a thread."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self.peak = max(self.peak, sum(map(pss_mib, family(os.getpid()))))

    def stop(self) -> float:
        """Return the largest sum seen, MiB."""
        self._over.set()
        self._thread.join()
        return self.peak


def family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for inner in tasks.read_text().split():
            yield from family(int(inner))


def pss_mib(pid: int) -> float:
    """Return the proportional set size of a process; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return int(text.partition("\nPss:")[2].split()[0]) / 1024


Batches = Callable[[int], Iterator[Any]]


def open_ours(out: Path, frames: int, shards: bool, buffer: int = 0) -> Callable[[], Batches]:
    """Return what opens our loader."""
    from pipeline.data.formats.file_source import FileSource
    from pipeline.data.formats.nuscenes_tables import open_tables, read_frames
    from pipeline.data.formats.shards import ShardSource
    from pipeline.data.loading.batches import training_batches
    from pipeline.data.loading.sampler import BatchOrder
    from pipeline.data.source import Reading

    open_tables(out / "data", VERSION)  # imports the devkit

    def opened() -> Batches:
        if shards:
            source = ShardSource(out / f"shards_{frames}", SPLIT, Reading(buffer=buffer))
        else:
            records = read_frames(out / "data", VERSION, SPLIT)
            source = FileSource([records[i % len(records)] for i in range(frames)])
        order = BatchOrder(len(source), BATCH, 0, 1, 0, tuple(source.blocks), buffer)
        return lambda steps: training_batches(source, order, prepare(), 0, steps, WORKERS)

    return opened


def prepare() -> Any:
    """Return what is done to a sample of ours: as mmdet3d's pipeline below."""
    from pipeline.data.augmentation.pipeline_steps import (
        LoadAnnotations3D,
        ObjectRangeFilter,
        PointsRangeFilter,
        ResizeCropFlipImage,
    )
    from pipeline.data.augmentation.train_pipeline import TrainPipeline

    steps = (
        LoadAnnotations3D(),
        PointsRangeFilter(RANGE),
        ObjectRangeFilter(RANGE),
        ResizeCropFlipImage(CUT, training=False),
    )
    return TrainPipeline(steps)


def open_mmdet3d(out: Path, frames: int) -> Callable[[], Batches]:
    """Return what opens mmdet3d's NuScenesDataset in torch's DataLoader, as its Runner does."""
    import numpy as np
    import torch
    from mmengine.dataset import pseudo_collate

    build = mmdet3d_dataset(out)

    def opened() -> Batches:
        dataset = build(frames)

        def batches(steps: int) -> Iterator[Any]:
            rng, order = np.random.default_rng(0), []
            while len(order) < steps * BATCH:
                order += rng.permutation(len(dataset)).tolist()
            return iter(
                torch.utils.data.DataLoader(
                    dataset,
                    batch_size=BATCH,
                    sampler=order[: steps * BATCH],
                    num_workers=WORKERS,
                    collate_fn=pseudo_collate,
                    worker_init_fn=one_thread,
                )
            )

        return batches

    return opened


def one_thread(_: int) -> None:
    """Keep OpenCV from starting threads in a loader process; mmengine sets it so, too."""
    import cv2

    cv2.setNumThreads(0)


def mmdet3d_dataset(out: Path) -> Callable[[int], Any]:
    """Return what builds mmdet3d's dataset of a size; the resize is two lines of OpenCV, without copies."""
    import cv2
    from mmcv.transforms import BaseTransform
    from mmdet3d.registry import DATASETS, TRANSFORMS
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from pipeline.detector import runner  # noqa: F401  registers what the config names

    class Cut(BaseTransform):
        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            results["img"] = [cv2.resize(image, (240, 135))[39:] for image in results["img"]]
            results["img_shape"] = SIZE
            return results

    TRANSFORMS.register_module(name="LoaderStudyCut", module=Cut, force=True)
    init_default_scope("mmdet3d")
    MMLogger.get_instance("loader", log_level="ERROR")
    config = Config.fromfile("experiments/configs/cmt_aqr_pillar_mini_runner.py").train_dataloader.dataset
    wanted = ("LoadPointsFromFile", "LoadMultiViewImageFromFiles", "LoadAnnotations3D")
    filters = ("PointsRangeFilter", "ObjectRangeFilter")
    steps = [step for step in config.pipeline if step.type in (*wanted, *filters)]
    pack = [step for step in config.pipeline if step.type == "Pack3DDetInputs"]
    config.pipeline = [*steps, {"type": "LoaderStudyCut"}, *pack]
    config.data_root = f"{out}/data/"

    def build(frames: int) -> Any:
        config.ann_file = f"infos_{frames}.pkl"
        return DATASETS.build(config)

    return build


OPEN: dict[str, Callable[[Path, int], Callable[[], Batches]]] = {
    "mmdet3d": open_mmdet3d,
    "files": lambda out, frames: open_ours(out, frames, shards=False),
    "shards": lambda out, frames: open_ours(out, frames, shards=True),
    "shards_buffer": lambda out, frames: open_ours(out, frames, shards=True, buffer=BUFFER),
}


def compare(out: Path) -> None:
    """Fail unless mmdet3d's pipeline and ours make the same images and points of the same frames."""
    import numpy as np

    from pipeline.data.formats.shards import ShardSource

    dataset = mmdet3d_dataset(out)(200)
    source, change = ShardSource(out / "shards", SPLIT), prepare().at(0)
    for index in (0, 7, 159):
        theirs, ours = dataset[index]["inputs"], change(source[index], np.random.default_rng(0))
        images = np.stack([image.numpy() for image in theirs["img"]]).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(images, ours.images)
        np.testing.assert_array_equal(theirs["points"].numpy()[:, :4], ours.points[:, :4])
    print("images and points are equal")


def tabulate(runs: list[dict[str, Any]]) -> list[str]:
    """Return the medians, one line a reader, state and size."""
    lines = []
    keys = dict.fromkeys((run["state"], run["frames"], run["reader"]) for run in runs)
    for state, frames, reader in keys:
        held = [r for r in runs if (r["state"], r["frames"], r["reader"]) == (state, frames, reader)]
        rates = [run["samples_per_s"] for run in held]
        first, cpu = (median(run[key] for run in held) for key in ("first_batch_s", "cpu_ms_per_sample"))
        peak = f"{held[0]['peak_pss_mib']:.0f}" if state == "growth" else ""
        spread = f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
        lines.append(f"| {state} | {frames} | {reader} | {spread} | {cpu:.1f} | {first:.2f} | {peak} |")
    return lines


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw rates and memory over the number of frames."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, reader in enumerate(READERS):
        for state, offset in (("cold", -0.2), ("warm", 0.2)):
            held = [r["samples_per_s"] for r in runs if (r["reader"], r["state"]) == (reader, state)]
            colour = "C0" if state == "cold" else "C1"
            left.scatter(
                [place + offset] * len(held), held, color=colour, s=14, label=state if not place else None
            )
        grown = [r for r in runs if r["reader"] == reader and r["state"] == "growth"]
        if grown:
            right.plot([r["frames"] for r in grown], [r["peak_pss_mib"] for r in grown], "o-", label=reader)
    left.set(xticks=range(len(READERS)), xticklabels=READERS, ylabel="samples/s", ylim=(0, None))
    right.set(xscale="log", xlabel="frames", ylabel="peak PSS of all processes, MiB", ylim=(0, None))
    left.legend(frameon=False)
    right.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
