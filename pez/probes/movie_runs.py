"""Runs of movies: what the two IntPhys scripts do. Apart from runs of balls, which need no encoder: a process that only
reads features does not load transformers.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pez.controls import MOVIES as OF_MOVIES
from pez.controls import controls_for
from pez.errors import UserError
from pez.files import remove_dead_partial, run_lock
from pez.movies.intphys2 import HELD_OUT as HELD_OUT_SPLIT
from pez.movies.intphys2 import MAIN as MAIN_SPLIT
from pez.movies.intphys2 import video_accuracy, write_leaderboard
from pez.probes.data.controls import ControlSource, control_data
from pez.probes.data.movies import MovieFeatures, movie_data, movie_features
from pez.probes.data.probe_data import ProbeData, store_features
from pez.probes.folds import published_scene_folds, repeated_scene_folds
from pez.probes.options import AttentiveOptions, MovieOptions, from_arguments, recorded
from pez.probes.predictions import MAIN, Choice, Predictions
from pez.probes.protocols import choice_words, chosen_protocols, quoted_protocol, spoken_protocol, with_fixed
from pez.probes.recipes import OURS, PUBLISHED, as_published
from pez.probes.results import (
    MOVIES,
    Tables,
    movie_controls,
    movie_predictions,
    movie_results,
    movie_settings,
    run_convergence,
    write_tables,
)
from pez.probes.runs import Curve, validated
from pez.probes.scores.possibility import METRIC_OF, score_movies
from pez.probes.scores.score import score
from pez.probes.solvers.attentive import AttentiveSolver
from pez.probes.solvers.attentive_training import Recipe
from pez.probes.solvers.linear import LinearSolver, linear_solver
from pez.probes.solvers.regression import Setting
from pez.probes.solvers.solver import Solver
from pez.probes.summary import movie_facts
from pez.probes.validation.checkpoints import LongCurve, count_pieces, cross_validate_long
from pez.probes.validation.cross_validate import read_others
from pez.shards import check_shard, describing, holding
from pez.store import FeatureStore

POOLING_OF_LINEAR = "mean"


def movie_curve(options: MovieOptions, features: MovieFeatures, args: argparse.Namespace, pooling: str) -> Curve:
    """The main curve of movies and its controls."""
    main = movie_data(features.store, features.dataset, args.capture, pooling, options.layers)
    if options.recipe == PUBLISHED:
        if features.dataset.pair_column:
            raise UserError(
                f"--recipe published has no choices for {features.dataset.title}, of which nothing is published: "
                "leave it out"
            )
        main = dataclasses.replace(main, variables=tuple(map(as_published, main.variables)))
        repeats = published_scene_folds(main.clips, options.folds)
    else:
        repeats = repeated_scene_folds(main.clips, options.folds, options.seed, options.repeats)
    n_folds = repeats[0].n_folds
    if isinstance(options, AttentiveOptions):
        protocols = with_fixed(options.protocol, n_folds, len(attentive_settings(options)))
    else:
        protocols = chosen_protocols(options.protocol, n_folds)
    where = (features.store, args.capture, pooling)
    source = ControlSource(*where, features.controls.__getitem__, OF_MOVIES, args.control_seeds, args.seed)
    asked = [name for name in controls_for(OF_MOVIES) if name in options.control]
    return Curve(*where, main, repeats, protocols, controls=tuple(control_data(main, asked, source)))


def write_movie_run(
    args: argparse.Namespace,
    options: MovieOptions,
    curve: Curve,
    solver: Solver,
    predictions: Sequence[Predictions],
    held_out: FeatureStore | None,
    settings: dict[str, Any],
) -> Tables:
    """Tables of a run of movies, written, and answers for --leaderboard; `settings` are what only its probe has, the
    same in every row."""
    if options.protocol == "both" and curve.protocols == ("paper",):
        print("note: 2 folds are too few for the nested protocol: only the published one was run")
    if len(curve.repeats) < options.repeats:
        n = len(curve.repeats)
        print(f"note: {options.repeats} seeds deal these scenes into {n} different sets of folds")
    with_epoch = isinstance(options, AttentiveOptions)
    probe_set = "intphys_attentive" if with_epoch else "intphys_linear"
    settings = {
        "capture": curve.capture,
        "pooling": curve.pooling,
        "selection_metric": options.selection_metric,
        "protocol": spoken_protocol(curve.protocols),
        **settings,
    }
    scores, depth, described = score(predictions, options.bootstrap), curve.store.depth, curve.store.settings
    rows = movie_results(scores, depth, with_epoch)
    named = {"run_name": options.run_name, "probe_set": probe_set, "variable": scores.variables()[0]}
    rows = pd.DataFrame(named, index=rows.index).join(rows)
    rows = rows.assign(**movie_settings(described), **settings, features_fingerprint=curve.store.content)
    record = {
        "run_name": options.run_name,
        "recipe": options.recipe,
        "probe_set": probe_set,
        "settings": {**settings, "n_bootstrap": options.bootstrap},
        "options": recorded(options),
        "features": described,
        "curves": movie_facts(rows),
    }
    tables = (
        rows,
        movie_controls(options.run_name, scores, depth, with_epoch),
        pd.DataFrame() if with_epoch else run_convergence(scores),
        movie_predictions(predictions, with_epoch),
    )
    answer_paths = []
    if args.leaderboard is not None:
        answer_rows, facts = _leaderboard_answers(args.leaderboard, predictions, curve, solver, held_out)
        record["leaderboard"] = {"file": args.leaderboard.name, **facts}
        answer_paths = [write_leaderboard(args.leaderboard, answer_rows, facts["task"])]
    results, controls, convergence, predicted = (table.assign(recipe=options.recipe) for table in tables)
    run_tables = Tables(results, controls, convergence, predicted, record)
    for path in [*write_tables(options.results_dir, options.run_name, MOVIES, run_tables)[::-1], *answer_paths]:
        print(f"wrote {path}")
    return run_tables


def answers(predictions: Sequence[Predictions]) -> pd.DataFrame:
    """Out-of-fold `score` of every movie (`clip_id`) of a main curve, by the protocol to quote; first repeat only. Each
    fold is answered at the layer whose pairwise accuracy is highest on the other folds (the first of equals)."""
    curve = _quoted_main(predictions)
    fold, scores = curve.fold[0], np.zeros(len(curve.clips))
    for number in range(curve.n_folds):
        held = np.flatnonzero(fold == number)
        best = int(np.argmax(_pairwise_accuracy(curve, 0, np.flatnonzero(fold != number))))
        scores[held] = curve.predicted[0, best, held, 0]
    return pd.DataFrame({"clip_id": curve.clips["clip_id"], "score": scores})


def _quoted_main(predictions: Sequence[Predictions]) -> Predictions:
    mains = {each.protocol: each for each in predictions if each.control == MAIN}
    return mains[quoted_protocol(mains)]


def _pairwise_accuracy(curve: Predictions, repeat: int, rows: np.ndarray) -> list[float]:
    """Of some movies, at every layer."""
    movies = curve.clips.iloc[rows]
    scores = curve.predicted[repeat, :, rows, 0].T
    return [score_movies(movies.assign(score=own))["pairwise_accuracy"] for own in scores]


def chosen_over_folds(predictions: Sequence[Predictions], solver: Solver) -> tuple[int, Choice]:
    """The layer and setting for movies that no fold holds, from what the folds of a main curve chose.

    By the protocol to quote. The layer is the one whose out-of-fold pairwise accuracy is highest (the mean over
    repeats, the first of equals). The setting is the one that most folds chose at that layer (of equals the
    first of the grid), for the mean of the epochs that they chose with it.
    """
    curve = _quoted_main(predictions)
    repeats = range(len(curve.fold))
    accuracy = np.mean([_pairwise_accuracy(curve, repeat, curve.tested) for repeat in repeats], axis=0)
    layer = int(curve.layers[int(np.argmax(accuracy))])
    choices = [choice for (_, at, _), choice in curve.choices.items() if at == layer]
    by_setting = [
        [each for each in choices if Setting(each.learning_rate, each.weight_decay) == setting]
        for setting in solver.settings
    ]
    number = max(range(len(by_setting)), key=lambda number: len(by_setting[number]))
    epochs = max(1, round(float(np.mean([choice.epochs for choice in by_setting[number]]))))
    chosen = solver.settings[number]
    return layer, Choice(number, epochs, chosen.learning_rate, chosen.weight_decay)


def _leaderboard_answers(
    path: Path, predictions: Sequence[Predictions], curve: Curve, solver: Solver, held_out: FeatureStore | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Answers for a leaderboard's file, `clip_id score`, and what the record says of them.

    Out of fold; or of `held_out` movies, by a probe trained on all movies of the main curve.
    """
    if held_out is None:
        out_of_fold = answers(predictions)
        possible = curve.data.clips.set_index("clip_id")["possible"][out_of_fold["clip_id"]]
        right = video_accuracy(possible, out_of_fold["score"] > 0)
        print(f"{path}: out-of-fold answers of {MAIN_SPLIT}, {right:.3f} of the videos right")
        return out_of_fold, {"task": MAIN_SPLIT, "video_accuracy": right}
    layer, choice = chosen_over_folds(predictions, solver)
    if isinstance(solver, LinearSolver):  # --until-converged may have chosen more epochs than it was given
        solver = dataclasses.replace(solver, epochs=max(solver.epochs, choice.epochs))
    others = store_features(held_out, curve.capture, curve.pooling)
    scores = read_others(curve.data, others, solver, layer, (choice,))[:, 0].numpy()
    protocol, n_movies = _quoted_main(predictions).protocol, len(curve.data.clips)
    print(
        f"{path}: answers of {HELD_OUT_SPLIT} by the probe of layer {layer} (learning rate {choice.learning_rate:g}, "
        f"weight decay {choice.weight_decay:g}, {choice.epochs} epochs; {protocol} choice on {MAIN_SPLIT}'s folds), "
        f"trained on all {n_movies} movies of {MAIN_SPLIT}"
    )
    facts = {"task": HELD_OUT_SPLIT, "protocol": protocol, "trained_on": n_movies, "layer": layer}
    facts |= {"lr": choice.learning_rate, "weight_decay": choice.weight_decay, "epochs": choice.epochs}
    return pd.DataFrame({"clip_id": held_out.clips["clip_id"], "score": scores}), facts


