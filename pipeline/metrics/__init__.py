"""Rows, and what measures them: timers, memory, kernels, versions."""
