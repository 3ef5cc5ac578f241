"""Adapters to mmdet3d and mmengine: import, data samples, optimiser, schedules."""
