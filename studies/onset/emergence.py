"""How often does the criterion of the paper's authors find an emergence: where none was planted, and where one was?

    python -m studies.onset.emergence [--datasets 100] [--scenarios NAME ...] [--results-dir DIR] [--output FILE]

Simulated data sets are those of studies.onset.calibration, from features to out-of-fold R^2. With --results-dir also
the curves that random weights give in the runs of that folder (control random_weights, each seed and variable by
itself): whatever emerges there, training did not make.

Prints a table and writes it as JSON. Columns: `curves`; shares of them that `emerge` by the criterion
(pez.probes.scores.onset.emergence) and that meet each of its conditions, `fit`, `early`, `high`; `median inflection` as
a share of the depth; and `onset`, the share in which our own test finds the curve above its control (of random weights:
above chance, from the table's intervals, any layer's lower end above 0).
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.cli import Parser, run_script
from pez.files import write_json
from pez.probes.results import BALL, read_runs
from pez.probes.scores.onset import Emergence, above_control, emergence
from pez.provenance import provenance
from studies.onset.calibration import LAYERS, N_LAYERS, SCENARIOS, Scenario, curves_of


def simulated(scenario: Scenario, seed: int, n_resamples: int) -> tuple[Emergence, bool]:
    """The criterion on data set `seed` of a scenario, and whether our test finds its curve above its control."""
    main, control = curves_of(scenario, seed, n_resamples)
    return emergence(LAYERS, main.estimate, N_LAYERS), above_control(main, control).found


def untrained(results_dir: Path) -> list[tuple[Emergence, bool]]:
    """The same pair for every curve of random weights (R^2) in the runs of a folder."""
    curves = []
    for run in read_runs(results_dir):
        table = run.controls
        if run.kind != BALL or table.empty or "r2_pooled" not in table:
            continue
        for _, rows in table[table["control"] == "random_weights"].groupby(["variable", "control_seed"]):
            judged = emergence(rows["layer"], rows["r2_pooled"], run.depth)
            if judged is not None:
                curves.append((judged, bool((rows["r2_pooled_low"] > 0).any())))
    return curves


def row_of(name: str, curves: list[tuple[Emergence, bool]]) -> dict:
    """Shares over curves."""
    conditions = np.array([list(each.conditions.values()) for each, _ in curves])
    return {
        "scenario": name,
        "curves": len(curves),
        "emerge": float(np.mean([each.emerges for each, _ in curves])),
        **dict(zip(("fit", "early", "high"), conditions.mean(0).tolist())),
        "median inflection": float(np.median([each.inflection / each.depth for each, _ in curves])),
        "onset": float(np.mean([onset for _, onset in curves])),
    }


def main(args) -> None:
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = []
        for scenario in [each for each in SCENARIOS if each.name in args.scenarios]:
            n, seeds = args.datasets, range(args.datasets)
            curves = list(pool.map(simulated, [scenario] * n, seeds, [args.resamples] * n))
            rows.append(row_of(scenario.name, curves))
    if args.results_dir and (curves := untrained(args.results_dir)):
        rows.append(row_of("random weights", curves))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    settings = {"datasets": args.datasets, "resamples": args.resamples, "provenance": provenance()}
    print(write_json(args.output, {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    parser = Parser(prog="python -m studies.onset.emergence", description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=100, help="simulated data sets a scenario")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenarios", nargs="+", choices=names, default=names, metavar="NAME", help="only these")
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap behind our own test")
    parser.add_argument("--results-dir", type=Path, help="runs with the control random_weights")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("onset_emergence.json"), help="where the table goes")
    sys.exit(run_script(parser, main))
