from itertools import combinations

import numpy as np
import pytest
from shapely.geometry import Polygon

from pipeline.data.synthetic.object_classes import KINDS, PARKED_CYCLE_PARTS
from pipeline.data.synthetic.world import build_world

TIMES_S = np.arange(0, 10, 0.5)


@pytest.fixture(scope="module", params=[0, 1, 2])
def world(request):
    return build_world(np.random.default_rng(request.param), 10.0, night=False)


def footprint(pose, size):
    s, d, yaw = pose
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * size[:2]
    cos, sin = np.cos(yaw), np.sin(yaw)
    return Polygon(corners @ np.array([[cos, sin], [-sin, cos]]) + (s, d))


def test_nothing_drives_through_the_ego(world):
    for time in TIMES_S:
        ego = footprint(world.ego_at(time), (4.1, 1.75))
        for actor in world.actors:
            assert not ego.intersects(footprint(actor.at(time), actor.size)), actor


def test_things_do_not_overlap(world):
    for time in TIMES_S[::6]:
        shapes = [(actor, footprint(actor.at(time), actor.size)) for actor in world.actors]
        overlaps = [
            (one.kind, other.kind)
            for (one, a), (other, b) in combinations(shapes, 2)
            if a.intersection(b).area > 0.05 * min(a.area, b.area)
        ]
        assert overlaps == []


def test_shapes_fill_their_boxes():
    shapes = [(kind.parts, name) for name, kind in KINDS.items()] + [(PARKED_CYCLE_PARTS, "parked cycle")]
    for parts, name in shapes:
        back, front, side, bottom, top = np.array(parts).T
        assert (back.min(), front.max(), side.max(), bottom.min(), top.max()) == (-0.5, 0.5, 0.5, 0, 1), name
        assert ((front > back) & (top > bottom)).all(), name


def test_the_heading_of_the_ego_is_where_it_goes(world):
    for time in TIMES_S:
        one, two = np.array(world.ego_at(time)), np.array(world.ego_at(time + 1e-4))
        way = two[:2] - one[:2]
        # the difference over 0.1 ms bends by at most 1e-4 s times 0.1 rad/s
        assert np.arctan2(way[1], way[0]) == pytest.approx(one[2], abs=1e-4)


def test_the_same_draw_gives_the_same_world():
    one, two = (build_world(np.random.default_rng(4), 10.0, night=True) for _ in range(2))
    assert one.actors == two.actors
    assert (one.light, one.heading, one.shade) == (two.light, two.heading, two.shade)
    assert one.light < 0.5
