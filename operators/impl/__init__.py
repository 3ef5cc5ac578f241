"""The implementations of attention; none knows another."""
