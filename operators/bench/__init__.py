"""Benchmark of the attention implementations: ``biaswise operators bench``."""
