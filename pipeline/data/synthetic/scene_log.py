"""What the tables of a generated dataset need to know about a scene: poses, scans and annotations."""

from dataclasses import dataclass

from pipeline.data.synthetic.sensor_rig import MINI, Rig


@dataclass(frozen=True)
class Annotation:
    """One object in one frame, global frame.

    Attributes:
        actor: index of the object in its scene, the same in all frames.
        category, attribute: nuScenes names; the attribute may be empty.
        centre: x, y, z in m. size: width, length, height in m. yaw in rad.
        visible: share of its pixels, in all cameras, that no other object hides, 0-1.
        num_points: LiDAR points in the box.
    """

    actor: int
    category: str
    attribute: str
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float
    visible: float
    num_points: int


@dataclass(frozen=True)
class Scan:
    """One LiDAR scan, and the pose of the ego vehicle (x, y in m, yaw in rad, global frame)."""

    timestamp_us: int
    ego: tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """One key frame: time, pose of the ego vehicle (as in ``Scan``), annotations, and the scans before it."""

    timestamp_us: int
    ego: tuple[float, float, float]
    annotations: tuple[Annotation, ...]
    sweeps: tuple[Scan, ...] = ()


@dataclass(frozen=True)
class SceneLog:
    """The content of the tables for one scene."""

    name: str
    logfile: str
    description: str
    frames: tuple[Frame, ...]
    rig: Rig = MINI
