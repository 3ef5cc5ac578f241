"""From gains and prices to a decision: levels, net gains, plans, break-even rates, what would settle."""
