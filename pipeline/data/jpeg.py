"""Decodes JPEG images, and finds those that are damaged."""

import io

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

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that state an image's size (SOF0 to SOF15; T.81, table B.1)."""


def decode_image(data: Encoded, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG to (h, w, 3) uint8, BGR, in the orientation of the sensor: EXIF does not turn it.

    A calibration is of the pixels as the sensor wrote them.

    Raises:
        DataError: it is no JPEG, or is cut short (some versions of OpenCV would fill the rest with grey).
    """
    starts = data[:2] == b"\xff\xd8"
    whole = starts and bytes(data[-_TAIL:]).rstrip(b"\x00").endswith(END)
    size = jpeg_size(bytes(data)) if whole else None
    if size and size[0] * size[1] > PIXELS_PER_BYTE * len(data):
        raise DataError(
            f"{where}: claims {size[0]} x {size[1]} pixels, more than its {len(data)} bytes can hold; "
            "restore the file"
        )
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if size else None
    except cv2.error as problem:
        raise DataError(f"{where}: OpenCV cannot decode {size} pixels ({problem.err})") from problem
    if image is None:
        kind = "is cut short" if starts else "is no JPEG image"
        raise DataError(f"{where}: {kind} ({len(data)} bytes); restore the file")
    return np.asarray(image, np.uint8)


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
    if not np.array_equal(_picture(data, where), _picture(data[:end] + filler + data[end:], where)):
        raise DataError(f"{where}: is cut short before its end marker; restore the file")


def _picture(data: bytes, where: str) -> NDArray[np.uint8]:
    """Decode with Pillow, which keeps libjpeg from printing what it meets."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise DataError(f"{where}: cannot be decoded ({problem}); restore the file") from problem
