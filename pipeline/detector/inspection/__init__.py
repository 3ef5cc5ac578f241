"""What a config builds, without training it: sites, shapes, plans, surveys."""
