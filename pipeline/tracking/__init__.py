"""Rows to MLflow."""
