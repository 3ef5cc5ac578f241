"""Generated datasets in nuScenes layout: a street world, a LiDAR and six cameras that see it."""

from pipeline.data.synth.generate import generate

__all__ = ["generate"]
