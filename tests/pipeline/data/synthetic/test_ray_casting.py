import cv2
import numpy as np
import pytest

from pipeline.data.formats.decoding import lidar2img
from pipeline.data.synthetic.camera import shoot, views
from pipeline.data.synthetic.lidar import BEAMS, COLUMNS, NOISE_M, points_in_boxes, scan
from pipeline.data.synthetic.ray_casting import ROOM_M, Solids, cast, solids_at
from pipeline.data.synthetic.sensor_rig import LIDAR_MOUNT, lidar2ego
from pipeline.data.synthetic.world import build_world


@pytest.fixture(scope="module")
def world():
    return build_world(np.random.default_rng(11), 10.0, night=False)


@pytest.fixture(scope="module")
def solids(world):
    return solids_at(world, 2.0)


@pytest.fixture(scope="module")
def scanned(world, solids):
    return scan(world, solids, np.random.default_rng(0))


def block(x, y, yaw=0.0, half=(1.0, 2.0, 0.5)):
    """One solid box with its centre at height 0."""
    return Solids(
        centre=np.array([[x, y, 0.0]]),
        half=np.array([half]),
        yaw=np.array([yaw]),
        part_centre=np.zeros((1, 3), np.float32),
        part_half=np.array([half], np.float32),
        first=np.array([0, 1]),
    )


def rays(*directions):
    return np.array([directions], np.float32)


def everywhere(count):
    return [(index, slice(None), slice(None)) for index in range(count)]


def test_rays_meet_a_box_where_geometry_says():
    directions = rays([1, 0, 0], [1, 0.25, 0], [1, 0.5, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0.04], [1, 0, 0.1])
    ground = np.full((1, 7), np.inf, np.float32)
    hits = cast(np.zeros(3, np.float32), directions, ground, block(10, 0), everywhere(1))
    # The front face is at x = 9, |y| <= 2: y = 0.25 * 9 = 2.25 misses it and everything else.
    np.testing.assert_allclose(hits.depth[0], [9, np.inf, np.inf, np.inf, np.inf, 9, np.inf], rtol=1e-6)
    np.testing.assert_array_equal(hits.actor[0], [0, -1, -1, -1, -1, 0, -1])
    assert hits.seen.tolist() == hits.covered.tolist() == [2]


def test_a_turned_box_is_met_on_its_turned_face():
    ground = np.full((1, 1), np.inf, np.float32)
    hits = cast(np.zeros(3, np.float32), rays([1, 0, 0]), ground, block(10, 0, np.pi / 2), everywhere(1))
    np.testing.assert_allclose(hits.depth, [[8]], rtol=1e-6)  # its long side now points at the sensor
    assert hits.axis[0, 0] == 1


def test_the_nearer_object_hides_the_farther():
    near, far = block(10, 0), block(20, 0)
    both = Solids(
        *(np.concatenate([getattr(far, f), getattr(near, f)]) for f in list(vars(far))[:5]), np.arange(3)
    )
    ground = np.full((1, 1), np.inf, np.float32)
    hits = cast(np.zeros(3, np.float32), rays([1, 0, 0]), ground, both, everywhere(2))
    assert hits.actor[0, 0] == 1
    assert (hits.seen.tolist(), hits.covered.tolist()) == ([0, 1], [1, 1])


def test_windows_hide_nothing(world, solids, scanned):
    """The culling by windows finds what a test of every object against every ray finds."""
    _, hits = scanned
    azimuth = -np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)
    columns = np.arange(0, COLUMNS, 9)
    elevation = np.deg2rad(np.linspace(-30.67, 10.67, BEAMS))[:, None]
    level, up = np.cos(elevation), np.sin(elevation)
    directions = np.stack(
        [level * np.cos(azimuth), level * np.sin(azimuth), np.broadcast_to(up, (BEAMS, COLUMNS))], -1
    ).astype(np.float32)[:, columns]
    with np.errstate(divide="ignore"):
        ground = np.where(directions[..., 2] < 0, -LIDAR_MOUNT[2] / directions[..., 2], np.inf).astype(
            np.float32
        )
    full = cast(np.array(LIDAR_MOUNT, np.float32), directions, ground, solids, everywhere(len(solids.yaw)))
    near = full.depth < 60  # beyond the scanner's range objects are skipped on purpose
    np.testing.assert_array_equal(hits.actor[:, columns][near], full.actor[near])


