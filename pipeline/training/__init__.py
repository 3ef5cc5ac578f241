"""One trial: the training loop, its step, its checks before and after."""
