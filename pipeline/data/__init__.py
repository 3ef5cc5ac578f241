"""Frames of a dataset: reading, writing, augmentation, corruption and loading."""
