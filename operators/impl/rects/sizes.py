"""Sizes of blocks and tiles, compile options, and the number of shares into which the keys are split."""

import math
from dataclasses import dataclass

import torch

MASK_KIND = 3  # ``launch.Kind.MASK``


@dataclass(frozen=True)
class Compile:
    """Compile options of one kernel.

    Attributes:
        stages: depth of the software pipeline of the loop over plain tiles.
        touched_stages: the same for the loop over touched tiles, whose loads are many and small.
        registers: limit per thread, so that more programs fit on a multiprocessor; None: no limit.
    """

    stages: int
    touched_stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """The keyword arguments of a launch."""
        return {"STAGES": self.stages, "TOUCHED_STAGES": self.touched_stages, "maxnreg": self.registers}


@dataclass(frozen=True)
class Blocks:
    """Sizes of a tile of scores, and the compile options of the kernels.

    Attributes:
        queries, keys: size of a tile of scores.
        warps: number of warps per program.
        forward, query_grad, key_grad: compile options of the three large kernels.
    """

    queries: int
    keys: int
    warps: int
    forward: Compile
    query_grad: Compile
    key_grad: Compile


MASK_SPLITS = 4
"""Shares of a mask's tiles: the fastest number of 1 to 8 at the decoder's shapes (docs/log.md)."""

INTERPRETED = Blocks(64, 32, 1, Compile(1, 1), Compile(1, 1), Compile(1, 1))
"""For the interpreter, where an operation costs the same at any size."""

_LARGE = Blocks(32, 32, 4, Compile(2, 1), Compile(2, 1), Compile(2, 1))
_MASK = Blocks(32, 32, 1, Compile(3, 3), Compile(3, 3), Compile(3, 3))
_TUNED = Blocks(64, 64, 4, Compile(3, 3, 128), Compile(3, 2, 128), Compile(3, 1, 168))


def blocks_for(kind: int, dtype: torch.dtype, head_size: int, device: str) -> Blocks:
    """Return the block sizes.

    They were tuned for bfloat16 and D = 32 on an H200 (docs/log.md). Elsewhere they work, untuned.
    """
    if device == "cpu":
        return INTERPRETED
    if dtype == torch.float32 or head_size > 64:
        return _LARGE  # 4-byte operands and long rows: shared memory and registers set the limit
    return _MASK if kind == MASK_KIND else _TUNED  # a mask reads few keys: small tiles fit its windows better


def choose_splits(programs: int, num_tiles: int, device: torch.device) -> int:
    """Return the number of shares of a block's tiles that costs least.

    Args:
        programs: blocks of queries times heads times batch.
        num_tiles: tiles of keys that a block reads; a share should hold a few of them.
        device: where the kernels run.
    """
    if device.type == "cpu":
        return min(2, max(1, num_tiles // 2))  # the interpreter: the fewest that still test a split
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    most = max(1, min(16, num_tiles // 4))  # partial results take splits x D x 4 bytes per query: 16 at most

    def cost(splits: int) -> float:
        # Fitted by eye to 28 settings on an H200 (docs/log.md). The terms: processors that idle at the end,
        # less overlap where a processor runs few programs, and a merge that takes as long as three tiles a
        # share.
        each = programs * splits / processors
        return math.ceil(each) / each * (1 + 0.41 / each) + 3 * splits / num_tiles

    return min(range(1, most + 1), key=cost)
