"""Transfer: the probes of layer i read layer j. Where the code is the same from layer to layer, and where it is new.

    python step3_probe.py transfer --run-name R --feature-root ROOT --probe-set fig2b_velocity_xy --pooling mean

The nested protocol's refits are trained per layer and fold, as `run` trains them; their weights then read the clips
of their fold, which they never saw, from every layer. By default each layer is put on the probe's scale first: every
feature of layer j gets the mean and spread (over the fold's training clips) that it has at layer i, since a residual
stream grows with depth and a probe that fails on a larger copy of the same code would say little. `--align none` reads
layers as they are. The diagonal is the curve of `run`.

Writes transfer_R.csv (`variable probe_layer read_layer r2 r2_low r2_high`, pooled over held-out clips, with the one
bootstrap over groups) and transfer_R.png.
"""

import argparse
import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pez.encoder.pooling import is_per_patch
from pez.errors import UserError
from pez.files import run_lock, write_csv
from pez.probes.options import SOLVERS, BallOptions, from_arguments, option
from pez.probes.recipes import OURS
from pez.probes.runs import Curve, notes, plan
from pez.probes.scores.kinds import KINDS
from pez.probes.scores.score import score
from pez.probes.solvers.linear import LINEAR
from pez.probes.validation.cross_validate import count_steps, cross_validate, probe_name
from pez.progress import progress

ALIGNMENTS = ("spread", "none")


@dataclass(frozen=True, kw_only=True)
class TransferOptions(BallOptions):
    """`step3_probe.py transfer`: as `run`, without what it has beside the main curve."""

    align: str = option(
        "spread", "each feature to the mean and spread it has at the probe's layer, or none", choices=lambda: ALIGNMENTS
    )


def run_transfer(args: argparse.Namespace) -> pd.DataFrame:
    """Transfer as the command line says; writes transfer_RUN.csv and returns its rows."""
    options = from_arguments(TransferOptions, args)
    if options.control or options.unique or options.solver not in LINEAR:
        raise UserError(
            "transfer reads linear probes of the main curve: leave out --control, --unique, --solver mlp or any other "
            "that is not linear"
        )
    curves = plan(options)
    for curve in curves:
        if "nested" not in curve.protocols:
            mend = "leave --protocol paper out" if options.protocol == "paper" else "give --folds of at least 3"
            mend = mend if options.recipe == OURS else f"leave --recipe {options.recipe} out"
            raise UserError(f"transfer reads the refits of the nested protocol: {mend}")
        print("\n".join(notes(options, curve)))
    with run_lock(options.results_dir, f"transfer_{options.run_name}"):
        table = pd.concat([transfer(options, curve) for curve in curves], ignore_index=True)
        print(write_csv(options.results_dir / f"transfer_{options.run_name}.csv", table))
    return table


def transfer(options: TransferOptions, curve: Curve) -> pd.DataFrame:
    """Rows of transfer_RUN.csv of one clip set. UserError for classes, or features with tokens."""
    data = curve.data
    if is_per_patch(curve.pooling) or KINDS[data.variables[0].kind].loss != "mse":
        raise UserError("transfer reads numbers from one vector a clip: choose a --pooling without patches, no classes")
    solver = SOLVERS[options.solver](options)
    probes: dict[str, torch.Tensor] = {}
    total = count_steps(solver, ("nested",), len(data.layers), curve.repeats)
    with progress(total=total, description=f"{options.run_name}, {data.name}", unit="probe") as bar:
        trained = cross_validate(data, curve.repeats, solver, ("nested",), step=bar.update, probes=probes)
    features = {layer: data.features(layer).double() for layer in data.layers}
    ends_of_variables = np.cumsum([len(each.variable.components) for each in trained])[:-1]
    rows = []
    for layer in data.layers:
        read = read_from_every_layer(curve, probes, features, layer, options.align == "spread")
        own = [
            dataclasses.replace(each, layers=np.array(data.layers), predicted=part, choices={}, rounding=None)
            for each, part in zip(trained, np.split(read, ends_of_variables, axis=3))
        ]
        scores = score(own, options.bootstrap)
        for variable in scores.variables():
            scored = scores.main(variable)
            ends = scored.interval("r2")
            rows.append(
                pd.DataFrame(
                    {
                        "variable": variable,
                        "probe_layer": layer,
                        "read_layer": data.layers,
                        "r2": scored.pooled("r2"),
                        "r2_low": ends[:, 0],
                        "r2_high": ends[:, 1],
                    }
                )
            )
    return pd.concat(rows, ignore_index=True).sort_values(["variable", "probe_layer"], kind="stable", ignore_index=True)


def read_from_every_layer(
    curve: Curve, probes: dict[str, torch.Tensor], features: dict[int, torch.Tensor], layer: int, align: bool
) -> np.ndarray:
    """Predictions of the probes of `layer` from every layer's features, [repeats, layers, n, k], each clip by the probe
    of its fold; NaN for clips that are never held out."""
    n, k = curve.data.targets.shape
    predicted = np.full((len(curve.repeats), len(features), n, k), np.nan)
    for repeat, folds in enumerate(curve.repeats):
        for fold, (train, held) in enumerate(folds.splits()):
            weight, bias = (
                probes[probe_name(curve.data, layer, repeat, fold, what)].double() for what in ("weight", "bias")
            )
            mean, spread = features[layer][train].mean(0), features[layer][train].std(0, correction=0)
            for place, other in enumerate(features.values()):
                seen = other[held]
                if align:
                    own = other[train].std(0, correction=0)
                    scale = torch.where(own > 0, spread / torch.where(own > 0, own, 1.0), 0.0)
                    seen = (seen - other[train].mean(0)) * scale + mean
                predicted[repeat, place, held] = (seen @ weight.T + bias).numpy()
    return predicted
