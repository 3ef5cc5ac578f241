"""Branches in front of the decoder: images, pillars, voxels."""
