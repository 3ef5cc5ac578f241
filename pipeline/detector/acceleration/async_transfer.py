"""Transfers between host and device without a wait.

An ordinary copy to a GPU first waits until the GPU has finished all earlier work. If a model waits in every
layer, the GPU idles in every layer.
"""

from functools import lru_cache

import torch
from torch import Tensor


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