def test_points_lie_on_the_ground_or_on_the_objects_they_met(solids, scanned):
    points, _ = scanned
    turn = lidar2ego()
    spots = points[:, :3].astype(np.float64) @ turn[:3, :3].T + turn[:3, 3]
    on_ground = np.abs(spots[:, 2]) < 4 * NOISE_M
    in_box = np.zeros(len(spots), bool)
    for index in range(len(solids.yaw)):
        away = spots - solids.centre[index]
        cos, sin = np.cos(solids.yaw[index]), np.sin(solids.yaw[index])
        local = np.stack(
            [cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0], away[:, 2]], 1
        )
        in_box |= (np.abs(local) <= solids.half[index] + 5 * NOISE_M).all(
            axis=1
        )  # 1 point in a million strays more
    assert (on_ground | in_box).all()
    assert 0.2 < in_box.mean() < 0.8


def test_most_points_stay_inside_the_annotated_box(solids, scanned):
    """The room between surface and box is 1.5 times the noise, so 93 % of head-on returns stay inside."""
    points, hits = scanned
    inside, met = points_in_boxes(points, solids), hits.seen
    near = (met > 100) & (np.hypot(*solids.centre[:, :2].T) < 20)
    assert near.sum() > 3
    assert ROOM_M > NOISE_M
    assert (inside[near] / met[near]).mean() > 0.85  # dropout takes up to one in ten more


def test_far_returns_are_rarer(scanned):
    points, hits = scanned
    reached = hits.depth[np.isfinite(hits.depth)]
    came = np.linalg.norm(points[:, :3], axis=1)
    near = (came < 15).sum() / (reached < 15).sum()
    far = ((came > 40) & (came < 60)).sum() / ((reached > 40) & (reached < 60)).sum()
    assert near > 0.9 > 0.8 > far > 0.2


def test_cameras_and_lidar_see_the_same_objects(world, solids, scanned):
    """A LiDAR point on an object, projected into a picture, lands on a pixel of that object."""
    points, _ = scanned
    agree = total = 0
    turn = lidar2ego()
    for view in views():
        _, seen = shoot(view, world, solids, 2.0, np.random.default_rng(0))
        matrix = lidar2img(view.camera.intrinsic[None], (np.linalg.inv(view.camera.camera2ego) @ turn)[None])[
            0
        ]
        pixels = np.column_stack([points[:, :3], np.ones(len(points))]) @ matrix.T
        pixels = pixels[pixels[:, 2] > 1]
        depth, (u, v) = pixels[:, 2], np.round(pixels[:, :2] / pixels[:, 2:3]).astype(int).T
        within = (u >= 0) & (u < 400) & (v >= 0) & (v < 225)
        pictured = seen.depth[v[within], u[within]]
        agree += (np.abs(pictured - depth[within]) < 0.05 * depth[within] + 0.3).sum()
        total += within.sum()
    assert total > 10_000
    # The LiDAR stands higher than the cameras and sees over things; edges fall between pixels.
    assert agree / total > 0.85


def test_visibility_counts_pixels(world, solids):
    seen = covered = 0
    for view in views():
        _, hits = shoot(view, world, solids, 2.0, np.random.default_rng(0))
        seen, covered = seen + hits.seen, covered + hits.covered
    assert (seen <= covered).all()
    assert (seen < covered).sum() > 10  # some things are hidden
    nearest = np.argmin(np.hypot(*solids.centre[:, :2].T))
    assert seen[nearest] == covered[nearest] > 0


def test_shade_is_dark(world):
    """Cameras see next to nothing in the deep shadow, and full colour outside."""
    front = views()[0]
    jpeg, hits = shoot(front, world, solids_at(world, 0.0), 0.0, np.random.default_rng(0))
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    ego_s, _, yaw = world.ego_at(0.0)
    ground = (hits.actor.ravel() < 0) & np.isfinite(hits.depth.ravel())
    s = ego_s + np.cos(yaw) * front.floor[0] - np.sin(yaw) * front.floor[1]
    shaded = ground & (s > world.shade[0] + 1) & (s < world.shade[1] - 1)
    lit = ground & (s < world.shade[0] - 1)
    flat = image.reshape(-1, 3)
    assert shaded.any()
    assert lit.any()
    assert flat[shaded].mean() < 40 < 60 < flat[lit].mean()
