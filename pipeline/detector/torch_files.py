"""Reads named tensors from a file of ``torch.save`` without running what it holds.

A checkpoint of mmengine's Runner holds, beside tensors, what its hooks noted: history buffers, numpy
scalars, configs. Nothing of it is needed. Whatever is not a tensor, a plain value or a container becomes a
stand-in that does nothing, and is named. Tensors are read when they are asked for; the optimiser's never are.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.bounded_pickle import BOUNDED, BoundedUnpickler, Handler

STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Names of torch's classes of storages -> dtype of their elements."""


MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file of torch before 1.6."""

DAMAGE = (
    zipfile.BadZipFile, pickle.UnpicklingError, ArithmeticError, EOFError, OSError, LookupError, ValueError,
    TypeError, AttributeError, RecursionError, NotImplementedError,
)  # fmt: skip
"""Errors of a file that is cut short or of another kind."""


class TorchFileError(ValueError):
    """A file is not one of ``torch.save``, or holds a tensor that cannot be read."""


class StandIn:
    """Stands for an object that is not read. Whatever a pickle does to it is ignored."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ignore(self, *_: Any) -> None:
        """Do nothing."""

    append = extend = add = update = __setitem__ = ignore


@dataclass(frozen=True)
class _Storage:
    """Elements of one dtype in the file."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor that has not been read: a storage, and which of its elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _ZipRecords:
    """The parts of a file in the zip format (torch 1.6 and later)."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._root = self._find_root()
        self.reader = _Reader(io.BytesIO(self._record("data.pkl")))
        self.content: Any = self.reader.load()
        if self._root + "byteorder" in self._zip.namelist() and self._record("byteorder") != b"little":
            raise TorchFileError("its numbers are big-endian")

    def _find_root(self) -> str:
        roots = [name[: -len("data.pkl")] for name in self._zip.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0] + "constants.pkl" in self._zip.namelist():
            raise TorchFileError("it is a zip file of another kind")
        return roots[0]

    def _record(self, name: str) -> bytes:
        info = self._zip.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED:  # torch.save never compresses; a zip bomb does
            raise TorchFileError(f"its record {name[:60]} is compressed")
        return self._zip.read(info)

    def storage(self, key: str) -> bytes:
        """Return the bytes of a storage."""
        return self._record(f"data/{key}")


class _OldRecords:
    """The parts of a file of torch before 1.6: pickles one after another, then the storages."""

    def __init__(self, path: Path) -> None:
        stream = io.BytesIO(path.read_bytes())
        try:
            begins = [_Reader(stream).load(), _Reader(stream).load()]
        except DAMAGE as error:
            raise TorchFileError("it is no file of torch.save") from error
        if begins != [MAGIC, PROTOCOL]:
            raise TorchFileError("it is no file of torch.save")
        if not _Reader(stream).load()["little_endian"]:
            raise TorchFileError("its numbers are big-endian")
        self.reader = _Reader(stream)
        self.content: Any = self.reader.load()
        self._storages: dict[str, bytes] = {}
        for key in _Reader(stream).load():
            count = int.from_bytes(stream.read(8), "little")
            dtype = self.reader.storages[str(key)].dtype  # KeyError for one that no tensor is made of
            self._storages[str(key)] = stream.read(count * dtype.itemsize)

    def storage(self, key: str) -> bytes:
        """Return the bytes of a storage."""
        return self._storages[key]


