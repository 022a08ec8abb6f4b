"""How many orbits decide a statement? Power of the verdicts on sets drawn in orbits (matched, endless).

    python -m studies.power.orbits [--orbits 12 16 24 32 49] [--datasets 100] [--output FILE]

Each simulated data set goes the whole way from features to verdict: `n` orbits of 8 clips, one a direction; features
of 12 layers (as many as `tiny` has) in which (cos, sin) of the direction is planted with known strength, in noise
that is partly shared within an orbit (where the ball is) and carried from layer to layer; orbits whole in 5 folds;
ridge probes, out-of-fold predictions, the bootstrap over orbits; then the checks of pez.figures.verdicts.statements
against chance, and whether some layer reads more than a control of R^2 0.3 that has features of its own.

Prints a table and writes it as JSON: per curve and number of orbits, the share of data sets in which each statement is
decided as planted (`right`), decided the other way (`wrong`) or left undecided; and the mean half-width of a layer's
interval.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.cli import Parser, run_script
from pez.figures.verdicts.statements import FAILS, HOLDS, UNDECIDED, Evidence, Statement, beyond, check
from pez.files import write_json
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.bootstrap import bootstrap_r2, group_resamples
from pez.probes.solvers.linear import LinearSolver
from pez.probes.solvers.ridge import ridge_settings
from pez.probes.validation.cross_validate import outcomes
from pez.provenance import provenance

N_LAYERS, WIDTH, N_FOLDS, N_DIRECTIONS = 12, 48, 5, 8
CARRIED, SHARED = 0.9, 0.5  # of the noise: correlation with the next layer's, and share of its variance in an orbit
STRENGTH = 30.0  # of the ridge
CONTROL_R2 = 0.3
PLACE = np.arange(N_LAYERS) / N_LAYERS


@dataclass(frozen=True)
class Planted:
    """A curve of R^2 by layer, `strength` [layers] of the best possible probe, and what each statement should be."""

    name: str
    strength: np.ndarray
    truth: dict[str, str]


def _rise(layer: float, high: float) -> np.ndarray:
    return 0.02 + (high - 0.02) / (1 + np.exp(-(np.arange(N_LAYERS) - layer) / 0.4))


CURVES = (
    Planted("from layer 1, stays", _rise(1, 0.8), {"one third": FAILS, "beyond": HOLDS}),
    Planted("at one third, stays", _rise(4, 0.8), {"one third": HOLDS, "beyond": HOLDS}),
    Planted(
        "at one third, fades by 0.4",
        _rise(4, 0.8) - np.clip(PLACE - 0.6, 0, None) / 0.32 * 0.4,
        {"one third": HOLDS, "middle": HOLDS, "fades": HOLDS, "beyond": HOLDS},
    ),
    Planted("rises to the end", 0.1 + 0.7 * PLACE, {"middle": FAILS, "fades": FAILS, "beyond": HOLDS}),
    Planted("weak, 0.2", np.full(N_LAYERS, 0.2), {"beyond": FAILS}),
    Planted("nothing", np.zeros(N_LAYERS), {"one third": FAILS, "beyond": FAILS}),
)


def simulate(
    strength: np.ndarray, n_orbits: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orbit [n], (cos, sin) [n, 2] and features [layers, n, width]: each layer holds the direction in directions of its
    own, so strong that the best linear probe of many clips has R^2 `strength`."""
    orbit = np.repeat(np.arange(n_orbits), N_DIRECTIONS)
    angle = np.tile(np.arange(N_DIRECTIONS) * 2 * np.pi / N_DIRECTIONS, n_orbits)
    target = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def draw() -> np.ndarray:
        together, alone = rng.normal(size=(n_orbits, WIDTH)), rng.normal(size=(len(orbit), WIDTH))
        return np.sqrt(SHARED) * together[orbit] + np.sqrt(1 - SHARED) * alone

    noise, features = draw(), np.empty((len(strength), len(orbit), WIDTH))
    for layer, r2 in enumerate(strength):
        if layer:
            noise = CARRIED * noise + np.sqrt(1 - CARRIED**2) * draw()
        code, _ = np.linalg.qr(rng.normal(size=(WIDTH, 2)))
        gain = np.sqrt(2 * r2 / (1 - r2))  # cos and sin have variance 1/2 each, the noise along each axis 1
        features[layer] = noise + gain * target @ code.T
    return orbit, target, features


