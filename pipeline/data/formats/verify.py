"""Checks that a dataset or a folder of shards is complete and consistent, file by file."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.settings import CLASSES
from pipeline.data.boxes import points_inside
from pipeline.data.formats.decoding import load_sample, load_scan
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.nuscenes_tables import split_scenes
from pipeline.data.formats.records import read_each_record
from pipeline.data.formats.shard_manifest import checksum, read_manifest
from pipeline.data.formats.shards import ShardSource
from pipeline.data.images import refuse_gap
from pipeline.data.safe_paths import read_bytes
from pipeline.data.sample import CAMERAS, DataError, Sample
from pipeline.data.source import Reading
from pipeline.json_files import read_json

NEAR_M = 6.0
"""Boxes nearer than this may be below or between all cameras. Farther ones must be visible in an image."""

FEW_POINTS = 50
"""Frames with fewer points in boxes than this are not compared with the table's count."""

AGREEMENT = 0.5
"""Least share of the table's points that must be in the boxes. It is half, because a box that is shifted by a
rounded pose loses some points, while a wrong file or calibration loses nearly all."""

EVERYTHING = Reading(valid_only=False, missing_cameras="black")
"""What is checked of shards: all boxes; a camera may be missing, because the writer was told so."""

Progress = Callable[[int, int], None]
"""Called with the number of finished frames and the number of all frames."""


@dataclass(frozen=True)
class CheckReport:
    """Result of a check.

    Attributes:
        problems: one sentence per problem, which names the file or the frame.
        counts: frames, scenes, images, points, boxes, and boxes per class (``boxes/car``).
    """

    problems: tuple[str, ...]
    counts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def report(self) -> CheckReport:
        return CheckReport(tuple(self.problems), dict(self.counts))


def check(path: Path, version: str = "v1.0-mini", progress: Progress | None = None) -> CheckReport:
    """Check a dataset in nuScenes layout, an info file, or a folder of shards, whichever ``path`` is."""
    path = Path(path)
    if path.suffix != ".pkl" and not (path / version).is_dir() and any(path.glob("*.parquet*")):
        return check_shards(path, progress)
    return check_files(path, version, progress)


def check_files(root: Path, version: str, progress: Progress | None = None) -> CheckReport:
    """Open every file of every key frame of a nuScenes dataset or an info file.

    The links between tables must be valid, and images and points must decode, to their last pixel. Boxes must
    be finite with positive sizes, be visible in a camera, and hold the number of points of the table.

    Args:
        root: dataset root, or the info file.
        version: name of the tables folder.
        progress: called after each frame.
    """
    findings = _Findings()
    records = _sound_records(findings, Path(root), version)
    findings.counts["scenes"] = len({record.scene for record in records})
    for done, record in enumerate(records, start=1):
        try:
            sample = load_sample(record)
            for image in record.image_paths:
                if image is not None:
                    refuse_gap(read_bytes(image, record.root), str(image))
            _check_frame(findings, record, sample, load_scan(record) if record.sweeps else sample.points)
        except DataError as problem:
            findings.problems.append(str(problem))
        if progress:
            progress(done, len(records))
    if not records and not findings.problems:
        findings.problems.append(f"{root}: holds no frame; restore the tables, or generate them anew")
    return findings.report()


def _sound_records(findings: _Findings, root: Path, version: str) -> list[FrameRecord]:
    """Return the frames of which tables or info file say what they must, and note what the others say."""
    records: list[FrameRecord] = []
    try:
        for record in _read_each(findings, root, version):
            if isinstance(record, DataError):
                findings.problems.append(str(record))
            else:
                records.append(record)
    except FileNotFoundError:
        findings.problems.append(f"{root}/{version}: no nuScenes tables and no shards here; check the path")
    except DataError as problem:
        findings.problems.append(str(problem))
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        findings.problems.append(f"{root}/{version}: {problem}")
    return records


def _read_each(findings: _Findings, root: Path, version: str) -> Iterator[FrameRecord | DataError]:
    """Yield the frames of an info file, or of all splits of a dataset that have scenes in it."""
    if root.suffix == ".pkl":
        yield from read_each_record(root, version, "")
        return
    table = read_json(root / version / "scene.json", list)
    names = {str(scene["name"]) for scene in table}
    known: set[str] = set()
    for split in _splits(version):
        scenes = set(split_scenes(split))
        known |= scenes
        if names & scenes:
            yield from read_each_record(root, version, split)
    findings.problems += [f"{root / version}: {name} belongs to no split" for name in sorted(names - known)]


