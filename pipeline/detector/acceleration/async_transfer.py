"""Transfers between host and device without a wait.

An ordinary copy to a GPU first waits until the GPU has finished all earlier work. If a model waits in every
layer, the GPU idles in every layer.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor


def upload_beside(
    inputs: Mapping[str, Sequence[Tensor]], device: torch.device
) -> tuple[dict[str, list[Tensor]], "torch.cuda.Event | None"]:
    """Copy a batch to a device while the GPU still computes; the host waits for these copies alone.

    Args:
        inputs: lists of tensors, in any layout without gaps; those on the GPU already must be complete.
        device: of the model.

    Returns:
        The tensors on the device, contiguous, for use in the current stream; and an event that another stream
        can wait for, None on a CPU.
    """
    if device.type != "cuda":
        return {name: [x.to(device).contiguous() for x in given] for name, given in inputs.items()}, None
    main, ready = torch.cuda.current_stream(device), torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(_copies(device)):
        moved = {name: [x.to(device).contiguous() for x in given] for name, given in inputs.items()}
        ready.record()
    main.wait_event(ready)
    for tensors in moved.values():
        for x in tensors:
            x.record_stream(main)
    return moved, ready


@lru_cache
def _copies(device: torch.device) -> "torch.cuda.Stream":
    """Return the stream of ``upload_beside``."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory, so that the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@lru_cache(maxsize=64)  # a few constants per model and device
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers as a tensor on a device. It is cached: do not write into it."""
    with torch.inference_mode(False):  # training cannot use a tensor that was made in inference mode
        return torch.tensor(values, dtype=dtype, device=device)


def download(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to the host; the host waits for the device once."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # into pinned memory
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
