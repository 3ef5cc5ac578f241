"""A trial under Ray Train."""
