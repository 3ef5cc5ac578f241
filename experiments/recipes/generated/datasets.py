"""The generated frames that full-size models train on and are measured on."""

from experiments.recipes.recipe import SyntheticDataset

TRAINING_DATA = SyntheticDataset(
    "data/full_pretrain", seed=201, frames_per_scene=8, scenes=(("train", 50),), rig="full"
)
"""400 frames that the pretraining sees, 36 times each, 18 with VoVNet: short scenes differ more than long."""

STUDY_DATA = SyntheticDataset("data/full_study", seed=301, frames_per_scene=20, rig="full")
"""160 frames to fine-tune on and 40 to evaluate; the pretraining sees none of them."""

LOADERS = 12
"""Loader processes of a training; a machine with one H200 has 16 cores."""
