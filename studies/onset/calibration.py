"""Are onsets found where they were planted, and do their 95 % intervals hold?

    python -m studies.onset.calibration [--datasets 200] [--scenarios NAME ...] [--output FILE]

Each simulated data set goes the whole way: features of 24 layers, in which a target is planted by a known curve of
signal strength; 64 groups of 6 clips that share part of target and noise (the paper's velocity set has 392 clips, in
62 groups by direction and sector); grouped folds, ridge probes of pez.probes, out-of-fold predictions, a control of
labels shuffled three times, the bootstrap over groups, the three onset rules. Noise is carried from layer to layer,
as a residual stream does. Truth is the same rule applied to the population's curve: the R^2 of many such probes on
many fresh clips.

Prints a table and writes it as JSON (--output). Columns: `planted`, the planted layer, and `truth`, the population's;
`within 1`, share of data sets whose onset is within one layer of the planted (or else the true) one; `covered`, share
whose 95 % interval holds the truth; `unwidened`, that share without the stretching of pez.probes.scores.bootstrap; `no
onset` and `first`, shares with those verdicts; `curve`, share of the layers' R^2 intervals that hold the population's
R^2.
"""

import dataclasses
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.cli import Parser, run_script
from pez.files import write_json
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.bootstrap import BootstrapCurve, Resamples, bootstrap_r2, group_resamples, mean_curve
from pez.probes.scores.onset import AT_FIRST, NO_ONSET, RULES, BendFit, crossing, find_onsets
from pez.probes.solvers.linear import LinearSolver
from pez.probes.solvers.ridge import STRENGTHS, ridge_settings
from pez.probes.validation.cross_validate import outcomes
from pez.progress import progress
from pez.provenance import provenance

N_LAYERS, N_GROUPS, GROUP_SIZE, WIDTH, N_FOLDS = 24, 64, 6, 32, 5
N_SHUFFLES = 3  # permutations of the control, as step 3 has by default
CARRIED = 0.9  # correlation of a layer's noise with the next layer's
GROUP_SHARE = {"target": 0.5, "noise": 0.3}  # of the variance
STRENGTH = 100.0  # of the ridge probes that choose nothing
LAYERS = np.arange(N_LAYERS)


@dataclass(frozen=True)
class Scenario:
    """`strength` [layers]: R^2 of the best possible probe; `planted` layer for each rule it is planted for;
    `choose`: the ridge strength is chosen on the fold that is reported (the paper's protocol)."""

    name: str
    strength: np.ndarray
    planted: dict
    choose: bool = False


def _sigmoid(low: float, high: float, layer: float, width: float) -> np.ndarray:
    return low + (high - low) / (1 + np.exp(-(LAYERS - layer) / width))


def _corners(*points) -> np.ndarray:
    return np.interp(LAYERS, *zip(*points))


SCENARIOS = (
    Scenario("emerges at 8", _sigmoid(0.03, 0.85, 8, 0.6), {"half-rise": 8}),
    Scenario("steps up at 8", np.where(LAYERS < 8, 0.0, 0.8), {"half-rise": 7.5, "threshold": 7.5}),
    Scenario("late, at 17", _sigmoid(0.03, 0.8, 17, 0.6), {"half-rise": 17}),
    Scenario("rises until 8", _corners((0, 0.05), (8, 0.85), (23, 0.85)), {"breakpoint": 8}),
    Scenario("rises from 16", _corners((0, 0.05), (16, 0.05), (23, 0.85)), {"breakpoint": 16}),
    Scenario("creeps up from 8", _corners((0, 0.05), (8, 0.05), (23, 0.85)), {"breakpoint": 8}),
    Scenario("weak, at 8", _sigmoid(0.02, 0.35, 8, 0.6), {"half-rise": 8}),
    Scenario("from the start", np.full(N_LAYERS, 0.85), {"half-rise": 0, "threshold": 0}),
    Scenario("nothing", np.zeros(N_LAYERS), {}),
    Scenario("nothing, chosen on the fold", np.zeros(N_LAYERS), {}, choose=True),
)