class TorchFile:
    """The content of a file of ``torch.save``.

    Args:
        path: the file.

    Attributes:
        content: its object, with stand-ins and with tensors that have not been read.
        skipped: names of what stand-ins stand for.

    Raises:
        TorchFileError: it is cut short or of another kind.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._records = (_ZipRecords if zipfile.is_zipfile(path) else _OldRecords)(path)
        except TorchFileError:
            raise
        except DAMAGE as error:
            raise TorchFileError(f"{type(error).__name__}: {str(error)[:200]}") from error
        self.content: Any = self._records.content
        self.skipped: tuple[str, ...] = tuple(sorted(self._records.reader.skipped))
        self._read: dict[str, Tensor] = {}

    def named_tensors(self, value: Any) -> bool:
        """Whether a value of the file is a state dict: named tensors and nothing else."""
        return isinstance(value, dict) and all(
            isinstance(key, str) and isinstance(tensor, _View) for key, tensor in value.items()
        )

    def tensors(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Read the tensors of a state dict. Tensors that share elements in the file share them here.

        Raises:
            TorchFileError: a record is missing, or a tensor has elements outside its record.
        """
        return {key: self._tensor(key, view) for key, view in state.items()}

    def _tensor(self, key: str, view: _View) -> Tensor:
        storage = view.storage
        steps = [(size - 1) * stride for size, stride in zip(view.size, view.stride, strict=True)]
        least = min([*view.size, *view.stride, view.offset, storage.count], default=0)
        count = math.prod(view.size)
        if least < 0 or (count and view.offset + sum(steps) >= storage.count) or count > storage.count:
            raise TorchFileError(f"{key[:100]} has elements outside its {storage.count} in the file")
        if storage.key not in self._read:
            try:
                data = bytearray(self._records.storage(storage.key))
            except (KeyError, zipfile.BadZipFile) as error:
                raise TorchFileError(f"the elements of {key[:100]} are missing or damaged") from error
            if len(data) != storage.count * storage.dtype.itemsize:
                raise TorchFileError(
                    f"{key[:100]} should have {storage.count} elements, and has {len(data)} bytes"
                )
            self._read[storage.key] = (
                torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            )
        return self._read[storage.key].as_strided(view.size, view.stride, view.offset)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    numbers = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if isinstance(storage, StandIn):
        return StandIn(storage.name)
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in numbers):
        raise pickle.UnpicklingError("a tensor of something else than a storage")
    if len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor with another number of strides than of sizes")
    return _View(storage, offset, size, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_ADMITTED: Mapping[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
}


def _call(reader: Any) -> None:
    """Call one of ``_ADMITTED``; of a stand-in the result is a stand-in."""
    arguments = reader.stack.pop()
    function = reader.stack[-1]
    if isinstance(function, StandIn):
        reader.stack[-1] = StandIn(function.name)
    elif function in (OrderedDict, _rebuild_tensor, _rebuild_parameter) and isinstance(arguments, tuple):
        if function is OrderedDict and arguments:
            raise pickle.UnpicklingError("a mapping of a stated content")
        reader.stack[-1] = function(*arguments)
    else:
        raise pickle.UnpicklingError("a call of something else than a function")


def _call_with_keywords(reader: Any) -> None:
    reader.stack.pop()
    _call(reader)


def _ignore_state(reader: Any) -> None:
    """Drop a state: that of a state dict holds versions, that of a stand-in nothing that is needed."""
    reader.stack.pop()
    if not isinstance(reader.stack[-1], StandIn | OrderedDict | _View):
        raise pickle.UnpicklingError("a state of a plain value")


def _refer(reader: Any) -> None:
    """Note which storage is meant."""
    kind, dtype, key, _, count, *view = reader.stack.pop()  # before torch 1.6 with a view, which is None
    if view not in ([], [None]):
        raise pickle.UnpicklingError("a storage that is a view of another")
    if kind != "storage" or not isinstance(dtype, torch.dtype | StandIn) or type(count) is not int:
        raise pickle.UnpicklingError("a reference to something else than a storage")
    if isinstance(dtype, StandIn):
        reader.stack.append(StandIn(dtype.name))
    else:
        storage = _Storage(str(key), dtype, count)
        reader.storages[storage.key] = storage
        reader.stack.append(storage)


_HANDLERS: Mapping[int, Handler] = {
    **BOUNDED,
    pickle.REDUCE[0]: _call,
    pickle.NEWOBJ[0]: _call,
    pickle.NEWOBJ_EX[0]: _call_with_keywords,
    pickle.BUILD[0]: _ignore_state,
    pickle.BINPERSID[0]: _refer,
}


class _Reader(BoundedUnpickler):
    """An unpickler that makes stand-ins of what it does not know."""

    dispatch = _HANDLERS
    more_keys = (StandIn,)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.skipped: set[str] = set()
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return an object of ``_ADMITTED``, or a stand-in."""
        known = _ADMITTED.get(f"{module}.{name}")
        if known is None:
            self.skipped.add(f"{module}.{name}"[:100])
            return StandIn(f"{module}.{name}"[:100])
        return known
