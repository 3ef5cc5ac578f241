"""Detection head: queries, matching, losses, boxes."""
