"""From features to layer curves: targets, folds, solvers, scores."""
