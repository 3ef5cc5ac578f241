"""Decodes images, and finds those that are damaged: JPEG of cameras, PNG of an object database's crops."""

import io
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample import DataError

Encoded = bytes | memoryview
"""The bytes of an encoded image."""

_TAIL = 4096
"""Number of bytes at the end of a JPEG that are searched for its end marker; some writers pad with zeros."""

END = b"\xff\xd9"
"""The marker that ends a JPEG (EOI)."""

PIXELS_PER_BYTE = 512
"""Most pixels that a byte of a JPEG can hold: each block of 64 takes a bit at least (ITU-T T.81, F.1.2.1)."""

PNG_PIXELS_PER_BYTE = 8 * 1032
"""The same of a PNG: DEFLATE makes 1032 bytes of one at most (RFC 1951), and a pixel takes a bit at least."""

MAX_PIXELS = 2**26
"""Most pixels of an image; 200 MB when decoded. nuScenes' images have 1.4 million."""

FILL = 128
"""What a decoder gives to the pixels of blocks that a JPEG lacks: zero coefficients."""

_PNG = b"\x89PNG\r\n\x1a\n"

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that state an image's size (SOF0 to SOF15; T.81, table B.1)."""


def decode_image(data: Encoded, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG to (h, w, 3) uint8, BGR, in the orientation of the sensor: EXIF does not turn it.

    A calibration is of the pixels as the sensor wrote them.

    Raises:
        DataError: it is no JPEG, is cut short (some versions of OpenCV would fill the rest with grey), or
            claims more pixels than it can hold.
    """
    starts = data[:2] == b"\xff\xd8"
    whole = starts and bytes(data[-_TAIL:]).rstrip(b"\x00").endswith(END)
    size = jpeg_size(bytes(data)) if whole else None
    if size is None:
        kind = "is cut short" if starts else "is no JPEG image"
        raise DataError(f"{where}: {kind} ({len(data)} bytes); restore the file")
    image = _decode(data, size, PIXELS_PER_BYTE, where)
    if (image[-2:, -2:] == FILL).all():  # an image that ends early ends in this grey
        refuse_gap(bytes(data), where)
    return image


def decode_crop(data: bytes, where: str) -> NDArray[np.uint8]:
    """Decode the picture of an object, PNG or JPEG, as ``decode_image`` does; DataError likewise."""
    if not data.startswith(_PNG):
        return decode_image(data, where)
    return _decode(data, _png_size(data, where), PNG_PIXELS_PER_BYTE, where)


def _decode(data: Encoded, size: tuple[int, int], densest: int, where: str) -> NDArray[np.uint8]:
    """Decode an image that states this (width, height)."""
    most = min(densest * len(data), MAX_PIXELS)
    if size[0] * size[1] > most:
        told = f"its {len(data)} bytes can hold" if most < MAX_PIXELS else f"the {MAX_PIXELS} that are read"
        raise DataError(f"{where}: claims {size[0]} x {size[1]} pixels, more than {told}; restore the file")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as problem:
        raise DataError(f"{where}: OpenCV cannot decode {size} pixels ({problem.err})") from problem
    if image is None:
        raise DataError(f"{where}: is cut short ({len(data)} bytes); restore the file")
    return np.asarray(image, np.uint8)


def _png_size(data: bytes, where: str) -> tuple[int, int]:
    """Return the (width, height) of a PNG; DataError unless all its chunks have their checksums."""
    place, kind = len(_PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(data[place : place + 4], "big")
        body, kind = data[place + 4 : place + 8 + length], data[place + 4 : place + 8]
        place += 12 + length
        if place > len(data) or zlib.crc32(body) != int.from_bytes(data[place - 4 : place], "big"):
            raise DataError(f"{where}: is cut short or damaged ({len(data)} bytes); restore the file")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in pixels that a JPEG states; None if it states none above 0."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            height = int.from_bytes(data[place + 5 : place + 7], "big")
            width = int.from_bytes(data[place + 7 : place + 9], "big")
            return (width, height) if width and height else None
        filled = marker == 0xFF  # a fill byte before a marker
        place += 1 if filled else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def refuse_gap(data: bytes, where: str) -> None:
    """Raise DataError if a JPEG ends before its last pixel, although an end marker follows.

    A decoder fills such a rest with grey. What follows the last pixel of a whole image changes nothing, so
    bytes are put before the end marker: if the picture changes, it was not whole.
    """
    end = data.rindex(END)
    filler = bytes((37 * i + 11) % 251 for i in range(2048))  # no 255, which would begin a marker
    one, other = _picture(data), _picture(data[:end] + filler + data[end:])
    if one is None or other is None or not np.array_equal(one, other):
        raise DataError(f"{where}: is cut short before its end marker; restore the file")


def _picture(data: bytes) -> NDArray[np.uint8] | None:
    """Decode with Pillow, which keeps libjpeg from printing what it meets; None if it cannot."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
