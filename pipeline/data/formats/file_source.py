"""A source that reads samples from the files of frame records."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.formats.decoding import load_sample, refuse_unnamed
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.sample import Sample
from pipeline.data.source import READ_ALL, Reading


class FileSource:
    """Samples read from the files of frame records.

    Args:
        records: frames, e.g. of ``read_frames``.
        reading: what is read of a frame.

    Raises:
        DataError: a frame names no image of a camera, and ``reading`` refuses that.
    """

    def __init__(self, records: Sequence[FrameRecord], reading: Reading = READ_ALL) -> None:
        self._records = [
            replace(
                record.with_valid_boxes() if reading.valid_only else record,
                sweeps=record.sweeps[: reading.sweeps],
            )
            for record in records
        ]
        self._reading = reading
        for record in records if reading.images else ():
            refuse_unnamed(record, reading.missing_cameras)
        self.tokens = [record.token for record in records]
        self.scenes = [record.scene for record in records]
        self.labels = [frozenset(record.labels.tolist()) for record in self._records]
        self.blocks: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        return load_sample(self._records[index], self._reading)
