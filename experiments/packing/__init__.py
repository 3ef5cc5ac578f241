"""How many trials share one GPU, and how many share a worker: probes, the planner, the policy."""
