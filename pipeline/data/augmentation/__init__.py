"""What is done to frames before training: transforms, pasted objects, the train pipeline."""
