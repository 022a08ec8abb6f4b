"""Which interval for a half-rise onset holds: what was tried before pez.probes.onset settled on one.

    python -m studies.onset.estimators [--datasets 200] [--workers 2]

On data sets of studies/onset/calibration.py, prints the share of 95 % intervals that hold the population's half-rise
onset, a row a scenario and peak (the mean of the layers that may be as high as the highest, as pez.probes.onset has it;
the highest layer of the estimate in every resample; each resample's own highest), a column an interval (percentile,
basic, BCa; with and without the stretching of pez.probes.bootstrap); and the share found within one layer of it.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from pez.cli import Parser, run_script
from pez.probes.scores.bootstrap import METHODS, BootstrapCurve
from pez.probes.scores.onset import crossing, plateau, rise_over_chance
from pez.runs import progress
from studies.onset.calibration import LAYERS, SCENARIOS, curves_of, population_of, unwidened

COMPARED = ("emerges at 8", "steps up at 8", "rises until 8", "weak, at 8")
PEAKS = ("plateau", "same layer", "own highest")


def half_rise(curve: BootstrapCurve, peak: str) -> BootstrapCurve:
    """Half-rise onsets of a rise above chance and of its resamples, as a BootstrapCurve of one column."""
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
    """Whether each interval holds the truth in data set `seed`; a row a peak."""
    main, control = curves_of(scenario, seed, 1000)
    rises = {
        "stretched": rise_over_chance(main, control, 0.0),
        "unwidened": rise_over_chance(unwidened(main), unwidened(control), 0.0),
    }
    rows = []
    for peak in PEAKS:
        row = {"scenario": scenario.name, "peak": peak}
        for name, rise in rises.items():
            for method in METHODS:
                low, high = half_rise(rise, peak).interval(method=method)[0]
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
            found = pool.map(judge, [scenario] * args.datasets, [truth] * args.datasets, range(args.datasets))
            rows += [row for part in found for row in part]
    table = pd.DataFrame(rows).groupby(["scenario", "peak"], sort=False).mean().reset_index()
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    parser = Parser(prog="python -m studies.onset.estimators", description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=200, help="simulated data sets a scenario")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    sys.exit(run_script(parser, main))
