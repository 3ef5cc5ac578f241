"""The branches before the decoder: images, pillars, voxels."""
