"""Attention with a bias: one meaning, many implementations."""
