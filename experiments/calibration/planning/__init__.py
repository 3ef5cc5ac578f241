"""What a study can find, before it runs."""
