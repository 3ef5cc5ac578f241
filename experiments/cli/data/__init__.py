"""``biaswise data ...``: make, convert, verify and look at datasets."""
