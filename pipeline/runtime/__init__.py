"""Surroundings of a trial: session, collectives, determinism, heartbeat, event log."""
