"""From out-of-fold predictions to scores with intervals, and onsets."""
