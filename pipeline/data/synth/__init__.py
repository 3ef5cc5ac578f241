"""A generated world in nuScenes format."""
