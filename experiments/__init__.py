"""Many trials: which, how many, and what they prove."""