def predicted(features: np.ndarray, target: np.ndarray, folds: Folds) -> np.ndarray:
    """Out-of-fold predictions [layers, n, 2] of ridge probes."""
    layers, clips = tuple(range(len(features))), pd.DataFrame({"clip_id": np.arange(len(target)).astype(str)})
    variable, tensors = Variable("direction", "", target, "", ("cos", "sin")), torch.from_numpy(features)
    data = ProbeData("simulated", clips, folds.group, (variable,), layers, len(layers), tensors.__getitem__)
    solver = LinearSolver(ridge_settings((STRENGTH,)), epochs=0, patience=0, closed_form=True)
    predictions = np.full((len(layers), *target.shape), np.nan)
    reports = [(layer, fold) for layer in layers for fold in range(folds.n_folds)]
    for outcome in outcomes(data, folds, solver, ("paper",), reports):
        predictions[outcome.layer, folds.rows(outcome.fold)] = outcome.prediction
    return predictions


def verdicts(curve: Planted, n_orbits: int, seed: int, n_resamples: int) -> dict[str, object]:
    """The verdict on each statement for one data set, and the mean half-width of its layers' intervals."""
    rng = np.random.default_rng([seed, n_orbits])
    orbit, target, features = simulate(np.append(curve.strength, CONTROL_R2), n_orbits, rng)
    folds = Folds(orbit, grouped_folds(orbit, N_FOLDS, seed))
    values = predicted(features, target, folds)
    resamples = group_resamples(orbit, n_resamples, seed, n_folds=N_FOLDS)
    main, control = (bootstrap_r2(target, part, orbit, resamples) for part in (values[:-1], values[-1:]))
    evidence = Evidence(np.arange(N_LAYERS), N_LAYERS, main, {})
    by_statement: dict[str, object] = {
        name: check(Statement("", "", "", name), evidence)[0].verdict for name in ("one third", "middle", "fades")
    }
    flow = Evidence(evidence.layers, N_LAYERS, main, {}, beside={"optical_flow": control.over_layers(N_LAYERS)})
    low, high = main.interval().T
    return {**by_statement, "beyond": beyond("", flow)[0].verdict, "half-width": float((high - low).mean() / 2)}


def shares(curve: Planted, n_orbits: int, judged: pd.DataFrame) -> Iterator[dict]:
    """A row per statement that the curve is planted for."""
    for statement, truth in curve.truth.items():
        verdict = judged[statement]
        right = (verdict == truth).mean()
        yield {
            "curve": curve.name,
            "orbits": n_orbits,
            "statement": statement,
            "truth": truth,
            "right": float(right),
            "wrong": float(((verdict != truth) & (verdict != UNDECIDED)).mean()),
            "undecided": float((verdict == UNDECIDED).mean()),
            "half-width": float(judged["half-width"].mean()),
        }


def main(args) -> None:
    context, rows = get_context("spawn"), []
    with ProcessPoolExecutor(args.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for curve in CURVES:
            for n_orbits in args.orbits:
                n = args.datasets
                judged = list(pool.map(verdicts, [curve] * n, [n_orbits] * n, range(n), [args.resamples] * n))
                rows += shares(curve, n_orbits, pd.DataFrame(judged))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    settings = {"datasets": args.datasets, "resamples": args.resamples, "provenance": provenance()}
    print(write_json(args.output, {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    parser = Parser(prog="python -m studies.power.orbits", description=__doc__.splitlines()[0])
    parser.add_argument("--orbits", type=int, nargs="+", default=[12, 16, 24, 32, 49], help="8 clips each")
    parser.add_argument("--datasets", type=int, default=100, help="simulated data sets a curve and number of orbits")
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("power_orbits.json"), help="where the table goes")
    sys.exit(run_script(parser, main))
