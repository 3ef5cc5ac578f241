"""JPEG images: decoded as the sensor wrote them, or refused."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.jpeg import END, decode_image, jpeg_size, refuse_gap
from pipeline.data.sample import DataError

KINDS = {
    "baseline": (),
    "progressive": (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart markers": (cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
}


def encoded(kind: str = "baseline", size: tuple[int, int] = (160, 90)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (9, 16, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, size), KINDS[kind])[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_image_has_no_gap(kind: str) -> None:
    for data in (encoded(kind), encoded(kind) + b"\0" * 30):
        refuse_gap(data, "x.jpg")
        assert decode_image(data, "x.jpg").shape == (90, 160, 3)


@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_ends_early_is_found_despite_its_end_marker(kind: str, share: float) -> None:
    data = encoded(kind)
    with pytest.raises(DataError, match=r"x\.jpg: is cut short before its end marker"):
        refuse_gap(data[: int(share * len(data))] + END, "x.jpg")


def test_exif_does_not_turn_the_picture() -> None:
    """The calibration is of the pixels as they were written."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    note, plain = exif.tobytes(), encoded()
    marked = plain[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note + plain[2:]
    turned = cv2.imdecode(np.frombuffer(marked, np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape == (160, 90, 3), "OpenCV turns it by itself"
    np.testing.assert_array_equal(decode_image(marked, "x.jpg"), decode_image(plain, "x.jpg"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_read_from_the_header(kind: str) -> None:
    assert jpeg_size(encoded(kind, (48, 32))) == (48, 32)
    assert jpeg_size(b"\xff\xd8 nothing") is None


def test_a_black_image_is_within_what_a_byte_can_hold() -> None:
    """The law behind the bound: the image that compresses best."""
    best = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 1)
    data = cv2.imencode(".jpg", np.zeros((2160, 3840), np.uint8), best)[1].tobytes()
    assert decode_image(data, "x.jpg").shape == (2160, 3840, 3)
