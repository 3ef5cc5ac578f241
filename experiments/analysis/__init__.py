"""From rows to verdicts: the design's table, the linear model, the price, the recommended plan."""
