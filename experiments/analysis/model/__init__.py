"""What every site gains: the linear model of a study's trials, and what its errors are made of."""
