"""Reads a pickle of plain values and numpy arrays without running what it holds, in bounded memory.

Of what a pickle may ask for, only the names in ``_ADMITTED`` are known, and none of them is the function of
that name: an array is made here from its parts (a plain dtype, a shape, and bytes of exactly that length),
never by numpy's ``__setstate__``, which trusts what it is given.
"""

import io
import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.bounded_pickle import (
    BOUNDED,
    CONTAINERS,
    BoundedUnpickler,
    Handler,
    check_keys,
    written_out,
)
from pipeline.data.safe_paths import read_bytes
from pipeline.data.sample import DataError

MAKE = "make it with mmdet3d's tools/create_data.py or `biaswise data infos`"
"""Advice in error messages about files that cannot be used."""

_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "S", "U"])
"""Dtypes of arrays: kind and bytes of an element; of texts the length follows."""

MAX_BYTES = 2**32
"""Largest pickle that is read; info files of all of nuScenes have 0.3 GB."""

_SHARED = 8
"""Most values for each byte of a file: one that is written out takes a byte, one that is shared two."""

_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError,
    OverflowError, RecursionError, NotImplementedError, struct.error,
)  # fmt: skip
"""Errors of the unpickler for a file that is cut short or no pickle."""


class _Ndarray:
    """Stands for the class ``numpy.ndarray``."""


class _Dtype:
    """A dtype that a pickle describes. Its state says the byte order, and may say nothing else."""

    def __init__(self, name: Any) -> None:
        plain = isinstance(name, str) and (name in _DTYPES or (name[:1] in "SU" and name[1:].isdecimal()))
        if not plain or len(name) > 6:
            raise pickle.UnpicklingError(f"an array of dtype {str(name)[:40]!r}; expected numbers or texts")
        self.made = np.dtype(name)

    def state(self, state: Any) -> None:
        _, order, sub, names, fields, size, alignment, _ = state  # flags say nothing about numbers and texts
        width = self.made.itemsize if self.made.kind in "SU" else -1
        if (sub, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array of a dtype with parts; expected numbers or texts")
        if size not in (-1, width) or alignment not in (-1, 1, 4):
            raise pickle.UnpicklingError("an array whose dtype has another size than its name says")
        self.made = self.made.newbyteorder(order)


class _Array:
    """An array whose content comes later in the pickle."""

    made: Any = None

    def state(self, state: Any) -> None:
        *_, shape, dtype, fortran, data = state
        self.made = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    """Make an array of a plain dtype from bytes of exactly its length."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of objects; expected numbers or texts")
    shape = tuple(int(size) for size in shape)
    if min(shape, default=0) < 0 or len(shape) > 8 or math.prod(shape) * dtype.made.itemsize != len(data):
        raise pickle.UnpicklingError(
            f"an array of shape {shape[:8]} and {len(data)} bytes, which do not agree"
        )
    if not dtype.made.itemsize:
        return np.zeros(shape if math.prod(shape) == 0 else (0,), dtype.made)
    return np.frombuffer(bytes(data), dtype.made).reshape(shape, order=order).copy()


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, ())[()]


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 spells bytes as a text in latin-1."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {str(encoding)[:40]!r}")
    return text.encode("latin-1")


def _members(values: Sequence[Any] = ()) -> set[Any]:
    if not isinstance(values, list):
        raise pickle.UnpicklingError("a set of something else than a list")
    check_keys(values)
    return set(values)


def _bytearray(content: Any = b"", encoding: str = "latin-1") -> bytearray:
    if not isinstance(content, bytes | str):  # bytearray(2**60) would allocate it
        raise pickle.UnpicklingError("a bytearray of a stated length")
    return bytearray(_encode(content, encoding) if isinstance(content, str) else content)


# numpy 1 wrote numpy.core, numpy 2 writes numpy._core; both name the same functions.
_ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): lambda name, *_: _Dtype(name),
    **{
        (f"numpy.{core}.{module}", name): made
        for core in ("core", "_core")
        for module, name, made in (
            ("multiarray", "scalar", _scalar),
            ("multiarray", "_reconstruct", lambda *_: _Array()),
            ("numeric", "_frombuffer", _array),  # protocol 5
        )
    },
    ("_codecs", "encode"): _encode,
    **{
        (builtins, name): made
        for builtins in ("builtins", "__builtin__")  # protocols 0 to 2 write the latter
        for name, made in (
            ("bytearray", _bytearray),
            ("bytes", lambda: b""),
            ("set", _members),
            ("frozenset", lambda values=(): frozenset(_members(values))),
        )
    },
    ("collections", "OrderedDict"): lambda: {},
}


def _build(reader: Any) -> None:
    """Give a dtype or an array its content."""
    state = reader.stack.pop()
    made = reader.stack[-1]
    if not isinstance(made, _Array | _Dtype):
        raise pickle.UnpicklingError("a state of something else than an array")
    made.state(state)
    if isinstance(made, _Array):
        reader.stack[-1] = made.made


def _reduce(reader: Any) -> None:
    """Call a function of ``_ADMITTED``."""
    arguments = reader.stack.pop()
    function = reader.stack[-1]
    if not callable(function) or function is _Ndarray or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a call of something else than a function")
    reader.stack[-1] = function(*arguments)


def _remembered(name: str) -> Handler:
    """Return the handler of an opcode that fetches a value from the memo: an array once it is whole."""
    original = getattr(pickle._Unpickler, name)

    def handler(reader: Any) -> None:
        original(reader)
        value = reader.stack[-1]
        if isinstance(value, _Array):
            reader.stack[-1] = value.made
        elif isinstance(value, CONTAINERS):
            plain = type(value) is tuple and not any(isinstance(part, CONTAINERS) for part in value)
            reader.shares = reader.shares or not plain

    return handler


_HANDLERS: Mapping[int, Handler] = {
    **BOUNDED,
    pickle.BUILD[0]: _build,
    pickle.REDUCE[0]: _reduce,
    pickle.GET[0]: _remembered("load_get"),
    pickle.BINGET[0]: _remembered("load_binget"),
    pickle.LONG_BINGET[0]: _remembered("load_long_binget"),
}


class _Reader(BoundedUnpickler):
    """An unpickler that knows the names in ``_ADMITTED`` alone.

    Attributes:
        shares: whether a container occurs more than once, but for tuples of plain values, such as shapes.
    """

    dispatch = _HANDLERS
    shares = False

    def find_class(self, module: str, name: str) -> Any:
        """Return an object of ``_ADMITTED``, or raise UnpicklingError."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module[:60]}.{name[:60]}, and only numpy arrays and plain values are admitted"
            ) from None


def unpickle(path: Path) -> Mapping[str, Any]:
    """Read a pickled dict of plain values and arrays. DataError if it is damaged or names anything else."""
    data = read_bytes(path, max_bytes=MAX_BYTES)
    try:
        reader = _Reader(io.BytesIO(data))
        content = reader.load()
        if reader.shares and isinstance(content, dict):
            written_out(content, _SHARED * len(data))
    except _BROKEN as error:
        told = str(error)[:300] if isinstance(error, pickle.UnpicklingError) else "not a whole pickle"
        raise DataError(f"{path}: refused: {told}; {MAKE}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dict")
    return content
