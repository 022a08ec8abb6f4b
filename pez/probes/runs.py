"""Runs: options in, the files of a run out. What step3_probe.py does; movies: movie_runs.py.

Each kind of run lays out its curves (the main one and its controls), cross-validates them, scores the predictions and
writes tables and a figure. One layer of one clip set is in memory at a time.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from pez.controls import BALLS, TOGETHER, UNIQUE
from pez.encoder.pooling import is_per_patch
from pez.errors import UserError
from pez.files import atomic_path, run_lock
from pez.probes.audit import grouping_notes
from pez.probes.data.ball import PROBE_SETS, check_direction_target, variables
from pez.probes.data.companions import Companions
from pez.probes.data.controls import ControlSource, beyond_data, control_data
from pez.probes.data.groupings import HELD_OUT, default_grouping
from pez.probes.data.labels import labelled_set, read_labels
from pez.probes.data.probe_data import (
    LEAST_VARIANCE,
    ProbeData,
    Variable,
    check_layers,
    feature_precision,
    store_features,
)
from pez.probes.folds import Folds, label_folds, published_folds, repeated_folds, swapped_folds
from pez.probes.options import SOLVERS, BallOptions, RunOptions, by_recipe, check_ranges, from_arguments, recorded
from pez.probes.predictions import Predictions, ball_rows
from pez.probes.protocols import chosen_protocols, spoken_protocol
from pez.probes.recipes import PUBLISHED, as_published
from pez.probes.results import BALL, Tables, ball_controls, ball_results, run_convergence, write_tables
from pez.probes.scores.bootstrap import FEW_GROUPS
from pez.probes.scores.kinds import KINDS
from pez.probes.scores.score import LEAST_GROUPS, score
from pez.probes.solvers.banded import BandedSolver, Part
from pez.probes.solvers.linear import LINEAR, LinearSolver
from pez.probes.solvers.mlp import MLP
from pez.probes.solvers.solver import Solver
from pez.probes.validation.convergence import RIDGE, beside_ridge, unconverged_layers
from pez.probes.validation.cross_validate import count_steps, cross_validate
from pez.progress import progress
from pez.store import FeatureStore, open_stores

ANGLE_NOTE = (
    "scalar angle: jumps at ±180°, where neighbouring directions lie 360° apart; read direction_sincos beside it"
)
LABELS = "labels"  # what tables call the probe set of labels of one's own
BALL_SETS = {name for probe_set in PROBE_SETS.values() for name in probe_set.clip_sets}
MORE_EPOCHS, MOST_EPOCHS = 4, 25_600  # of --until-converged
Probes = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Curve:
    """A main curve as it is to be probed: its store and data, the folds of every repeat, its protocols."""

    store: FeatureStore
    capture: str
    pooling: str
    data: ProbeData
    repeats: tuple[Folds, ...]
    protocols: tuple[str, ...]
    grouping: str = "scene"
    controls: tuple[ProbeData, ...] = ()
    solvers: Mapping[str, Solver] = field(default_factory=dict)  # of controls that have one of their own, by name

    @property
    def folds(self) -> Folds:
        """Folds of the first repeat; the groups are the same in all."""
        return self.repeats[0]


def validated(
    options: RunOptions, curves: Sequence[Curve], solver: Solver, metric: str | None
) -> tuple[list[Predictions], Probes]:
    """Predictions of main curves, then of their controls, under one progress bar; and, by name, the weights of the main
    curves' nested refits, if the probes are linear.

    Linear main curves are checked for convergence. With --until-converged, layers that had not converged are probed
    again, for more epochs.
    """
    work = [(curve, curve.data, curve.protocols, solver) for curve in curves]
    controls = [
        (curve, data, curve.protocols[-1:], curve.solvers.get(data.control, solver))
        for curve in curves
        for data in curve.controls
    ]
    work += sorted(controls, key=lambda each: each[3] is not solver)  # those with a solver of their own come last
    total = sum(count_steps(by, own, len(data.layers), curve.repeats) for curve, data, own, by in work)
    predictions: list[Predictions] = []
    probes: Probes = {}
    with progress(total=total, description=options.run_name, unit="probe") as bar:
        for curve, data, own, by in work:
            if data.control or not isinstance(by, LinearSolver):
                predictions += cross_validate(data, curve.repeats, by, own, metric=metric, step=bar.update)
                continue
            new = cross_validate(data, curve.repeats, by, own, metric=metric, step=bar.update, probes=probes)
            new = beside_ridge(data, curve.repeats, by, new)
            if options.until_converged:
                new = _until_converged(curve, by, metric, probes, new)
            predictions += new
    return predictions, probes


def _until_converged(
    curve: Curve, solver: LinearSolver, metric: str | None, probes: Probes, predictions: list[Predictions]
) -> list[Predictions]:
    """`predictions`; layers that had not converged are probed again, each time for MORE_EPOCHS times as many epochs."""
    while (layers := unconverged_layers([each for each in predictions if each.protocol == "nested"])) and (
        solver.epochs * MORE_EPOCHS <= MOST_EPOCHS
    ):
        solver = dataclasses.replace(solver, epochs=solver.epochs * MORE_EPOCHS)
        print(f"{curve.data.name}: layers {' '.join(map(str, layers))} again, for {solver.epochs} epochs")
        data = dataclasses.replace(curve.data, layers=layers)
        again = cross_validate(data, curve.repeats, solver, curve.protocols, metric=metric, probes=probes)
        again = beside_ridge(data, curve.repeats, solver, again)
        predictions = [each.with_layers_of(again) for each in predictions if each.protocol != RIDGE]
        predictions += [each for each in again if each.protocol == RIDGE]
    return predictions


# ---------------------------------------------------------------- balls


def plan(options: BallOptions) -> list[Curve]:
    """Check the options against the features and lay out data and folds of each clip set, without controls."""
    check_ranges(options)
    if (options.probe_set is None) == (options.targets is None):
        raise UserError("say what to read: --probe-set of the ball sets, or --targets FILE with --variables NAME:kind")
    stores = open_stores(options.feature_root)
    if options.targets is not None:
        if options.recipe == PUBLISHED:
            raise UserError("--targets does not go with --recipe published, which is of the ball sets: leave one out")
        if options.swap:
            raise UserError("--swap is of the ball sets; name the factor with --group, beside --targets")
        store = labelled_set(options.targets, stores, options.feature_root)
        named = (options.targets, options.variables, store.clips, store.name)
        labels = read_labels(*named, options.group, options.skip_unlabelled)
        for line in labels.notes:
            print(line)
        clips = store.clips.iloc[labels.rows].reset_index(drop=True)
        repeats = label_folds(labels, options.group, options.folds, options.seed, options.repeats)
        return [_curve(options, store, clips, labels.variables, repeats, options.group or "equal labels")]
    assert options.probe_set is not None  # one of the two, as checked above
    target = check_direction_target(options.probe_set, options.direction_target)
    needed = PROBE_SETS[options.probe_set].clip_sets
    missing = [name for name in needed if name not in stores]
    if missing and not set(stores) & set(BALL_SETS):
        raise UserError(
            f"{options.feature_root} holds {', '.join(stores)}, no ball set of step1_generate.py: read its clips with "
            "--targets FILE --variables NAME:kind, or in Python with pez.store.open_stores (README, Your own clips)"
        )
    if missing:
        raise UserError(
            f"{options.feature_root} has no features of the {missing[0]} set, which --probe-set {options.probe_set} "
            f"needs (it has {', '.join(stores)}): extract them with step2_extract.py"
        )
    return [
        _ball_curve(options, stores[name], tuple(variables(options.probe_set, stores[name], target))) for name in needed
    ]


def _ball_curve(options: BallOptions, store: FeatureStore, probed: tuple[Variable, ...]) -> Curve:
    grouping = options.grouping or default_grouping(store.clips)
    if options.recipe == PUBLISHED:
        if options.swap:
            raise UserError("--swap does not go with --recipe published, which has folds of its own: leave one out")
        probed = tuple(map(as_published, probed))
        folds = published_folds(store, grouping, options.folds, options.tear_orbits)
        return _curve(options, store, store.clips, probed, folds, grouping)
    targets = np.concatenate([variable.targets for variable in probed], axis=1)
    asked = (grouping, options.folds, options.seed, options.repeats, targets, options.tear_orbits)
    repeats = repeated_folds(store, *asked)
    if options.swap:
        repeats = (swapped_folds(store.clips, repeats[0].group, options.swap),)
        grouping = f"{grouping}, {options.swap} swapped"
    return _curve(options, store, store.clips, probed, repeats, grouping)


def _curve(
    options: BallOptions,
    store: FeatureStore,
    clips: pd.DataFrame,
    probed: tuple[Variable, ...],
    repeats: tuple[Folds, ...],
    grouping: str,
) -> Curve:
    """A curve of some clips of a store, checked against what the options say of the features."""
    capture, stored = options.residual_capture, store.settings["captures"]
    if capture not in stored:
        raise UserError(
            f"{store.directory} holds {', '.join(stored)}, but --residual-capture says {capture}: "
            f"say {stored[0]}, or extract with --capture {capture}"
        )
    pooling = store.check(capture, options.pooling)
    transform = store.settings["transform"]
    if options.preprocessing != transform:
        raise UserError(
            f"{store.directory} was preprocessed with {transform}, but --preprocessing says {options.preprocessing}: "
            f"say {transform}, or extract with --transform {options.preprocessing}"
        )
    losses = {KINDS[variable.kind].loss for variable in probed}
    if len(losses) > 1:
        raise UserError(
            "--variables: classes and pairs are trained otherwise than numbers: probe them in a run of their own"
        )
    if options.solver == MLP and is_per_patch(pooling):
        raise UserError(f"--solver mlp reads one vector a clip, not --pooling {pooling}: choose one without patches")
    if options.solver not in LINEAR and (options.save_probes or options.until_converged):
        raise UserError(
            f"--save-probes and --until-converged are of linear probes: leave them out with --solver {options.solver}"
        )
    if options.solver == "ridge" and losses == {"logistic"}:
        raise UserError("--solver ridge is for numbers: use --solver trainable for classes and pairs")
    data = ProbeData(
        name=store.name,
        clips=clips,
        group=repeats[0].group,
        variables=probed,
        layers=check_layers(options.layers, store.depth, store.directory),
        depth=store.depth,
        features=store_features(store, capture, pooling, None if len(clips) == len(store.clips) else clips["clip_id"]),
        norm_mode=options.norm_mode,
        described=store.settings,
        precision=feature_precision(store.settings, pooling),
        stores=(store,),
    )
    protocols = chosen_protocols(options.protocol, repeats[0].n_folds)
    return Curve(store, capture, pooling, data, repeats, protocols, grouping)


def with_controls(options: BallOptions, curve: Curve) -> Curve:
    """`curve` with the controls asked for; UserError, with the command that makes it, for a missing store."""
    stores = Companions(Path(options.feature_root), curve.store, curve.capture, curve.pooling, options.control_seeds)
    where = (curve.store, curve.capture, curve.pooling, stores)
    source = ControlSource(*where, BALLS, options.control_seeds, modes=options.control_mode)
    beyond: list[ProbeData] = []
    solvers: dict[str, Solver] = {}
    if options.unique:
        if KINDS[curve.data.variables[0].kind].loss != "mse":
            raise UserError("--unique is a share of a variance: leave it out for classes and pairs")
        *beyond, columns = beyond_data(curve.data, source)
        parts = tuple(Part(width, norm_mode) for width, norm_mode in columns)
        layer_norm = "zscore" if options.norm_mode == "zscore" else "center"
        solvers = {TOGETHER: BandedSolver(parts, shares=(0.0,)), UNIQUE: BandedSolver(parts, layer_norm)}
    controls = (*control_data(curve.data, options.control, source), *beyond)
    return dataclasses.replace(curve, controls=controls, solvers=solvers)


def probe_curves(options: BallOptions) -> Tables:
    """Probe every layer, and the controls asked for. UserError for options that do not fit the features."""
    options = by_recipe(options)
    return probe_balls(options, [with_controls(options, curve) for curve in plan(options)])


def probe_balls(options: BallOptions, curves: Sequence[Curve]) -> Tables:
    """Probe curves that were laid out before, by options that `by_recipe` has seen."""
    solver = SOLVERS[options.solver](options)
    # by the published recipe clips choose by R², patches by their own loss
    metric = "r2" if options.recipe == PUBLISHED and not is_per_patch(curves[0].pooling) else None
    predictions, probes = validated(options, curves, solver, metric)
    scores = score(predictions, options.bootstrap)
    depths: dict[str, int] = {}
    described: dict[str, dict[str, Any]] = {}
    encoders: dict[tuple[str, str, int], dict[str, Any]] = {}
    for curve in curves:
        for variable in curve.data.variables:
            depths[variable.name] = curve.store.depth
            described[variable.name] = _described(options, curve, variable)
            for data in curve.controls:
                model, weights = data.described.get("model", ""), data.described.get("weights_label", "")
                encoders[variable.name, data.control, data.control_seed] = {"model": model, "weights": weights}
    tables = (
        ball_results(options.run_name, scores, depths, described),
        ball_controls(options.run_name, scores, depths, described, encoders),
        run_convergence(scores),
        pd.concat([ball_rows(options.run_name, each) for each in predictions], ignore_index=True),
    )
    results, controls, convergence, predicted = (table.assign(recipe=options.recipe) for table in tables)
    record = _ball_record(options, curves, solver)
    return Tables(results, controls, convergence, predicted, record, probes if options.save_probes else {})


def _described(options: BallOptions, curve: Curve, variable: Variable) -> dict[str, Any]:
    """Columns that say how one variable's rows were made."""
    folds, settings = curve.folds, curve.store.settings
    least = LEAST_VARIANCE * variable.targets.var(0)
    direction = check_direction_target(options.probe_set, options.direction_target) if options.probe_set else ""
    return {
        "protocol": spoken_protocol(curve.protocols),
        "unit": variable.unit,
        "probe_set": options.probe_set or LABELS,
        "solver": options.solver,
        "norm_mode": options.norm_mode,
        "grouping": curve.grouping,
        "direction_target": direction,
        "residual_capture": options.residual_capture,
        "preprocessing": options.preprocessing,
        "pooling": curve.pooling,
        "frame_order": settings.get("frame_order", "original"),
        "model": settings["model"],
        "weights": settings["weights_label"],
        "n_clips": len(folds.fold),
        "n_groups": folds.n_groups,
        "n_folds": folds.n_folds,
        "n_folds_scored": sum(bool((variable.targets[rows].var(0) > least).any()) for _, rows in folds.splits()),
        "n_repeats": len(curve.repeats),
        "n_bootstrap": options.bootstrap,
        "seed": options.seed,
        "note": ANGLE_NOTE if variable.components == ("angle",) else "",
        "features_fingerprint": curve.store.content,
    }


