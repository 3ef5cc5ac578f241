"""Run a study: trials under Ray Tune, waves, confirmation, the final report."""
