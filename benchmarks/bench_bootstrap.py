"""Intervals of layer curves: sums over groups for all resamples at once against resampling clips one by one.

    python benchmarks/bench_bootstrap.py [--layers 24] [--clips 392] [--resamples 1000] [--threads 2]

Both draw whole groups and score out-of-fold predictions of every layer by R^2. "One by one" gathers each resample's
clips and calls scikit-learn's r2_score for each layer. Prints the time of both and the largest difference of a
resample's score. Writes nothing.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from sklearn.metrics import r2_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pez.probes.scores.bootstrap import bootstrap_r2, group_resamples

GROUP = 6  # clips


def predictions(clips: int, layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups [n], targets [n, 2] and predictions [layers, n, 2] of growing quality."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(clips, 2))
    noise = np.linspace(2, 0.2, layers)[:, None, None] * rng.normal(size=(layers, clips, 2))
    return np.arange(clips) // GROUP, target, target + noise


@contextlib.contextmanager
def group_sums(clips: int, layers: int, resamples: int) -> Iterator[Callable]:
    """Work that scores every resample; its answer are the scores [resamples, layers]."""
    group, target, predicted = predictions(clips, layers)
    drawn = group_resamples(group, resamples, n_folds=None)
    yield lambda: bootstrap_r2(target, predicted, group, drawn).samples


@contextlib.contextmanager
def one_by_one(clips: int, layers: int, resamples: int) -> Iterator[Callable]:
    """The same resamples in a loop."""
    group, target, predicted = predictions(clips, layers)
    drawn = group_resamples(group, resamples, n_folds=None)
    members = [np.flatnonzero(group == name) for name in drawn.names]

    def score(counts: np.ndarray) -> list[float]:
        rows = np.concatenate([np.tile(rows, int(count)) for rows, count in zip(members, counts)])
        return [r2_score(target[rows], layer[rows]) for layer in predicted]

    yield lambda: np.array([score(counts) for counts in drawn.counts])


def main() -> None:
    from benchmarks.measure import measure, sizes

    size, threads = sizes(__doc__, layers=24, clips=392, resamples=1000)
    ours, theirs = (measure(prepare, size, threads) for prepare in (group_sums, one_by_one))
    print(f"one by one  {theirs.seconds:8.2f} s\ngroup sums  {ours.seconds:8.2f} s")
    print(f"{theirs.seconds / ours.seconds:.0f} times as fast; ", end="")
    print(f"largest difference of a score {np.abs(ours.answer - theirs.answer).max():.1e}")


if __name__ == "__main__":
    main()
