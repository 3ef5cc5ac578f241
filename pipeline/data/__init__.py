"""Frames: written, read, corrupted, streamed."""
