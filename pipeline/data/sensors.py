"""What a frame says of its sensors: one reader for tables, info files and shards.

Every function takes the value as the file has it, and ``where`` and ``field`` for the error message. What
cannot be used is a DataError that names both.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample import DataError

MAX_LAG_S = 3.0
"""Largest lag of a sweep. Ten sweeps at nuScenes' 20 Hz take 0.5 s; at key frames' 2 Hz five take 2.5 s."""

COLUMNS = 5
"""Numbers per point of nuScenes' ``.pcd.bin``: x, y, z in m, intensity 0-255, ring index."""

LEAST_COLUMNS = 4
"""x, y, z and intensity; without these a cloud cannot be used."""

ORTHOGONAL = 1e-2
"""Largest entry of R Rᵀ - 1 in a rotation R. Rounding to float32 or to three digits is far below it; a matrix
in another order, transposed into its shift, or of zeros is far above."""


class _Short(reprlib.Repr):
    """A representation of bounded length and depth: a value of a file may be deep or of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 2, 4, 4, 3, 3
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_int(self, value: int, level: int) -> str:
        bits = value.bit_length()  # Python spells no number of more than 4,300 digits
        return super().repr_int(value, level) if bits < 200 else f"a number of {bits} bits"

    def repr_ndarray(self, value: NDArray[Any], level: int) -> str:
        return f"an array of shape {value.shape}"


show = _Short().repr
"""Return a value of a file for an error message, shortened."""


def wrong(where: str, field: str, value: Any, expected: str) -> DataError:
    """Return the error about a value of a file."""
    return DataError(f"{where}: {field} is {show(value)}; expected {expected}; make the file anew")


def numbers(value: Any, where: str, field: str, *shapes: tuple[int, ...]) -> NDArray[np.float64]:
    """Return an array of finite numbers of one of some shapes.

    Raises:
        DataError: it has another shape, or a number that is not finite.
    """
    sizes = " or ".join(map(str, shapes))
    wanted = f"finite numbers of shape {sizes}" if any(shapes) else "a finite number"
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError) as problem:
        raise wrong(where, field, value, wanted) from problem
    if array.shape not in shapes or not np.isfinite(array).all():
        raise wrong(where, field, value, wanted)
    return array


def transform(value: Any, where: str, field: str) -> NDArray[np.float64]:
    """Return a (4, 4) rigid transform; DataError if it is none."""
    matrix = numbers(value, where, field, (4, 4))
    turn = matrix[:3, :3]
    rigid = np.abs(turn @ turn.T - np.eye(3)).max() <= ORTHOGONAL and np.linalg.det(turn) > 0
    if not rigid or np.abs(matrix[3] - [0, 0, 0, 1]).max() > ORTHOGONAL:
        raise wrong(where, field, matrix.tolist(), "a rotation and a shift over the row 0, 0, 0, 1")
    return matrix


def pose(rotation: Any, translation: Any, where: str, field: str) -> NDArray[np.float64]:
    """Return the (4, 4) transform of a quaternion (w, x, y, z) and a shift in m, as nuScenes writes them."""
    made = np.eye(4)
    made[:3, :3] = quaternion(rotation, where, f"{field} rotation")
    made[:3, 3] = numbers(translation, where, f"{field} translation", (3,))
    return made


def quaternion(value: Any, where: str, field: str) -> NDArray[np.float64]:
    """Return the (3, 3) rotation of a quaternion (w, x, y, z) of any length above 0."""
    from pyquaternion import Quaternion

    four = numbers(value, where, field, (4,))
    if not 0 < four @ four < np.inf:
        raise wrong(where, field, value, "a quaternion w, x, y, z, which is not all zeros")
    turn: NDArray[np.float64] = Quaternion(four).rotation_matrix
    return turn


def intrinsic(value: Any, where: str, field: str) -> NDArray[np.float64]:
    """Return a (3, 3) matrix, camera frame (m) -> pixels (u*d, v*d, d), from one of 3 x 3, 3 x 4 or 4 x 4."""
    matrix = numbers(value, where, field, (3, 3), (3, 4), (4, 4))[:3, :3]
    if not abs(np.linalg.det(matrix)) > 0:
        raise wrong(where, field, value, "a matrix that can be inverted")
    return matrix


def microseconds(value: Any, where: str, field: str, per_unit: float) -> int:
    """Return a time in whole microseconds.

    Args:
        value: the time as the file has it.
        where: the frame.
        field: the key.
        per_unit: microseconds in the file's unit.
    """
    time = float(numbers(value, where, field, ()))
    if not 0 <= time * per_unit < 2**53:  # what float64 holds in whole numbers: the year 2255
        raise wrong(where, field, value, f"a time since 1970 in {'microseconds' if per_unit == 1 else 's'}")
    return round(time * per_unit)


def lag(key_us: int, sweep_us: int, where: str, field: str) -> float:
    """Return the lag of a sweep in s; DataError if it is after the key frame or long before it."""
    seconds = (key_us - sweep_us) * 1e-6
    if not 0 <= seconds <= MAX_LAG_S:
        raise DataError(
            f"{where}: {field} is {seconds:g} s before the key frame; expected 0 to {MAX_LAG_S:g} s; it is "
            "of another unit or another sweep, make the file anew"
        )
    return seconds


def columns(value: Any, where: str, field: str) -> int | None:
    """Return the stated numbers per point (``num_pts_feats``); None if the file states none."""
    if value is None:
        return None
    count = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else 0
    if count < LEAST_COLUMNS:
        raise wrong(where, field, value, f"{LEAST_COLUMNS} or more numbers per point (x, y, z, intensity)")
    return count


def parse_points(data: bytes, where: str, stated: int | None = None) -> NDArray[np.float32]:
    """Parse a ``.pcd.bin`` to (N, 5) float32: x, y, z in m, intensity, and 0 for the time lag in s.

    The time lag replaces the file's fifth number, the ring index, as in CMT and mmdet3d; it is added to a
    cloud of four numbers per point.

    Args:
        data: the file.
        where: its name.
        stated: numbers per point, if the dataset states them. If not, there are five, and the fifth must be
            a ring index: a whole number. A cloud of four numbers would not be.

    Raises:
        DataError: it holds no point, a part of a point, or a number that is not finite.
    """
    count = stated or COLUMNS
    if not data or len(data) % (4 * count):
        fits = [n for n in (4, 5, 6) if data and len(data) % (4 * n) == 0 and n != count]
        told = f"it has {' or '.join(map(str, fits))} (num_pts_feats), or it is" if fits else "the file is"
        raise DataError(
            f"{where}: {len(data)} bytes is no whole number of points of {count} float32 numbers; {told} cut "
            "short, restore it"
        )
    cloud = np.frombuffer(data, "<f4").reshape(-1, count)
    if not np.isfinite(cloud[:, :4]).all():
        raise DataError(f"{where}: holds coordinates that are not finite; restore the file")
    if stated is None and not (cloud[:, 4] == np.floor(cloud[:, 4])).all():
        raise DataError(
            f"{where}: its fifth numbers are no ring indices, so its points may not have {COLUMNS} numbers; "
            "state how many as num_pts_feats (of lidar_points in an info file, of sample_data in tables)"
        )
    points = np.zeros((len(cloud), 5), np.float32)
    points[:, :4] = cloud[:, :4]
    return points


def parse_object(data: bytes, where: str, count: int, stated: int | None = None) -> NDArray[np.float32]:
    """Parse the points of an object to (N, 5) float32: x, y, z in m, intensity, time lag in s.

    Args:
        data: the points; the fifth number of each is its time lag, those after it are dropped.
        where: the file.
        count: number of points, as the database states it.
        stated: numbers per point, if the database states them; otherwise they follow from the length.

    Raises:
        DataError: the length is not that of ``count`` points, or a number is not finite or no time lag.
    """
    width = stated or (len(data) // (4 * count) if count else COLUMNS)
    if len(data) != 4 * count * width or width < LEAST_COLUMNS:
        raise DataError(
            f"{where}: {len(data)} bytes are not {count} points of {stated or f'{LEAST_COLUMNS} or more'} "
            "float32 numbers; write the database anew"
        )
    cloud = np.frombuffer(data, "<f4").reshape(-1, width)[:, :COLUMNS]
    points = np.zeros((count, COLUMNS), np.float32)
    points[:, : cloud.shape[1]] = cloud
    if not np.isfinite(points).all() or not ((points[:, 4] >= 0) & (points[:, 4] <= MAX_LAG_S)).all():
        raise DataError(
            f"{where}: holds numbers that are not finite, or time lags outside 0 to {MAX_LAG_S:g} s; write "
            "the database anew"
        )
    return points


def boxes(rows: Sequence[Sequence[float]], where: str, names: Sequence[str]) -> NDArray[np.float32]:
    """Return boxes (M, 9) float32, columns as in ``Sample.boxes``.

    Args:
        rows: one per box; an unknown velocity is NaN.
        where: the frame.
        names: what the message calls each box.

    Raises:
        DataError: a centre, size or yaw that is not finite, a size not above 0, an infinite velocity.
    """
    with np.errstate(over="ignore"):  # a number too large for float32 is refused below
        made = np.array([_nine(row, where, name) for row, name in zip(rows, names, strict=True)], np.float32)
    made = made.reshape(-1, 9)
    for problem, bad in (
        ("centre, size and yaw {}; expected finite numbers", ~np.isfinite(made[:, :7]).all(axis=1)),
        ("centre, size and yaw {}; expected sizes above 0", ~(made[:, 3:6] > 0).all(axis=1)),
        ("velocity {}; expected finite numbers, or NaN if unknown", np.isinf(made[:, 7:]).any(axis=1)),
    ):
        for index in np.flatnonzero(bad)[:1]:
            values = made[index, 7:] if problem.startswith("velocity") else made[index, :7]
            raise DataError(f"{where}: {names[index]} has {problem.format(values.tolist())}")
    return made


def _nine(row: Sequence[float], where: str, name: str) -> NDArray[np.float64]:
    try:
        made = np.array(row, np.float64)
    except (TypeError, ValueError, OverflowError) as problem:
        raise wrong(where, name, row, "9 numbers") from problem
    if made.shape != (9,):
        raise wrong(where, name, row, "9 numbers: centre, size, yaw, velocity x and y")
    return made


def point_counts(values: Sequence[Any], where: str, field: str) -> NDArray[np.int64]:
    """Return the number of points in each box (M,); DataError if one is negative or no whole number."""
    for value in values:
        if not isinstance(value, int | np.integer) or not 0 <= value < 2**62:
            raise wrong(where, field, value, "a number of points, 0 or more")
    return np.array(values, np.int64)
