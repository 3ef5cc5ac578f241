"""Imports of mm libraries without their own warnings, and without what they can do without."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# mmdet tries to import sklearn and skimage for three classes that are not ours, mmengine
# torch.distributed.optim for one. They do without if they cannot. All are large: sklearn imports pandas and
# scipy.stats, torch.distributed.optim imports FSDP and sympy. Every process of a study starts with these
# imports.
SPARED = ("sklearn", "skimage", "torch.distributed.optim")

# (category, start of the message) of warnings during the import of these libraries, which we cannot fix.
IMPORT_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (DeprecationWarning, "`torch.jit"),  # mmcv.ops decorates functions with torch.jit.script
    (DeprecationWarning, "invalid escape sequence"),  # docstrings of mmdet, seen when they are first compiled
    (SyntaxWarning, "invalid escape sequence"),  # the same under Python 3.12
    (DeprecationWarning, "'locale.getdefaultlocale' is deprecated"),  # ccimport, which spconv imports
    (
        FutureWarning,
        "`torch.cuda.amp.custom_",
    ),  # spconv 2.3.8 names its autograd functions' casts the old way
    (ImportWarning, "``MultiScaleDeformableAttention`` has been moved"),  # mmcv.cnn re-exports from mmcv.ops
)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Within the context, silence ``IMPORT_WARNINGS`` and make imports of ``SPARED`` fail."""
    with warnings.catch_warnings(), _hidden(SPARED):
        for category, start in IMPORT_WARNINGS:
            warnings.filterwarnings("ignore", message=start.replace("(", r"\("), category=category)
        yield


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Within the context, make imports of ``names`` fail, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    # None in sys.modules makes an import fail.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
