"""CUDA graphs, recomputation, transfers that do not wait."""
