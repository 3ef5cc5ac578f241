"""What ``torch.compile`` needs to know about sizes."""

import torch


def static_size(size: int) -> int:
    """Return a size as a plain int.

    Under ``torch.compile`` a size may be a symbol, which stands for all values. Objections and tables of
    tiles need a value. This fixes the symbol: the graph is traced anew for another value.
    """
    return len(range(size)) if torch.compiler.is_compiling() else int(size)
