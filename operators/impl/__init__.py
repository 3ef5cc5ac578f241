"""The implementations of attention. None imports another."""
