"""An interpreter of pickles in memory that is bounded by their file. Subclasses say what a name means.

It is ``pickle._Unpickler``, the one in Python: unlike that in C it has no table that a pickle can make as
large as it likes. Of its opcodes those of plain values are left.
"""

import gc
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Handler = Callable[[Any], None]
"""What an opcode does to the unpickler."""

_PLAIN = frozenset([str, bytes, int, float, bool, type(None)])
_KEYS: tuple[type, ...] = (str, bytes, int, float, bool, type(None), np.generic)
"""Types of keys and of members of sets. Nested tuples are not among them: their hash takes 2ⁿ steps."""

CONTAINERS = (dict, list, tuple, set, frozenset)


def check_keys(keys: Iterable[Any], more: tuple[type, ...] = ()) -> None:
    """Refuse keys of a dict, or members of a set, that are containers."""
    if _PLAIN.issuperset(map(type, keys)):  # nearly always, and five times as fast
        return
    if not all(isinstance(key, (*_KEYS, *more)) for key in keys):
        raise pickle.UnpicklingError("a container as a key or in a set")


def _bytearray8(reader: Any) -> None:
    """Read bytes before they are stored, not into a place of the stated length."""
    length = int.from_bytes(reader.read(8), "little")
    reader.append(bytearray(reader.read(length)))


def _checked(name: str) -> Handler:
    """Return the handler of an opcode, which first looks at the keys that it is given."""
    original = getattr(pickle._Unpickler, name)

    def handler(reader: Any) -> None:
        if name == "load_setitem":
            keys = reader.stack[-2:-1]
        else:
            keys = reader.stack if name in ("load_additems", "load_frozenset") else reader.stack[::2]
        check_keys(keys, reader.more_keys)
        original(reader)

    return handler


_UNUSED = (
    pickle.DUP, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.INST,
    pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.BUILD,
    pickle.REDUCE,
)  # fmt: skip
"""Opcodes that no pickle of plain values has."""

BOUNDED: Mapping[int, Handler] = {
    **{code: how for code, how in pickle._Unpickler.dispatch.items() if bytes([code]) not in _UNUSED},
    pickle.FRAME[0]: lambda reader: reader.read(8),  # all is in memory, so a frame is nothing but its length
    pickle.BYTEARRAY8[0]: _bytearray8,
    pickle.SETITEM[0]: _checked("load_setitem"),
    pickle.SETITEMS[0]: _checked("load_setitems"),
    pickle.DICT[0]: _checked("load_dict"),
    pickle.ADDITEMS[0]: _checked("load_additems"),
    pickle.FROZENSET[0]: _checked("load_frozenset"),
}
"""The opcodes of plain values, in bounded memory."""


class BoundedUnpickler(pickle._Unpickler):
    """An unpickler whose memory is bounded by its file. Subclasses say what a name, a call and a state mean.

    Attributes:
        more_keys: types of keys beside texts and numbers.
    """

    dispatch = BOUNDED  # type: ignore[assignment]  # a class variable in Python, a table here
    more_keys: tuple[type, ...] = ()

    def load(self) -> Any:
        """Read the pickle, as ``pickle._Unpickler.load`` does, without its second buffer for frames."""
        inner: Any = self
        inner.read, inner.readline, inner.readinto = inner._file_read, inner._file_readline, None
        inner.metastack, inner.stack, inner.proto = [], [], 0
        inner.append = inner.stack.append
        read, dispatch = inner.read, inner.dispatch
        collects = gc.isenabled()
        gc.disable()  # it would look through all that has been read, again and again
        try:
            while True:
                dispatch[read(1)[0]](inner)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        except struct.error as error:
            raise pickle.UnpicklingError("not a whole pickle") from error
        finally:
            if collects:
                gc.enable()


def written_out(top: Any, most: int) -> int:
    """Return the number of values of nested dicts, lists, tuples and sets, shared ones counted each time.

    Raises:
        pickle.UnpicklingError: there are more than ``most``, or a container is in itself.
    """
    sizes: dict[int, int] = {}  # of containers, by identity; 0 while their parts are counted
    waiting = [top]
    while waiting:
        value = waiting[-1]
        if sizes.get(id(value)):
            waiting.pop()
            continue
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
        inner = [part for part in parts if isinstance(part, CONTAINERS)]
        if id(value) not in sizes:
            sizes[id(value)] = 0
            waiting += [part for part in inner if not sizes.get(id(part))]
            if any(sizes.get(id(part)) == 0 for part in inner):
                raise pickle.UnpicklingError("a container that is in itself")
        else:
            sizes[id(value)] = 1 + len(parts) - len(inner) + sum(sizes[id(part)] for part in inner)
            if sizes[id(value)] > most:
                raise pickle.UnpicklingError("values shared so often that they exceed the file by far")
    return sizes[id(top)]
