"""Opens a dataset of any format."""

from pathlib import Path

from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.infos.reader import InfoSource
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import DataError
from pipeline.data.source import READ_ALL, Reading, Source, is_remote


def open_source(root: str | Path, version: str, split: str, reading: Reading = READ_ALL) -> Source:
    """Open a dataset: an info file (``.pkl``), a folder or URI of shards, or a root in nuScenes layout.

    Args:
        root: path or URI of the dataset.
        version: nuScenes version, which is the name of the tables folder.
        split: split of the official devkit.
        reading: what is read of a frame.

    Raises:
        DataError: there is no such dataset, or it has no frame.
    """
    place = Path(root)
    try:
        there = is_remote(root) or place.exists()
    except OSError as problem:  # a name of 5,000 letters, a loop of links
        raise DataError(f"{str(root)[:200]}: cannot be opened ({problem.strerror})") from problem
    if not there:
        raise DataError(f"{str(root)[:200]}: no such dataset; `biaswise data synth` makes one")
    source: Source
    if place.suffix == ".pkl":
        source = InfoSource(place, reading=reading)
    elif (place / version).is_dir():
        source = FileSource(read_frames(place, version, split), reading)
    else:
        from pipeline.data.formats.shards import ShardSource  # pyarrow only for those who shard

        source = ShardSource(root, split, reading)
    if len(source) == 0:
        raise DataError(f"{root}: no frame of split {split!r}")
    return source