def run_movies(args: argparse.Namespace) -> Tables:
    """The linear probe of movies, as the command line says."""
    options = from_arguments(MovieOptions, args)
    chosen_protocols(options.protocol, options.folds)  # bad options stop the run before any work
    with run_lock(options.results_dir, options.run_name):
        features = movie_features(args, POOLING_OF_LINEAR, options.control)
        curve = movie_curve(options, features, args, POOLING_OF_LINEAR)
        asked = {"device": options.device, "memory_gib": options.memory_gib}
        stops_by = "accuracy" if options.recipe == PUBLISHED else "loss"
        solver = linear_solver("trainable", options.max_epochs, options.recipe, stops_by, **asked)
        predictions, _ = validated(options, [curve], solver, METRIC_OF[options.selection_metric])
        chosen = choice_words(curve.protocols, stops_by, options.selection_metric, "scenes")
        settings = {"seed": options.seed, "chosen": chosen}
        return write_movie_run(args, options, curve, solver, predictions, features.held_out, settings)


def attentive_settings(options: AttentiveOptions) -> tuple[Setting, ...]:
    """Pairs of learning rate and weight decay, each once."""
    return tuple(dict.fromkeys(itertools.starmap(Setting, itertools.product(options.lr, options.wd))))


def attentive_solver(options: AttentiveOptions) -> AttentiveSolver:
    """The attentive probe that the options describe; UserError for a recipe that cannot be."""
    dtype = options.probe_dtype
    if dtype == "auto":
        dtype = "bfloat16" if options.device.startswith("cuda") else "float32"
    recipe = Recipe(
        num_probe_blocks=options.num_probe_blocks,
        num_heads=options.probe_heads,
        num_epochs=options.num_epochs,
        batch_size=options.probe_batch_size,
        warmup_epochs=options.warmup_epochs,
        token_norm=options.token_norm,
        dtype=dtype,
        seed=options.seed,
        schedule=options.schedule,
    )
    stops_by = "loss" if options.recipe == OURS else "relative_accuracy"
    memory = None if options.memory_gib is None else int(options.memory_gib * 2**30)
    return AttentiveSolver(attentive_settings(options), recipe, options.device, memory, stops_by)


