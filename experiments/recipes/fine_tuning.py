"""What studies share whose trials start from trained weights."""

KEPT_STATISTICS = ("model.norm_eval", "true")
"""Override by which batch norms keep the statistics of the weights that a trial starts from.

A trial has small batches and few steps, and masks other sensors than the training before it did. With
statistics of its own the mini loses 5.8 points of NDS in 40 steps at a rate of 0, and what an arm gains is
then in part what it gets back of them (docs/log.md, 2026-11-30)."""
