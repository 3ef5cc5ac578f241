"""Rows of the operator benchmark in long format, and their Parquet file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path


@dataclass(frozen=True)
class BenchRow:
    """One measured number.

    Attributes:
        suite: ``shapes`` (those of the decoder), or ``keys``, ``queries`` or ``memory`` (growth).
        shape: name of the shape.
        impl: the implementation. bias: the bias kind.
        mode: ``forward``, or ``forward_backward`` with gradients to q, k, v and the bias's weights.
        metric: ``latency`` (time on the device), ``host`` (time to launch), ``peak_extra`` (memory beyond
            inputs and gradients) or ``error_over_budget``.
        unit: ``ms``, ``MiB`` or ``ratio``.
        value: median; NaN if there is none, and then ``note`` gives the reason.
        low: 20th percentile. high: 80th percentile. n: number of repetitions.
        batch: B. heads: H. queries: Q. keys: K. head_size: D.
        dtype: of q, k and v.
        device: name of the GPU, or ``cpu``.
        versions: of PyTorch and the flash-attn packages, as ``name=version`` with semicolons.
        commit: of this repository.
        time: Unix time, seconds.
        note: why there is no value.
    """

    suite: str
    shape: str
    impl: str
    bias: str
    mode: str
    metric: str
    unit: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_size: int
    dtype: str
    device: str
    versions: str
    commit: str
    time: float
    value: float = nan
    low: float = nan
    high: float = nan
    n: int = 0
    note: str = ""


def write_rows(rows: Sequence[BenchRow], path: Path) -> None:
    """Write rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), path)


def read_rows(path: Path) -> list[BenchRow]:
    """Read the rows of a file that ``write_rows`` wrote."""
    import pyarrow.parquet as pq

    return [BenchRow(**record) for record in pq.read_table(path).to_pylist()]
