"""Benchmark of the attention implementations."""
