"""Inspection of a config without training: its sites, shapes, plan and problems."""