def long_curves(curve: Curve, solver: AttentiveSolver, options: AttentiveOptions) -> list[LongCurve]:
    """The main curve and its controls as pez/probes/validation/checkpoints.py trains them."""

    def described(data: ProbeData, protocols: tuple[str, ...]) -> dict[str, Any]:
        of_features = ("model", "weights_sha256", "transform", "frame_order", "clip_set")
        features = {key: data.described[key] for key in of_features}
        asked = {"capture": curve.capture, "pooling": curve.pooling, "n_folds": options.folds}
        choice = {
            "settings": [[setting.learning_rate, setting.weight_decay] for setting in solver.settings],
            "selection_metric": options.selection_metric,
        }
        control = {"control": data.control, "control_seed": data.control_seed, "protocols": list(protocols)}
        recipe = {} if options.recipe == OURS else {"recipe": options.recipe}
        return {**features, **asked, **solver.recipe.recorded(), **choice, **control, **recipe, "store": data.described}

    work = [(curve.data, curve.protocols), *((data, curve.protocols[-1:]) for data in curve.controls)]
    return [LongCurve(data, curve.repeats, own, described(data, own)) for data, own in work]


def run_attentive(args: argparse.Namespace) -> Tables | None:
    """The attentive probe of movies, as the command line says; None if pieces are left to other shards."""
    options = from_arguments(AttentiveOptions, args)
    solver = attentive_solver(options)  # bad options stop the run before any work
    with_fixed(options.protocol, options.folds, len(solver.settings))
    shard = check_shard(args.num_shards, args.shard_index)
    locks = options.results_dir / ".locks" / options.run_name
    with holding(locks, shard):
        remove_dead_partial(options.results_dir)
        features = movie_features(args, options.patch_pool, options.control, shard)
        curve = movie_curve(options, features, args, options.patch_pool)
        curves, directory = long_curves(curve, solver, options), options.results_dir / f"layers_{options.run_name}"
        predictions = cross_validate_long(curves, directory, solver, METRIC_OF[options.selection_metric], shard)
        if predictions is None:
            done, total = count_pieces(curves, directory)
            print(f"{directory}: {done} of {total} layers x folds; the shard that completes them writes the results")
            return None
        several = options.selection_metric if len(solver.settings) > 1 else ""
        chosen = choice_words(curve.protocols, solver.stops_by, several, "scenes")
        settings = {**solver.recipe.recorded(), "chosen": chosen}
        with describing(locks, shard):
            tables = write_movie_run(args, options, curve, solver, predictions, features.held_out, settings)
            solver.release()
    return tables
