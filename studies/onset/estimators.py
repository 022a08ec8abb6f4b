"""Which interval for a half-rise onset holds: what was tried before pez.probes.scores.onset settled on one.

    python -m studies.onset.estimators [--datasets 200] [--workers 2]

On data sets of studies/onset/calibration.py, prints the share of 95 % intervals that hold the population's half-rise
onset, a row per scenario and peak (the mean of the layers that may be as high as the highest, as
pez.probes.scores.onset has it; the highest layer of the estimate in every resample; each resample's own highest), a
column per interval, with and without the stretching of pez.probes.scores.bootstrap; and the share found within one
layer of it. The intervals:

percentile    quantiles of the samples
basic         those, reflected about the estimate
bca           quantiles moved for median bias and skewness (Efron 1987, Better bootstrap confidence intervals)
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from pez.cli import Parser, run_script
from pez.probes.scores.bootstrap import LEVEL, BootstrapCurve, Resamples, group_resamples
from pez.probes.scores.onset import crossing, plateau, rise_over_chance
from pez.progress import progress
from studies.onset.calibration import LAYERS, N_FOLDS, SCENARIOS, OutOfFold, out_of_fold, population_of, unwidened

COMPARED = ("emerges at 8", "steps up at 8", "rises until 8", "weak, at 8")
PEAKS = ("plateau", "same layer", "own highest")
METHODS = ("percentile", "basic", "bca")
TAILS = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])


@dataclass(frozen=True)
class JackknifedCurve(BootstrapCurve):
    """A BootstrapCurve with its score without each group in turn, `left_out` [G, layers]."""

    left_out: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "JackknifedCurve":
        """`function` of the estimate, of every resample and of every row of `left_out`."""
        curve = super().map(function)
        return JackknifedCurve(curve.estimate, curve.samples, curve.resamples, function(self.left_out))

    def __sub__(self, other: "JackknifedCurve") -> "JackknifedCurve":
        curve = super().__sub__(other)
        return JackknifedCurve(curve.estimate, curve.samples, curve.resamples, self.left_out - other.left_out)


def jackknifed(predictions: OutOfFold, seed: int, n_resamples: int) -> list[JackknifedCurve]:
    """Main and shuffled-label curves of one data set, as pez.probes has them but for the rows without a group."""
    resamples = group_resamples(predictions.group, n_resamples, seed, n_folds=N_FOLDS)
    one_less = Resamples(resamples.names, 1 - np.eye(len(resamples.names)), stretch=1)
    return [
        JackknifedCurve(curve.estimate, curve.samples, curve.resamples, left_out.samples)
        for curve, left_out in zip(predictions.curves(resamples), predictions.curves(one_less))
    ]


def interval(curve: JackknifedCurve, method: str) -> tuple[float, float]:
    """Ends of the interval of a curve of one column. They are order statistics, so samples may hold infinities."""
    samples, estimate = np.sort(curve.samples[:, 0]), curve.estimate[0]
    shares = bca_shares(estimate, samples, curve.left_out[:, 0]) if method == "bca" else TAILS
    last = len(samples) - 1
    low, high = samples[int(np.floor(shares[0] * last))], samples[int(np.ceil(shares[1] * last))]
    return (2 * estimate - high, 2 * estimate - low) if method == "basic" else (low, high)


def bca_shares(estimate: float, samples: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Which quantiles BCa takes, [2], from samples [B] and the estimates without each group [G]."""
    below = np.mean((samples < estimate) + 0.5 * (samples == estimate))
    bias = norm.ppf(below.clip(0.5 / len(samples), 1 - 0.5 / len(samples)))
    spread = left_out.mean() - left_out
    cubes, squares = (spread**3).sum(), (spread**2).sum()
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = bias + norm.ppf(TAILS)
    return norm.cdf(bias + shifted / (1 - acceleration * shifted))


def half_rise(curve: JackknifedCurve, peak: str) -> JackknifedCurve:
    """Half-rise onsets of a rise above chance, of its resamples and without each group, as a curve of one column."""
    layer, layers = int(curve.estimate.argmax()), plateau(curve)
    tops = {
        "plateau": lambda rows: rows[:, layers].mean(1),
        "same layer": lambda rows: rows[:, layer],
        "own highest": lambda rows: rows.max(1),
    }

    def onsets(rows: np.ndarray) -> np.ndarray:
        return crossing(LAYERS, rows, tops[peak](rows) / 2)[:, None]

    return curve.map(onsets)


def judge(scenario, truth: float, seed: int) -> list[dict]:
    """Whether each interval holds the truth in data set `seed`; a row per peak."""
    main, control = jackknifed(out_of_fold(scenario, seed), seed, 1000)
    rises = {
        "stretched": rise_over_chance(main, control, 0.0),
        "unwidened": rise_over_chance(unwidened(main), unwidened(control), 0.0),
    }
    rows = []
    for peak in PEAKS:
        row = {"scenario": scenario.name, "peak": peak}
        for name, rise in rises.items():
            for method in METHODS:
                low, high = interval(half_rise(rise, peak), method)
                row[f"{method}, {name}"] = low <= truth <= high
        row["within 1"] = abs(half_rise(rises["stretched"], peak).estimate[0] - truth) <= 1
        rows.append(row)
    return rows


def main(args) -> None:
    rows = []
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in COMPARED]
    with ProcessPoolExecutor(
        args.workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for scenario in progress(scenarios, description="scenarios", unit="scenario"):
            truth = population_of(scenario).onsets()["half-rise"]
            judgements = pool.map(judge, [scenario] * args.datasets, [truth] * args.datasets, range(args.datasets))
            rows += [row for part in judgements for row in part]
    table = pd.DataFrame(rows).groupby(["scenario", "peak"], sort=False).mean().reset_index()
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    parser = Parser(prog="python -m studies.onset.estimators", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--datasets", type=int, default=200, help="simulated data sets a scenario")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    sys.exit(run_script(parser, main))
