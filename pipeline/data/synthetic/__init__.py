"""Generated datasets in nuScenes layout: a street world, a LiDAR and six cameras that see it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.synthetic.dataset import generate

__all__ = ["generate"]


def __getattr__(name: str) -> Any:
    """Import ``generate`` on use: the processes that make scenes need none of what it imports."""
    if name == "generate":
        from pipeline.data.synthetic.dataset import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
