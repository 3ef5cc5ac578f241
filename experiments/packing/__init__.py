"""How many trials share one GPU: probes, the planner, the policy."""
