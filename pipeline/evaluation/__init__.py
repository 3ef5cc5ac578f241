"""Detections of a split, the official metric, interventions, the figure of a scene."""
