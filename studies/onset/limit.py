"""How near any rule could come to a planted bend: what a fit reaches that knows more than a rule can.

    python -m studies.onset.limit [--datasets 200] [--workers 2]

On data sets of studies/onset/calibration.py with a planted breakpoint, prints the share found within one layer by

rule      pez.probes.scores.onset
errors    the same two straight segments, weighted by the errors' true covariance over layers (from 400 other data
          sets): for normal errors the maximum-likelihood fit of that shape, which no rule that fits it can beat by much
oracle    maximum likelihood that knows the covariance and the population's whole curve but for where it bends
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from pez.cli import Parser, run_script
from pez.probes.scores.onset import BendFit
from pez.progress import progress
from studies.onset.calibration import LAYERS, SCENARIOS, Scenario, curves_of, population_of

OTHERS, N_OTHERS = 5 * 10**5, 400  # first seed and number of the other data sets


def estimate(scenario: Scenario, seed: int) -> np.ndarray:
    """R^2 [layers] of one data set."""
    return curves_of(scenario, seed, 2)[0].estimate


def moved(curve: np.ndarray, planted: float, bend: float) -> np.ndarray:
    """The population's curve with its bend at `bend`: each side is stretched or squeezed, the ends stay."""
    last = LAYERS[-1]
    where = np.interp(LAYERS, [0, bend, last], [0, planted, last])
    return np.interp(where, LAYERS, curve)


def likeliest(curves: np.ndarray, shapes: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Index of the likeliest of `shapes` [bends, layers] for each of `curves` [n, layers] with normal errors, [n]."""
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    rest = (curves[:, None] - shapes) @ whiten.T
    return np.square(rest).sum(2).argmin(1)


def two_segments(curves: np.ndarray, bends: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Index of the likeliest bend of two free straight segments with normal errors, [n]."""
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    errors = []
    for bend in bends:
        design = whiten @ np.stack([np.ones(len(LAYERS)), LAYERS, np.maximum(LAYERS - bend, 0)], axis=1)
        basis = np.linalg.qr(design)[0]
        white = curves @ whiten.T
        errors.append(np.square(white - white @ basis @ basis.T).sum(1))
    return np.argmin(errors, axis=0)


def within(estimates: np.ndarray, planted: float) -> float:
    return float((np.abs(estimates - planted) <= 1).mean())


def limits(scenario: Scenario, n_datasets: int, pool) -> dict:
    """The row of one scenario."""
    planted = scenario.planted["breakpoint"]
    seeds = [*range(n_datasets), *range(OTHERS, OTHERS + N_OTHERS)]
    curves = np.stack(list(pool.map(estimate, [scenario] * len(seeds), seeds)))
    curves, covariance = curves[:n_datasets], np.cov(curves[n_datasets:].T)
    fit, population = BendFit(LAYERS.astype(float)), population_of(scenario).curve
    shapes = np.stack([moved(population, planted, bend) for bend in fit.bends])
    return {
        "scenario": scenario.name,
        "rule": within(fit.bend(curves), planted),
        "errors": within(fit.bends[two_segments(curves, fit.bends, covariance)], planted),
        "oracle": within(fit.bends[likeliest(curves, shapes, covariance)], planted),
    }


def main(args) -> None:
    scenarios = [scenario for scenario in SCENARIOS if "breakpoint" in scenario.planted]
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = [limits(each, args.datasets, pool) for each in progress(scenarios, unit="scenario")]
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    parser = Parser(prog="python -m studies.onset.limit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--datasets", type=int, default=200, help="simulated data sets a scenario")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    sys.exit(run_script(parser, main))
