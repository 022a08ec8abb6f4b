"""Do features follow polar or Cartesian coordinates of motion? (Table 1, section 5.3)

Encoding at matched rank: the share of the features' held-out variance that least squares explains from

    polar_2      cos, sin of direction          cartesian_2    vx, vy
    polar_3      the same and speed             cartesian_3    the same and speed
    cells        a mean for every direction and speed: all that motion could explain

with 95 % intervals over groups, paired for the differences polar_less_cartesian_2 and _3. Onsets of decoding, which the
paper compares, say little here: speed is no linear function of (vx, vy), and the targets differ in noise.

    coordinates_RUN.csv   layer model value low high
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pez.files import run_lock
from pez.mechanisms.runs import (
    add_feature_arguments,
    add_run_arguments,
    ball_data,
    check_encoder,
    named,
    scored,
    write_results,
    zone_layers,
)
from pez.probes.folds import Folds
from pez.probes.scores.bootstrap import BootstrapCurve, bootstrap, group_resamples


def designs(clips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns of every model beside the mean, by name: [clips, k]."""
    angle, speed = (
        np.deg2rad(clips["direction_deg"].to_numpy(dtype=np.float64)),
        clips["magnitude"].to_numpy(dtype=float),
    )
    polar = np.stack([np.cos(angle), np.sin(angle)], 1)
    cells = pd.get_dummies(clips["direction_deg"].astype(str) + "/" + clips["magnitude"].astype(str), dtype=float)
    cartesian, more = polar * speed[:, None], speed[:, None]
    return {
        "polar_2": polar,
        "cartesian_2": cartesian,
        "polar_3": np.hstack([polar, more]),
        "cartesian_3": np.hstack([cartesian, more]),
        "cells": cells.to_numpy()[:, 1:],
    }


def errors(features: np.ndarray, design: np.ndarray, folds: Folds) -> np.ndarray:
    """Held-out squared error of every clip, summed over features [clips, d]: [clips]. An empty design is the mean."""
    squared_errors = np.zeros(len(features))
    for train, held in folds.splits():
        x = np.hstack([np.ones((len(features), 1)), design])
        weights = np.linalg.lstsq(x[train], features[train], rcond=None)[0]
        squared_errors[held] = np.square(features[held] - x[held] @ weights).sum(1)
    return squared_errors


def explained(features: np.ndarray, clips: pd.DataFrame, folds: Folds, resamples) -> dict[str, BootstrapCurve]:
    """Held-out share of variance by model, and the paired differences; `features` [clips, d], of one layer."""
    index, n_groups = resamples.index(folds.group), len(resamples.names)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, minlength=n_groups)

    total = sums(errors(features, np.zeros((len(features), 0)), folds))
    curves = {}
    for name, design in designs(clips).items():
        left = sums(errors(features, design, folds))
        curves[name] = bootstrap(lambda counts, left=left: (1 - counts @ left / (counts @ total))[:, None], resamples)
    for rank in (2, 3):
        curves[f"polar_less_cartesian_{rank}"] = curves[f"polar_{rank}"] - curves[f"cartesian_{rank}"]
    return curves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py coordinates`."""
    add_run_arguments(parser)
    add_feature_arguments(parser, "mean", ["random_weights", "static_last"])


def main(args: argparse.Namespace) -> list[Path]:
    """Explain the features; the path of the table."""
    balls = ball_data(args)
    check_encoder(args, balls.store.settings)
    resamples = group_resamples(balls.main.group, max(args.bootstrap, 1), args.seed, balls.folds.n_folds)
    about = {"zone": zone_layers(args.zone_layers, balls.store.depth), "features": balls.store.settings}
    rows = []
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"):
        for data in balls.all:
            for layer in data.layers:
                features = data.features(layer).double().numpy()
                for name, curve in explained(features, balls.store.clips, balls.folds, resamples).items():
                    rows.append({**named(data, layer=layer, model=name), **scored(curve, 0, args.bootstrap)})
        return write_results(args, "coordinates", {"coordinates.csv": rows}, about, "fixed", *balls.sizes)
