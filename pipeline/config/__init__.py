"""What a trial is told: settings, plan, early stopping, provenance of config keys."""
