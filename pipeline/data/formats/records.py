"""The frame records of a dataset whose files are on disk: nuScenes tables, or an info file."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.formats.frame_record import FrameRecord, all_sound
from pipeline.data.formats.infos.reader import read_each_info
from pipeline.data.formats.nuscenes_tables import read_each_frame
from pipeline.data.sample import DataError


def read_records(root: Path | str, version: str, split: str) -> list[FrameRecord]:
    """Read all key frames of a split, or of an info file, which is of one split.

    Args:
        root: dataset in nuScenes layout, or the ``.pkl`` file.
        version: nuScenes version, which is the name of the tables folder.
        split: split of the official devkit.

    Raises:
        DataError: a table, the file, or a value in it cannot be used.
    """
    return all_sound(read_each_record(root, version, split), str(root))


def read_each_record(root: Path | str, version: str, split: str) -> Iterator[FrameRecord | DataError]:
    """Yield every key frame of a split or an info file, or what is wrong with it; see ``read_records``."""
    place = Path(root)
    if place.suffix == ".pkl":
        return read_each_info(place, place.parent)
    return read_each_frame(place, version, split)
