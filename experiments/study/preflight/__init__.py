"""What happens before a study starts: what cannot run is refused before it costs time."""