def simulate(scenario: Scenario, rng: np.random.Generator, n_groups: int = N_GROUPS):
    """Group [n], target [n] (variance 1) and features [layers, n, width] of one data set."""
    group = np.repeat(np.arange(n_groups), GROUP_SIZE)

    def draw(share: float, *shape: int) -> np.ndarray:
        together, alone = rng.normal(size=(n_groups, *shape)), rng.normal(size=(len(group), *shape))
        return np.sqrt(share) * together[group] + np.sqrt(1 - share) * alone

    target = draw(GROUP_SHARE["target"])
    gain = np.sqrt(scenario.strength / (1 - scenario.strength))  # of the signal, in noise of variance 1
    noise = draw(GROUP_SHARE["noise"], WIDTH)
    features = np.empty((len(gain), len(group), WIDTH))
    for layer in range(len(gain)):
        if layer:
            noise = CARRIED * noise + np.sqrt(1 - CARRIED**2) * draw(GROUP_SHARE["noise"], WIDTH)
        features[layer] = noise
        features[layer, :, 0] += gain[layer] * target
    return group, target, features


def predicted(features: np.ndarray, targets: np.ndarray, fold: np.ndarray, choose: bool, read=None) -> np.ndarray:
    """Predictions [layers, n, variables] of ridge probes trained on the other folds; a column of `targets` each.

    The strength is STRENGTH, or with `choose` what the published protocol chooses. `read`: only this fold is held out
    and predicted.
    """
    layers, clips = tuple(range(len(features))), pd.DataFrame({"clip_id": np.arange(len(fold)).astype(str)})
    probed = tuple(Variable(f"target {n}", "", column[:, None], "", ("value",)) for n, column in enumerate(targets.T))
    tensors, folds = torch.from_numpy(features), Folds(clips["clip_id"].to_numpy(), fold)
    data = ProbeData("simulated", clips, folds.group, probed, layers, len(layers), tensors.__getitem__)
    strengths = STRENGTHS if choose else (STRENGTH,)
    solver = LinearSolver(ridge_settings(strengths), epochs=0, patience=0, closed_form=True)
    reports = [(layer, held) for layer in layers for held in (range(folds.n_folds) if read is None else (read,))]
    values = np.full((len(layers), *targets.shape), np.nan)
    for outcome in outcomes(data, folds, solver, ("paper",), reports):
        values[outcome.layer, folds.rows(outcome.fold)] = outcome.prediction
    return values


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of one data set: `group` [n], `targets` [n, 1 + N_SHUFFLES], the true one first, and `prediction`
    [layers, n, 1 + N_SHUFFLES]."""

    group: np.ndarray
    targets: np.ndarray
    prediction: np.ndarray

    def curves(self, resamples: Resamples) -> tuple[BootstrapCurve, BootstrapCurve]:
        """R^2 of the target, and the mean of the shuffled ones."""
        main, *shuffled = (
            bootstrap_r2(column, self.prediction[..., index], self.group, resamples)
            for index, column in enumerate(self.targets.T)
        )
        return main, mean_curve(shuffled)


def out_of_fold(scenario: Scenario, seed: int) -> OutOfFold:
    """Data set `seed` of a scenario, its probes cross-validated."""
    rng = np.random.default_rng(seed)
    group, target, features = simulate(scenario, rng)
    targets = np.stack([target, *(rng.permutation(target) for _ in range(N_SHUFFLES))], axis=1)
    return OutOfFold(group, targets, predicted(features, targets, grouped_folds(group, N_FOLDS, seed), scenario.choose))


def curves_of(scenario: Scenario, seed: int, n_resamples: int) -> tuple[BootstrapCurve, BootstrapCurve]:
    """Main and shuffled-label curves of data set `seed`, from out-of-fold predictions."""
    predictions = out_of_fold(scenario, seed)
    return predictions.curves(group_resamples(predictions.group, n_resamples, seed, n_folds=N_FOLDS))


@dataclass(frozen=True)
class Population:
    """`curve` [layers]: R^2 on fresh clips of probes trained on as many groups as a fold's are; `chance`: the R^2 of
    such probes of labels that the features do not hold, the mean over layers."""

    curve: np.ndarray
    chance: float

    def onsets(self) -> dict[str, float]:
        """Each rule applied to the curve; the highest layer is the peak, for there is no noise."""
        levels = {"threshold": 0.5, "half-rise": (self.chance + self.curve.max()) / 2}
        truth = {rule: float(crossing(LAYERS, self.curve[None], level)[0]) for rule, level in levels.items()}
        return {**truth, "breakpoint": float(BendFit(LAYERS.astype(float)).bend(self.curve[None])[0])}


def population_of(scenario: Scenario, n_probes: int = 60, seed: int = 10**6) -> Population:
    """The Population of a scenario, from `n_probes` training sets."""
    rng, error, variance = np.random.default_rng(seed), 0.0, 0.0
    for _ in range(n_probes):
        group, target, features = simulate(scenario, rng, n_groups=N_GROUPS + 150)
        order = rng.permutation(N_GROUPS)[: round(N_GROUPS * (1 - 1 / N_FOLDS))]
        fold = np.select([group >= N_GROUPS, np.isin(group, order)], [1, 0], default=2)
        kept, targets = fold < 2, np.stack([target, rng.permutation(target)], axis=1)
        values = predicted(features[:, kept], targets[kept], fold[kept], choose=False, read=1)
        fresh = fold[kept] == 1
        error = error + np.square(values[:, fresh] - targets[kept][fresh]).mean(1)
        variance = variance + targets[kept][fresh].var(0)
    main, control = (1 - error / variance).T
    return Population(main, float(control.mean()))


def unwidened(curve: BootstrapCurve) -> BootstrapCurve:
    """The curve with its resamples as they were drawn, without the stretching."""
    stretch = curve.resamples.stretch
    samples = curve.estimate + (curve.samples - curve.estimate) / stretch
    return dataclasses.replace(curve, samples=samples)


def judge(scenario: Scenario, population: Population, seed: int, n_resamples: int) -> list[dict]:
    """One row a rule: its onset in data set `seed` and whether that is true."""
    main, control = curves_of(scenario, seed, n_resamples)
    low, high = main.interval().T
    curve_covered = float(((low <= population.curve) & (population.curve <= high)).mean())
    truth = population.onsets()
    pairs = zip(find_onsets(LAYERS, main, control), find_onsets(LAYERS, unwidened(main), unwidened(control)))
    return [
        {
            "rule": onset.rule,
            "verdict": onset.verdict,
            "layer": onset.layer,
            "within_1": abs(onset.layer - scenario.planted.get(onset.rule, truth[onset.rule])) <= 1,
            "covered": _holds(onset, truth),
            "unwidened": _holds(narrow, truth),
            "curve": curve_covered,
        }
        for onset, narrow in pairs
    ]


def _holds(onset, truth: dict) -> float:
    """Whether an interval holds the truth; NaN without an interval, or without a truth."""
    true = truth[onset.rule]
    known = np.isfinite(true) and np.isfinite(onset.layer)
    return float(onset.low - 1e-9 <= true <= onset.high + 1e-9) if known else float("nan")


def summarize(scenario: Scenario, population: Population, rows: pd.DataFrame) -> list[dict]:
    """One row a rule: shares over data sets."""
    truth, table = population.onsets(), []
    for rule in RULES:
        part = rows[rows["rule"] == rule]
        table.append(
            {
                "scenario": scenario.name,
                "rule": rule,
                "planted": scenario.planted.get(rule, float("nan")),
                "truth": truth[rule],
                "median": part["layer"].median(),
                "within 1": part["within_1"].mean(),
                "covered": part["covered"].mean(),
                "unwidened": part["unwidened"].mean(),
                "no onset": (part["verdict"] == NO_ONSET).mean(),
                "first": (part["verdict"] == AT_FIRST).mean(),
                "other": (~part["verdict"].isin(["onset", NO_ONSET, AT_FIRST])).mean(),
                "curve": part["curve"].mean() if not scenario.choose else float("nan"),
                "datasets": len(part),
            }
        )
    return table


def calibrate(
    scenarios, n_datasets: int, n_resamples: int, pool=None, n_probes: int = 60, seed: int = 0
) -> pd.DataFrame:
    """The table of `summarize` over `scenarios`; `pool` is an executor to spread data sets over."""
    table = []
    for scenario in progress(scenarios, description="scenarios", unit="scenario"):
        population = population_of(scenario, n_probes)
        seeds = range(seed, seed + n_datasets)
        size = [[item] * n_datasets for item in (scenario, population)]
        judged = (pool.map if pool else map)(judge, *size, seeds, [n_resamples] * n_datasets)
        table += summarize(scenario, population, pd.DataFrame([row for rows in judged for row in rows]))
    return pd.DataFrame(table)


def main(args) -> None:
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        chosen = [scenario for scenario in SCENARIOS if scenario.name in args.scenarios]
        table = calibrate(chosen, args.datasets, args.resamples, pool)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-"))
    settings = {"datasets": args.datasets, "resamples": args.resamples, "provenance": provenance()}
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    print(write_json(args.output, {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    parser = Parser(prog="python -m studies.onset.calibration", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--datasets", type=int, default=200, help="simulated data sets a scenario")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenarios", nargs="+", choices=names, default=names, metavar="NAME", help="only these")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("onset_calibration.json"), help="where the table goes")
    sys.exit(run_script(parser, main))
