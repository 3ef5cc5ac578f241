"""What the machine does while a trial trains: CPU, memory, disk, network, and the GPU of each worker.

Every worker samples the machine on which it trains, in a thread of its own, into a file beside the rows.
Tracking sends the file later, so no tracking server is ever met here. The names are those of MLflow's own
monitor, so that MLflow shows them in its tab for system metrics. That monitor itself is not used: it sends to
the server from the process that trains, gives up for ever when the server does not answer once, and samples
all GPUs of the machine under every trial.
"""

import json
import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.errors import TrialError
from pipeline.json_files import JsonError, check_fields, parse_json, read_bytes

if TYPE_CHECKING:
    import torch

EVERY_S = 10.0
"""Seconds between two samples, as in MLflow, unless its environment variable says otherwise."""
INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
"""That variable: seconds."""
FILES = "system_*.jsonl"
"""The files of a trial, one per worker."""
MAX_BYTES = 2**28
"""Largest file that is read; a trial of ten hours has 3 MB a worker."""
MB = 1e6


@dataclass(frozen=True)
class SystemSample:
    """What one worker saw at one time.

    Attributes:
        time: Unix time, seconds.
        node: index of the machine among those of the trial.
        trials: number of trials that the worker trains at once; they share everything sampled here.
        metrics: MLflow's name, without ``system/`` -> number.
    """

    time: float
    node: int
    trials: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Worker:
    """Which worker samples.

    Attributes:
        rank: among the workers of the trial.
        node: index of its machine among those of the trial.
        first_of_node: whether it samples what all workers of its machine share.
        gpu: number of its GPU on its machine.
    """

    rank: int = 0
    node: int = 0
    first_of_node: bool = True
    gpu: int = 0


class SystemMonitor:
    """Samples until it is left; a context manager.

    Args:
        folders: of the trials that this worker trains; each gets the same file.
        device: that it trains on.
        worker: which worker it is.
        every_s: seconds between two samples; None: as the environment says.

    Raises:
        TrialError: the environment's interval is no positive number.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        device: "torch.device",
        worker: Worker | None = None,
        every_s: float | None = None,
    ) -> None:
        self._worker = worker or Worker()
        self._files = [folder / FILES.replace("*", str(self._worker.rank)) for folder in folders]
        self._gpu = _Gpu(device, self._worker.gpu) if device.type == "cuda" else None
        self._every_s = interval_of_environment() if every_s is None else every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-monitor", daemon=True)

    def __enter__(self) -> "SystemMonitor":
        """Start to sample."""
        self._thread.start()
        return self

    def __exit__(self, *info: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def leave(self, folder: Path) -> None:
        """Write no more samples to a trial, which has ended while others go on."""
        self._files = [file for file in self._files if file.parent != folder]

    def _sample(self) -> None:
        psutil.cpu_percent()  # the first call only begins the interval
        began = psutil.net_io_counters()
        while not self._over.wait(self._every_s):
            if not (files := self._files):
                return
            metrics = self._gpu.numbers() if self._gpu else {}
            with suppress(OSError, psutil.Error):  # where the system hides what it does
                metrics |= _of_machine(files[0].parent, began) if self._worker.first_of_node else {}
            sample = SystemSample(time.time(), self._worker.node, len(files), metrics)
            line = json.dumps(asdict(sample)) + "\n"
            for file in files if metrics else ():
                with suppress(OSError), file.open("a", encoding="utf-8") as out:  # the rows tell a full disk
                    out.write(line)


def interval_of_environment() -> float:
    """Return the seconds between two samples.

    Raises:
        TrialError: the environment variable is no positive number.
    """
    text = os.environ.get(INTERVAL, str(EVERY_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise TrialError(f"{INTERVAL}={text}: expected seconds, a number above 0")
    return seconds


def _of_machine(folder: Path, began: Any) -> dict[str, float]:
    """Return what all workers of a machine share; the disk is the one that holds the trial."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(folder)), psutil.net_io_counters()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / MB, 1),
        "system_memory_usage_percentage": round(memory.used / memory.total * 100, 1),
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": round(disk.used / MB, 1),
        "disk_available_megabytes": round(disk.free / MB, 1),
        "network_receive_megabytes": round((network.bytes_recv - began.bytes_recv) / MB, 3),
        "network_transmit_megabytes": round((network.bytes_sent - began.bytes_sent) / MB, 3),
    }


class _Gpu:
    """One GPU, through NVIDIA's management library: no CUDA call, so no capture of a graph is disturbed."""

    def __init__(self, device: "torch.device", number: int) -> None:
        import torch

        self._device, self._name = device, f"gpu_{number}"
        self._total = torch.cuda.get_device_properties(device).total_memory

    def numbers(self) -> dict[str, float]:
        """Return what the driver tells of the GPU; a part of a GPU (MIG) may tell less."""
        import pynvml
        import torch

        found = {}
        with suppress(ImportError, RuntimeError, pynvml.NVMLError):
            used = torch.cuda.device_memory_used(self._device)
            found["memory_usage_megabytes"] = round(used / MB, 1)
            found["memory_usage_percentage"] = round(used / self._total * 100, 1)
        with suppress(ImportError, RuntimeError, pynvml.NVMLError):
            found["utilization_percentage"] = torch.cuda.utilization(self._device)
        with suppress(ImportError, RuntimeError, pynvml.NVMLError):
            found["power_usage_watts"] = round(torch.cuda.power_draw(self._device) / 1000, 1)
        return {f"{self._name}_{key}": value for key, value in found.items()}


def read_samples(path: Path, start: int) -> list[tuple[SystemSample, int]]:
    """Read the samples of a file that begin at a byte, or after it; a line that is none is left out.

    Args:
        path: the file; it may be growing.
        start: byte at which a line begins.

    Returns:
        Each sample, and the byte after its line.

    Raises:
        JsonError: it is no regular file, or too large.
    """
    samples, end = [], start
    for line in read_bytes(path, MAX_BYTES, start).split(b"\n")[:-1]:
        end += len(line) + 1
        with suppress(JsonError):  # cut short by a crash: nothing but pictures is made of them
            plain = parse_json(line, dict)
            check_fields(SystemSample, plain)
            samples.append((SystemSample(**plain), end))
    return samples
