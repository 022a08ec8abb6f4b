"""R^2 of probe predictions: scikit-learn's, and what folds of a grouped split need."""

import numpy as np
import numpy.typing as npt


def r2(target: np.ndarray, prediction: np.ndarray, least_variance: npt.ArrayLike = 0.0) -> float:
    """Coefficient of determination of `prediction` [n, k] for `target` [n, k], averaged over outputs.

    The reference is the mean of these targets, as in scikit-learn's `r2_score` (uniform average). An output
    whose variance here is at most `least_variance` (a number or [k]) has no R^2 and is left out of the average:
    a fold that holds one direction only has nothing to explain in the other axis. NaN if no output is left.
    """
    target, prediction = (np.asarray(a, dtype=np.float64).reshape(len(a), -1) for a in (target, prediction))
    variance = target.var(0)
    varies = variance > np.broadcast_to(least_variance, variance.shape)
    if not varies.any():
        return float("nan")
    error = np.square(target - prediction).mean(0)
    return float((1 - error[varies] / variance[varies]).mean())


def summed_r2(target: np.ndarray, prediction: np.ndarray) -> float:
    """R^2 with squares summed over outputs, as the public reproduction has it; 0 where no target varies."""
    target, prediction = (np.asarray(a, dtype=np.float64).reshape(len(a), -1) for a in (target, prediction))
    total = np.square(target - target.mean(0)).sum()
    return 0.0 if total < 1e-12 else float(1 - np.square(target - prediction).sum() / total)