def _ball_record(options: BallOptions, curves: Sequence[Curve], solver: Solver) -> dict[str, Any]:
    """What the config file says of a run, provenance aside."""
    return {
        "options": recorded(options),
        "recipe": options.recipe,
        "protocol": options.protocol,
        "settings": [dataclasses.asdict(setting) for setting in solver.settings],
        "clip_sets": {
            curve.data.name: {
                "variables": {variable.name: variable.unit for variable in curve.data.variables},
                "pooling": curve.pooling,
                "n_clips": len(curve.folds.fold),
                "n_groups": curve.folds.n_groups,
                "n_folds": curve.folds.n_folds,
                "features": curve.store.settings,
            }
            for curve in curves
        },
        "controls": [
            {
                "control": data.control,
                "control_seed": data.control_seed,
                "clip_set": data.name,
                "features": data.described,
                "note": data.note,
            }
            for curve in curves
            for data in curve.controls
        ],
    }


def run_balls(args: argparse.Namespace) -> Tables:
    """Probe as the command line says and write the run's files; UserError before any work for bad options."""
    options = from_arguments(BallOptions, args)
    curves = [with_controls(options, curve) for curve in plan(options)]  # a missing store stops it before any work
    for curve in curves:
        control_notes = [f"note: {data.note} (seed {data.control_seed})" for data in curve.controls if data.note]
        asked = (curve.store, curve.pooling, curve.repeats, curve.grouping, options.seed)
        place_notes = [] if options.swap else grouping_notes(*asked)
        for line in [*notes(options, curve), *place_notes, *control_notes]:
            print(line)
    with run_lock(options.results_dir, options.run_name):
        tables = probe_balls(options, curves)
        mean = [column for column in tables.results if column.endswith("_mean") and "nested" not in column]
        unscored = tables.results.loc[tables.results[mean].isna().all(axis=1), "variable"].unique()
        for name in unscored:
            print(f"note: every fold holds {name} constant, so a fold has no R²: read r2_pooled, or regroup")
        probes = options.results_dir / f"probes_{options.run_name}.safetensors"
        probes.unlink(missing_ok=True)  # an earlier run of this name may have kept its probes
        if tables.probes:
            with atomic_path(probes) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in tables.probes.items()}, temporary)
            print(probes)
        for path in write_tables(options.results_dir, options.run_name, BALL, tables):
            print(path)
    return tables


