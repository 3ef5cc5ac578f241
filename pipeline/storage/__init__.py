"""Files of a trial and a study: paths, atomic writes, checkpoints, remote copies, leases."""
