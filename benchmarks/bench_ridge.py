"""Ridge probes of every strength from one decomposition against scikit-learn's Ridge, one fit a strength.

    python benchmarks/bench_ridge.py [--layers 4] [--clips 392] [--width 1024] [--threads 2]

A problem is one layer and fold with three targets and the strengths of pez.probes.solvers.ridge. Prints the time of
both and the largest difference of a held-out prediction. Writes nothing.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_sweep import planted, problems_of
from pez.probes.solvers.ridge import STRENGTHS, ridge_settings, solve_ridge

_OPTIONS = {"settings": ridge_settings(), "dtype": torch.float64}


@contextlib.contextmanager
def one_decomposition(clips: int, layers: int, folds: int, width: int, variables: int) -> Iterator[Callable]:
    """Work that solves all problems; its answer are all held-out predictions [problems, strengths, clips, k]."""
    pairs = planted(layers, clips, width, variables)
    list(solve_ridge(problems_of(planted(1, 20, 4, 1), 2, **_OPTIONS)))  # warm up

    def work() -> np.ndarray:
        results = solve_ridge(problems_of(pairs, folds, **_OPTIONS))
        return np.concatenate([result.validation_prediction.numpy() for result in results], axis=1)

    yield work


@contextlib.contextmanager
def scikit_learn(clips: int, layers: int, folds: int, width: int, variables: int) -> Iterator[Callable]:
    """The same with scikit-learn, standardising with the training clips' statistics."""
    pairs = planted(layers, clips, width, variables)
    fit_alone(*planted(1, 20, 4, 1)[0], np.arange(20) < 10)  # warm up

    def work() -> np.ndarray:
        held_out = np.arange(clips) % folds == np.arange(folds)[:, None]
        return np.concatenate([fit_alone(*pair, rows) for pair in pairs for rows in held_out], axis=1)

    yield work


def fit_alone(features: torch.Tensor, targets: torch.Tensor, held_out: np.ndarray) -> np.ndarray:
    """Held-out predictions [strengths, clips, k], a Ridge for each strength."""
    x, y = features.double().numpy(), targets.double().numpy()
    mean, scale = x[~held_out].mean(0), x[~held_out].std(0)
    y_mean, y_scale = y[~held_out].mean(0), y[~held_out].std(0)
    x, y = (x - mean) / scale, (y - y_mean) / y_scale
    fits = [Ridge(alpha=strength).fit(x[~held_out], y[~held_out]) for strength in STRENGTHS]
    shape = (int(held_out.sum()), y.shape[1])
    return np.stack([fit.predict(x[held_out]).reshape(shape) * y_scale + y_mean for fit in fits])


def main() -> None:
    from benchmarks.measure import measure, sizes

    size, threads = sizes(__doc__, layers=4, folds=5, clips=392, width=1024, variables=3)
    ours, theirs = (measure(prepare, size, threads) for prepare in (one_decomposition, scikit_learn))
    print(f"scikit-learn       {theirs.seconds:8.2f} s\none decomposition  {ours.seconds:8.2f} s")
    print(f"{theirs.seconds / ours.seconds:.0f} times as fast; ", end="")
    print(f"largest difference of a prediction {np.abs(ours.answer - theirs.answer).max():.1e}")


if __name__ == "__main__":
    main()
