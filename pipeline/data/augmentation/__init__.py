"""Augmentation of frames: transforms, GT sampling, the train pipeline, drawings of samples."""
