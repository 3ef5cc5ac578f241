"""Reads key frames from Parquet shards, from disk or from any store that pyarrow supports.

``shard_manifest`` defines the format, and ``shard_writer`` writes it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.formats.decoding import assemble
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.shard_manifest import (
    FORMAT,
    POINTS,
    SCHEMA,
    STATISTICS,
    open_store,
    read_manifest,
)
from pipeline.data.formats.shard_schema import to_cloud, to_jpegs, to_record
from pipeline.data.sample import DataError, Sample
from pipeline.data.sensors import show
from pipeline.data.source import READ_ALL, Reading

OPEN_FILES = 16
"""Number of files that a process keeps open. Each holds 60 kB of footer; to open one takes a millisecond."""

Conditions = Sequence[tuple[str, str, Any]]
"""Conditions that must all hold: (column, ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` or ``in``, value)."""

Value = TypeVar("Value")


class _LruCache(Generic[Value]):
    """A cache of the most recently used values."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[Any, Value] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """Return the value of a key; it is made if it is missing."""
        if key not in self._held:
            self._held[key] = make()
            if len(self._held) > self.most:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "_held": OrderedDict()}  # each process opens its own


class ShardSource:
    """The frames of a split in a folder of shards, by index. They have the same bits as those of the files.

    (Except if points were written as float16.) Each process opens files by itself on the first use, so a
    source can be sent to loader processes.

    Args:
        folder: folder or URI of the shards.
        split: the split.
        reading: what is read of a frame. ``remove_close`` is not possible, because shards hold the joined
            points.
        where: select the frames that meet all these conditions on the columns ``STATISTICS``. Row groups
            whose statistics exclude them are not read.

    Attributes:
        tokens, scenes: one per frame.
        blocks: number of frames in each row group, in order; empty if ``reading.buffer`` is 0.

    Raises:
        DataError: there are no complete shards of that split, ``reading`` has ``remove_close``, or a
            condition is not possible.
    """

    def __init__(
        self, folder: Path | str, split: str, reading: Reading = READ_ALL, where: Conditions | None = None
    ) -> None:
        if reading.remove_close:
            raise DataError(
                f"{folder}: shards hold their sweeps in one cloud, remove_close=True cannot be met; read the "
                "dataset itself, or set remove_close=False in LoadPointsFromMultiSweeps as CMT has it"
            )
        manifest = read_manifest(folder, split)
        self.folder = folder
        self._reading = reading
        self._points = POINTS[manifest["points"]]
        self._names = [entry["name"] for entry in manifest["files"]]
        self._expected = {entry["name"]: entry["groups"] for entry in manifest["files"]}
        groups = [(number, i) for number, e in enumerate(manifest["files"]) for i in range(len(e["groups"]))]
        sizes = [size for entry in manifest["files"] for size in entry["groups"]]
        self._groups, self._first = groups, np.cumsum([0, *sizes])
        self._places = np.arange(self._first[-1]) if where is None else self._matching(where)
        self.tokens: Sequence[str] = tuple(manifest["tokens"][i] for i in self._places)
        self.scenes: Sequence[str] = tuple(manifest["scenes"][i] for i in self._places)
        owners = np.searchsorted(self._first, self._places, side="right")
        counts = np.unique(owners, return_counts=True)[1].tolist()
        self.blocks: Sequence[int] = tuple(counts) if reading.buffer else ()
        self._files: _LruCache[Any] = _LruCache(OPEN_FILES)
        # A buffer of frames spans this many groups, with a partial one at both ends, and one more.
        self._tables: _LruCache[Any] = _LruCache(-(-reading.buffer * len(counts) // max(1, sum(counts))) + 3)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        table, row, name = self._find(index)
        record = self._record(index, table, row, name)
        points = to_cloud(table, row, self._points, f"{name}: frame {record.token}")
        begins = np.diff(points[:, 4], prepend=np.nan) != 0  # first point of each sweep
        lags = np.unique(points[begins, 4])  # 0 is the key frame
        if len(lags) > self._reading.sweeps + 1:
            points = points[points[:, 4] <= lags[self._reading.sweeps]]
        record = record.with_valid_boxes() if self._reading.valid_only else record
        jpegs = to_jpegs(table, row) if self._reading.images else None
        return assemble(record, jpegs, points, self._reading.missing_cameras)

    @cached_property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame."""
        by_place: list[frozenset[int]] = []
        for name in self._names:
            table = self._open(name).read(columns=["labels", "valid"], use_threads=False)
            for labels, valid in zip(table["labels"].to_pylist(), table["valid"].to_pylist(), strict=True):
                pairs = zip(labels, valid, strict=True)
                by_place.append(frozenset(label for label, v in pairs if v or not self._reading.valid_only))
        return [by_place[place] for place in self._places]

    def records(self) -> Iterator[FrameRecord]:
        """Yield the records in order. Their paths name the place in the shards and cannot be opened."""
        for index in range(len(self)):
            yield self.record(index)

    def record(self, index: int) -> FrameRecord:
        """Return the record of a frame."""
        return self._record(index, *self._find(index))

    def jpegs(self, index: int) -> list[memoryview | None]:
        """Return the encoded images of a frame; None where the camera was missing."""
        table, row, _ = self._find(index)
        return to_jpegs(table, row)

    def _record(self, index: int, table: Any, row: int, name: str) -> FrameRecord:
        """Return the record of a row, which must be of the frame that the manifest lists."""
        record = to_record(table, row, f"{self.folder}/{name}")
        if (record.token, record.scene) != (self.tokens[index], self.scenes[index]):
            raise DataError(
                f"{self.folder}/{name}: row {row} is frame {record.token} of {record.scene}, the manifest "
                f"lists {self.tokens[index][:60]} of {self.scenes[index][:60]}; it is of other files"
            )
        return record

    def _find(self, index: int) -> tuple[Any, int, str]:
        """Return the table, the row in it and the file of a frame."""
        place = self._places[range(len(self))[index]]  # range checks the index and allows negative ones
        group = int(np.searchsorted(self._first, place, side="right")) - 1
        number, inner = self._groups[group]
        name = self._names[number]
        table = self._tables.get(group, lambda: self._read_group(name, inner))
        return table, int(place - self._first[group]), name

    def _matching(self, where: Conditions) -> NDArray[np.int64]:
        """Return the places of the frames that meet all conditions."""
        unknown = [column for column, _, _ in where if column not in STATISTICS]
        if unknown or not where:
            raise DataError(
                f"no statistics of {unknown or 'nothing'}; frames are chosen by {', '.join(STATISTICS)}"
            )
        store, path = open_store(self.folder)
        places: list[int] = []
        try:
            condition = pq.filters_to_expression(list(where))
            files = pads.dataset([f"{path}/{n}" for n in self._names], filesystem=store, format="parquet")
            numbers = {key: number for number, key in enumerate(self._groups)}
            for file, fragment in enumerate(files.get_fragments()):
                for part in fragment.split_by_row_group(condition):
                    first = self._first[numbers[file, part.row_groups[0].id]]
                    places += (first + _rows(part, condition)).tolist()
        except (pa.ArrowException, OSError, TypeError, ValueError) as problem:
            raise DataError(f"{self.folder}: no frames by {list(where)} ({problem})") from problem
        return np.array(places, np.int64)

    def _read_group(self, name: str, group: int) -> Any:
        try:
            return self._open(name).read_row_group(group, use_threads=False).combine_chunks()
        except (OSError, pa.ArrowException) as problem:
            raise DataError(
                f"{self.folder}/{name}: cannot be read ({problem}); write the shards anew"
            ) from problem

    def _open(self, name: str) -> Any:
        def opened() -> Any:
            store, path = open_store(self.folder)
            file = pq.ParquetFile(store.open_input_file(f"{path}/{name}"))
            self._refuse_other(name, file)
            return file

        return self._files.get(name, opened)

    def _refuse_other(self, name: str, file: Any) -> None:
        """Raise DataError if a file has other columns, or other row groups than the manifest says."""
        if not file.schema_arrow.remove_metadata().equals(SCHEMA):
            raise DataError(f"{self.folder}/{name}: has other columns than format {FORMAT}; write it anew")
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        if groups != self._expected[name]:
            raise DataError(
                f"{self.folder}/{name}: has {sum(groups)} rows in groups of {show(groups)}, its manifest "
                f"says {show(self._expected[name])}; write it anew"
            )


def _rows(group: Any, condition: Any) -> NDArray[np.int64]:
    """Return the indices of the rows of a row group that meet an expression."""
    table = group.to_table(columns=list(STATISTICS), use_threads=False)
    numbered = pads.dataset(table.append_column("row", pa.array(range(len(table)))))
    return numbered.to_table(columns=["row"], filter=condition, use_threads=False)["row"].to_numpy()
