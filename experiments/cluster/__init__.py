"""Cluster files and their checks, Ray jobs, spot notices, sharding on a cluster."""
