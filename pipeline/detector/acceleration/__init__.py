"""CUDA graphs, recomputation of activations, memory format, and transfers without a wait."""