def check_shards(folder: Path, progress: Progress | None = None) -> CheckReport:
    """Check the checksums of a folder of shards, and every row of every split like a frame of a dataset."""
    findings = _Findings()
    manifests = sorted(Path(folder).glob("*.json"))
    if not manifests:
        findings.problems.append(f"{folder}: no manifest; the shards are unfinished, write them anew")
    for path in manifests:
        try:
            manifest = read_manifest(folder, path.stem)
            for entry in manifest["files"]:
                if checksum(folder, entry["name"]) != entry["sha256"]:
                    raise DataError(
                        f"{folder}/{entry['name']}: checksum differs from the manifest's; write it anew"
                    )
            findings.counts["scenes"] += len(set(manifest["scenes"]))
            _check_rows(findings, ShardSource(folder, path.stem, EVERYTHING), progress)
        except DataError as problem:
            findings.problems.append(str(problem))
    return findings.report()


def _splits(version: str) -> tuple[str, ...]:
    """Return the devkit's splits that together hold all scenes of a version."""
    for ending, splits in (("mini", ("mini_train", "mini_val")), ("test", ("test",))):
        if version.endswith(ending):
            return splits
    return ("train", "val")


def _check_rows(findings: _Findings, source: ShardSource, progress: Progress | None) -> None:
    for index in range(len(source)):
        try:
            record, sample = source.record(index), source[index]
            for path, jpeg in zip(record.image_paths, source.jpegs(index), strict=True):
                if jpeg is not None:
                    refuse_gap(bytes(jpeg), str(path))
            _check_frame(findings, record, sample, sample.points[sample.points[:, 4] == 0])
        except DataError as problem:
            findings.problems.append(str(problem))
        if progress:
            progress(index + 1, len(source))


def _check_frame(findings: _Findings, record: FrameRecord, sample: Sample, scan: NDArray[np.float32]) -> None:
    """Count one frame, and note its problems."""
    where = f"frame {record.token} of {record.scene}"
    findings.counts.update(frames=1, images=len(CAMERAS), points=len(sample.points), boxes=len(record.boxes))
    findings.counts.update(f"boxes/{CLASSES[label]}" for label in record.labels)
    boxes = record.boxes
    far = (np.hypot(boxes[:, 0], boxes[:, 1]) > NEAR_M) & (record.num_points > 0)
    unseen = far & ~_in_picture(boxes, sample)
    for index in np.flatnonzero(unseen):
        x, y = boxes[index, :2]
        findings.problems.append(
            f"{where}: box {index} ({CLASSES[record.labels[index]]} at {x:.1f}, {y:.1f} m) is in no camera's "
            "picture; the calibration or the box is wrong"
        )
    claimed = int(record.num_points.sum())
    counted = int(points_in_boxes(scan, boxes).sum())
    if claimed >= FEW_POINTS and counted < AGREEMENT * claimed:
        findings.problems.append(
            f"{where}: its boxes hold {counted} of the {claimed} points the tables claim; "
            f"{record.lidar_path} or the calibration does not belong to it"
        )


def _in_picture(boxes: NDArray[np.float32], sample: Sample) -> NDArray[np.bool_]:
    """Return (M,) bool: whether the centre or a corner of a box is visible in an image."""
    signs = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]) / 2
    local = signs * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    spots = np.stack(
        [cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1], local[..., 2]],
        axis=-1,
    )
    spots = np.concatenate([spots + boxes[:, None, :3], np.ones((*spots.shape[:2], 1))], axis=-1)
    pixels = np.einsum("vij,mpj->vmpi", sample.lidar2img, spots)
    before = pixels[..., 2] > 0.1  # m; nearer points are inside the lens
    depth = np.where(before, pixels[..., 2], 1)
    height, width = sample.images.shape[1:3]
    u, v = pixels[..., 0] / depth, pixels[..., 1] / depth
    within = before & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return np.asarray(within.any(axis=(0, 2)))


def points_in_boxes(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count the points (N, 5) in each box (M, 9) of the same frame; (M,)."""
    return np.array([len(points_inside(points, box)) for box in boxes], np.int64)