def notes(options: BallOptions, curve: Curve) -> list[str]:
    """What a user should know of a clip set's folds before the curves."""
    folds, name = curve.folds, curve.data.name
    lines = [
        f"{name}: {len(folds.fold)} clips, {folds.n_groups} groups ({curve.grouping}), {folds.n_folds} folds, "
        f"{curve.pooling}, {curve.store.settings['model']}, {curve.store.settings['weights_label']}"
    ]
    if options.swap:
        levels = ", ".join(map(str, np.unique(curve.data.clips[options.swap])))
        lines.append(f"note: each {options.swap} ({levels}) is read by probes trained on the others")
    elif curve.grouping in HELD_OUT:
        lines.append(f"note: one value a fold is held out ({folds.n_folds} in all): read r2_pooled and mae")
    elif folds.n_folds < options.folds:
        lines.append(f"note: {folds.n_groups} groups make {folds.n_folds} folds, not {options.folds}")
    asked = [variable.kind for variable in curve.data.variables if not variable.name.startswith("direction_")]
    if curve.grouping == "held_out_direction" and "angle" in asked:
        lines.append(
            "note: held_out_direction with --direction-target angle: beside the jump at ±180° a held-out direction has "
            "one neighbour only, so it is extrapolated: use --direction-target sincos, or read direction_sincos"
        )
    if len(curve.repeats) < options.repeats:
        n = len(curve.repeats)
        lines.append(f"note: {options.repeats} seeds make {n} different sets of folds of these groups: --repeats {n}")
    if options.protocol == "both" and len(curve.protocols) == 1:
        lines.append(
            f"note: {folds.n_folds} folds (of 3) are too few for the nested protocol: only the published one is run"
        )
    n_tested = len(set(folds.group[folds.tested]))
    if options.bootstrap and n_tested < LEAST_GROUPS:
        lines.append(f"note: fewer than {LEAST_GROUPS} groups are held out, so there are no intervals")
    elif options.bootstrap and n_tested < FEW_GROUPS:
        lines.append(f"note: intervals rest on {n_tested} groups and come out too short under {FEW_GROUPS}")
    return lines
