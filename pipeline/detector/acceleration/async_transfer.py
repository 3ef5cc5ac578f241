"""From host to device without waiting for it: a GPU that is waited for in every layer idles in every layer.

A plain copy to a GPU first waits until all that was asked of the GPU before is done.
"""

from functools import lru_cache

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory, which needs no wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@lru_cache(maxsize=64)  # a few constants per model and device
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers as a tensor on a device, copied there once. Do not write into it."""
    with torch.inference_mode(False):  # what is made in inference mode could not be used in training later
        return torch.tensor(values, dtype=dtype, device=device)


def download(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to the host, waiting for the device once."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # into pinned memory
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
