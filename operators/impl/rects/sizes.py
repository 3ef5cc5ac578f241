"""Sizes of blocks and tiles, how Triton compiles over them, and into how many shares the keys are split."""

import math
from dataclasses import dataclass

import torch

MASK_KIND = 3  # ``launch.Kind.MASK``


@dataclass(frozen=True)
class Compile:
    """How Triton compiles one kernel.

    Attributes:
        stages: depth of the software pipeline of the plain loop.
        touched_stages: of the loop over touched tiles, whose loads are many and small.
        registers: limit per thread, so that more programs share a multiprocessor; None: no limit.
    """

    stages: int
    touched_stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """As keyword arguments of a launch."""
        return {"STAGES": self.stages, "TOUCHED_STAGES": self.touched_stages, "maxnreg": self.registers}


@dataclass(frozen=True)
class Blocks:
    """Sizes of the tiles of scores, and how the kernels over them are compiled.

    Attributes:
        queries, keys: of a tile of scores.
        warps: per program.
        forward, query_grad, key_grad: of the three large kernels.
    """

    queries: int
    keys: int
    warps: int
    forward: Compile
    query_grad: Compile
    key_grad: Compile


MASK_SPLITS = 4
"""Shares of a mask's tiles: of 1 to 8 the fastest at the decoder's shapes (docs/log.md)."""

INTERPRETED = Blocks(64, 32, 1, Compile(1, 1), Compile(1, 1), Compile(1, 1))
"""For the interpreter, whose cost is per operation, whatever its size."""

_LARGE = Blocks(32, 32, 4, Compile(2, 1), Compile(2, 1), Compile(2, 1))
_MASK = Blocks(32, 32, 1, Compile(3, 3), Compile(3, 3), Compile(3, 3))
_TUNED = Blocks(64, 64, 4, Compile(3, 3, 128), Compile(3, 2, 128), Compile(3, 1, 168))


def blocks_for(kind: int, dtype: torch.dtype, head_size: int, device: str) -> Blocks:
    """Choose block sizes. Measured for bfloat16 and D = 32 on an H200 (docs/log.md); safe elsewhere."""
    if device == "cpu":
        return INTERPRETED
    if dtype == torch.float32 or head_size > 64:
        return _LARGE  # 4-byte operands and long rows: shared memory and registers set the limit
    return _MASK if kind == MASK_KIND else _TUNED  # few keys matter to a mask: small tiles fit closer


def choose_splits(programs: int, num_tiles: int, device: torch.device) -> int:
    """Cut every block's tiles into the number of shares that costs least.

    Args:
        programs: blocks of queries times heads times batch.
        num_tiles: tiles of keys of a block that are read; a share should hold a few.
        device: where they run.
    """
    if device.type == "cpu":
        return min(2, max(1, num_tiles // 2))  # the interpreter: as few as let the tests see a split
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    most = max(1, min(16, num_tiles // 4))  # 16 x D x 4 bytes of partial results a query is what we spend

    def cost(splits: int) -> float:
        # Fitted by eye to 28 settings on an H200 (docs/log.md): processors that stay idle at the end, less
        # overlap where a processor sees few programs, and a merge that takes as long as three tiles a share.
        each = programs * splits / processors
        return math.ceil(each) / each * (1 + 0.41 / each) + 3 * splits / num_tiles

    return min(range(1, most + 1), key=cost)
