"""Other tasks by layer (Figure 12): where they become readable, beside speed and direction of the same clips.

    shuffled    original clips or the same with their frames in another order (the stores that step 2 makes with
                --control shuffled_frames, or any other order given by --order): accuracy, a clip's two versions in
                one fold
    speed, direction    R^2 of the same clips, as elsewhere

Probes: ridge, nested; `shuffled` by least squares on 0 and 1. The paper's ImageNet, Something-Something and CLEVRER
need data that is not here. These are tasks of their own, not the control tasks of Hewitt and Liang (random labels by
type): where a clip's condition is its label those degenerate, and shuffled labels and random weights do their work.

    tasks_RUN.csv   task metric chance layer value low high
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.controls import frame_orders
from pez.files import run_lock, write_csv
from pez.mechanisms.runs import (
    DIRECTION,
    SPEED,
    add_feature_arguments,
    add_run_arguments,
    ball_data,
    check_encoder,
    of_variable,
    record,
    tabled,
    zone_layers,
)
from pez.probes.data.companions import Companions
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds
from pez.probes.scores.bootstrap import bootstrap_accuracy, bootstrap_r2, group_resamples
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate

TASKS = ("shuffled", SPEED, DIRECTION)


def versions(data: ProbeData, other, folds: Folds, order: str) -> tuple[ProbeData, Folds]:
    """Two versions of every clip, the second from `other` (layer -> [clips, d]); which one it is is to be read."""
    n = len(data.clips)
    label = np.repeat([1.0, 0.0], n)[:, None]
    variable = Variable(f"original_or_{order}", data.name, label, "", ("original",), kind="quantity")
    clips = pd.concat([data.clips, data.clips.assign(clip_id=data.clips["clip_id"] + f"/{order}")], ignore_index=True)
    group = np.tile(data.group, 2)
    doubled = dataclasses.replace(
        data,
        clips=clips,
        group=group,
        variables=(variable,),
        features=lambda layer: torch.cat([data.features(layer), other(layer)]),
    )
    return doubled, Folds(group, np.tile(folds.fold, 2))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py tasks`."""
    add_run_arguments(parser)
    add_feature_arguments(parser, "mean", ["random_weights"])
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS, help="tasks to read")
    orders = [order for order in frame_orders() if order != "original"]
    parser.add_argument("--order", default="shuffled_frames", choices=orders, help="of the other version's frames")


def main(args: argparse.Namespace) -> list[Path]:
    """Read the tasks; the path of the table."""
    balls = ball_data(args)
    check_encoder(args, balls.store.settings)
    jobs: list[tuple[str, ProbeData, Folds]] = []
    for data in balls.all:
        jobs += [(task, of_variable(data, task), balls.folds) for task in (SPEED, DIRECTION) if task in args.task]
    if "shuffled" in args.task:
        find = Companions(Path(args.feature_root), balls.store, balls.capture, balls.pooling, args.control_seeds)
        ((store, _),) = find(args.order)

        def other(layer: int) -> torch.Tensor:
            return store.layer(balls.capture, balls.pooling, layer, balls.store.clips["clip_id"])

        jobs.append((f"original or {args.order}", *versions(balls.main, other, balls.folds, args.order)))
    rows = []
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"):
        for task, data, folds in jobs:
            (found,) = cross_validate(data, (folds,), linear_solver("ridge"), ("nested",))
            resamples = group_resamples(data.group, max(args.bootstrap, 1), args.seed, folds.n_folds)
            target = found.variable.targets
            if task in (SPEED, DIRECTION):
                curve, metric, chance = bootstrap_r2(target, found.predicted[0], data.group, resamples), "R²", 0.0
            else:
                score = found.predicted[0, :, :, 0]
                curve = bootstrap_accuracy(target[:, 0] > 0.5, score, data.group, resamples, threshold=0.5)
                metric, chance = "accuracy", 0.5
            for at, layer in enumerate(data.layers):
                low, high = curve.interval()[at] if args.bootstrap else (np.nan, np.nan)
                named = {"control": data.control, "control_seed": data.control_seed, "task": task, "metric": metric}
                named |= {"n_clips": len(data.clips), "n_groups": folds.n_groups}
                rows.append(
                    {**named, "chance": chance, "layer": layer, "value": curve.estimate[at], "low": low, "high": high}
                )
        about = {"zone": zone_layers(args.zone_layers, balls.store.depth), "n_clips": len(balls.store.clips)}
        return [
            write_csv(
                args.results_dir / f"tasks_{args.run_name}.csv",
                tabled(rows, args, "nested", len(balls.store.clips), balls.folds.n_groups),
            ),
            record(args, "tasks", {**about, "features": balls.store.settings}),
        ]
