"""From data and a solver to out-of-fold predictions."""
