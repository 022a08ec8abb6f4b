"""Start the shards of a step: one process a GPU on this machine, or an array of SLURM jobs."""
