"""Stand-in frames have the sizes of real ones."""

import numpy as np

from pipeline.data.synthetic.random_frames import stand_in_frame


def test_a_frame_has_the_sizes_of_a_real_one_and_repeats() -> None:
    frame, again = (stand_in_frame(3, (32, 80), boxes=7, sweeps=2) for _ in range(2))
    assert frame.images.shape == (6, 32, 80, 3)
    assert 2 * 30_000 < len(frame.points) < 2 * 36_000  # the demo frame of nuScenes has 34 688
    assert np.isfinite(frame.points).all()
    assert frame.boxes.shape == (7, 9)
    assert np.array_equal(frame.points, again.points)


def test_cameras_look_all_around() -> None:
    frame = stand_in_frame(0, (320, 800), boxes=1, sweeps=1)
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    ring = np.stack([20 * np.cos(angle), 20 * np.sin(angle), 0 * angle, 1 + 0 * angle])
    u, _, depth = (frame.lidar2img @ ring)[:, :3].swapaxes(0, 1)
    seen = (depth > 0) & (u >= 0) & (u < 800 * np.maximum(depth, 1e-6))
    assert (seen.sum(axis=0) >= 1).mean() > 0.95  # nuScenes' cameras too leave no gap
    ahead = int(np.argmin(np.abs(angle - np.pi / 2)))
    assert seen[0, ahead]
    assert not seen[3, ahead]
