"""JPEG images: decoded as the sensor wrote them, or refused."""

import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import END, decode_crop, decode_image, jpeg_size, refuse_gap
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


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_reading_alone_finds_an_image_that_ends_early(share: float) -> None:
    data = encoded()
    with pytest.raises(DataError, match=r"x\.jpg: is cut short before its end marker"):
        decode_image(data[: int(share * len(data))] + END, "x.jpg")


def test_a_grey_image_is_whole() -> None:
    data = cv2.imencode(".jpg", np.full((90, 160, 3), 128, np.uint8))[1].tobytes()
    assert (decode_image(data, "x.jpg") == 128).all()


def test_a_crop_is_png_or_jpeg() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    np.testing.assert_array_equal(decode_crop(png, "x"), pixels)
    np.testing.assert_array_equal(decode_crop(encoded(), "x"), decode_image(encoded(), "x"))
    for bad in (png[:-1], png[:40] + b"\0" + png[41:], png[:8]):
        with pytest.raises(DataError, match="x: is cut short or damaged"):
            decode_crop(bad, "x")


def test_a_png_that_claims_more_than_it_holds() -> None:
    body = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    parts = [body, b"IDAT", b"IEND"]
    chunks = [(len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts]
    with pytest.raises(DataError, match="claims 60000 x 60000 pixels, more than its 57 bytes can hold"):
        decode_crop(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), "x")
