"""The parts of the training loop that act after a step: progress, rows, early stopping, checkpoints."""
