"""Order of the frames, batches and loader processes."""
