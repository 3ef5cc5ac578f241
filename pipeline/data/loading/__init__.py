"""Order, batches and loader processes."""
