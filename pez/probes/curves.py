"""Layer curves: feature stores and settings in; a results table, out-of-fold predictions and a record out.

One layer of one clip set is in memory at a time. Protocol "paper": a setting and its epoch are chosen on the
fold that is reported, as the published protocol does; the `protocol` column says so in every table.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from constants import N_FOLDS, PROBE_EPOCHS, PROBE_PATIENCE
from pez.errors import UserError, check_choice
from pez.probes.folds import Folds, make_folds
from pez.probes.metrics import r2
from pez.probes.problems import NORM_MODES, Moments, Problem, Setting, moment_problem, paper_settings, row_problem
from pez.probes.ridge import ridge_settings, solve_ridge
from pez.probes.sweep import SweepResult, solve
from pez.probes.targets import Variable, check_direction_target, clip_sets_of, variables
from pez.runs import progress
from pez.store import FeatureStore, open_stores

SOLVERS = ("trainable", "adamw100", "ridge")
PAPER_PROTOCOL = "paper"
_LEAST_VARIANCE = 1e-6  # share of a target's variance over all clips under which a fold holds it constant


@dataclass(frozen=True)
class ProbeOptions:
    """What `step3_probe.py run` is asked for; None stands for the default that the features decide."""

    run_name: str
    feature_root: Path
    probe_set: str
    solver: str = "trainable"
    norm_mode: str = "zscore"
    grouping: str = "direction_spatial_sector"
    direction_target: str | None = None
    residual_capture: str = "resid_post"
    preprocessing: str = "resize"
    pooling: str | None = None
    folds: int = N_FOLDS
    seed: int = 0
    layers: tuple[int, ...] | None = None
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class ProbeSet:
    """One clip set of a run: its store, the variables that share its features, and its folds."""

    store: FeatureStore
    pooling: str
    variables: list[Variable]
    folds: Folds
    layers: tuple[int, ...]

    @property
    def targets(self) -> torch.Tensor:
        """Targets of all variables side by side, [n, k], float64."""
        return torch.from_numpy(np.concatenate([variable.targets for variable in self.variables], axis=1))

    @property
    def outputs(self) -> tuple[int, ...]:
        """How many columns of `targets` each variable has."""
        return tuple(len(variable.components) for variable in self.variables)


@dataclass(frozen=True)
class Curves:
    """`results`: one row a protocol, variable and layer; `predictions`: one a protocol, variable, layer, clip and
    component, out of fold; `record`: settings and what they meant, for the config file."""

    results: pd.DataFrame
    predictions: pd.DataFrame
    record: dict


def probe_curves(options: ProbeOptions) -> Curves:
    """Probe every layer with the paper's protocol. UserError for options that do not fit the features."""
    probe_sets = plan(options)
    tables = [
        tables_of_layer(options, probe_set, layer, fold_results)
        for probe_set, layer, fold_results in _solved(options, probe_sets)
    ]
    results = pd.concat([table for table, _ in tables], ignore_index=True)
    results["variable"] = pd.Categorical(results["variable"], categories=results["variable"].unique())
    results = results.sort_values(["variable", "layer"], kind="stable").astype({"variable": str})
    predictions = pd.concat([table for _, table in tables], ignore_index=True)
    return Curves(results.reset_index(drop=True), predictions, record(options, probe_sets))


def plan(options: ProbeOptions) -> list[ProbeSet]:
    """Check the options against the features and lay out targets and folds of each clip set."""
    check_choice("--solver", options.solver, SOLVERS)
    check_choice("--norm-mode", options.norm_mode, NORM_MODES)
    target = check_direction_target(options.probe_set, options.direction_target)
    needed = clip_sets_of(options.probe_set)
    stores = open_stores(options.feature_root)
    missing = [name for name in needed if name not in stores]
    if missing:
        raise UserError(
            f"{options.feature_root} has no features of the {missing[0]} set, which --probe-set {options.probe_set} "
            f"needs (it has {', '.join(stores)}): extract them with step2_extract.py"
        )
    return [_plan_set(options, stores[name], target) for name in needed]


def _plan_set(options: ProbeOptions, store: FeatureStore, direction_target: str) -> ProbeSet:
    _check_capture(options.residual_capture, store)
    pooling = store.check(options.residual_capture, options.pooling)
    made_with = store.settings["transform"]
    if options.preprocessing != made_with:
        raise UserError(
            f"{store.directory} was preprocessed with {made_with}, but --preprocessing says {options.preprocessing}: "
            f"say {made_with}, or extract with --transform {options.preprocessing}"
        )
    layers = options.layers or tuple(range(store.depth))
    outside = [layer for layer in layers if not 0 <= layer < store.depth]
    if outside:
        raise UserError(f"--layers {outside[0]} is not in 0 ... {store.depth - 1}, the layers of {store.directory}")
    found = variables(options.probe_set, store, direction_target)
    return ProbeSet(store, pooling, found, make_folds(store, options.grouping, options.folds, options.seed), layers)


def _check_capture(capture: str, store: FeatureStore) -> None:
    there = store.settings["captures"]
    if capture not in there:
        raise UserError(
            f"{store.directory} holds {', '.join(there)}, but --residual-capture says {capture}: "
            f"say {there[0]}, or extract with --capture {capture}"
        )


def solver_settings(solver: str) -> tuple[Setting, ...]:
    """The settings a solver chooses from."""
    if solver == "adamw100":
        return (Setting(1e-3, 0.1),)
    return ridge_settings() if solver == "ridge" else paper_settings()


def solved(options: ProbeOptions, problems) -> Iterator[SweepResult]:
    """Results of `problems` by the options' solver, in order."""
    if options.solver == "ridge":
        return solve_ridge(problems)
    epochs, patience = (100, 10) if options.solver == "adamw100" else (PROBE_EPOCHS, PROBE_PATIENCE)
    device, threads = options.device, options.threads
    return solve(problems, epochs=epochs, patience=patience, device=device, threads=threads)


def _solved(options: ProbeOptions, probe_sets: list[ProbeSet]):
    """Yield (probe set, layer, results of its folds), layer after layer."""
    steps = [(probe_set, layer) for probe_set in probe_sets for layer in probe_set.layers]
    problems = (problem for step in steps for problem in layer_problems(options, *step))
    total = sum(probe_set.folds.n_folds for probe_set, _ in steps)
    results = iter(progress(solved(options, problems), total=total, description=options.run_name, unit="probe"))
    for probe_set, layer in steps:
        yield probe_set, layer, [next(results) for _ in range(probe_set.folds.n_folds)]
    next(results, None)  # lets the bar finish its line


def layer_problems(options: ProbeOptions, probe_set: ProbeSet, layer: int) -> Iterator[Problem]:
    """One problem a fold, trained on the other folds and judged on it."""
    features = probe_set.store.layer(options.residual_capture, probe_set.pooling, layer).to(options.device)
    targets = probe_set.targets.to(features.device)
    shared = {
        "settings": solver_settings(options.solver),
        "normalise": options.norm_mode,
        "outputs": probe_set.outputs,
        "dtype": torch.float64 if options.solver == "ridge" else torch.float32,
    }
    if features.ndim == 2:
        for train, held_out in probe_set.folds.splits():
            yield row_problem(features, targets, train, held_out, **shared)
        return
    held_outs = [torch.as_tensor(rows, device=features.device) for _, rows in probe_set.folds.splits()]
    parts = [Moments.of_patches(features[rows], targets[rows]) for rows in held_outs]
    means = features.float().mean(1)
    for held_out, rest in zip(held_outs, _leave_one_out(parts)):
        yield moment_problem(rest, means[held_out], targets[held_out], **shared)


def _leave_one_out(parts: list[Moments]) -> Iterator[Moments]:
    for left_out in range(len(parts)):
        rest = [part for index, part in enumerate(parts) if index != left_out]
        yield sum(rest[1:], start=rest[0])


def tables_of_layer(
    options: ProbeOptions, probe_set: ProbeSet, layer: int, fold_results: list[SweepResult]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Result rows and prediction rows of one layer from its folds' sweeps."""
    out_of_fold = np.full(probe_set.targets.shape, np.nan)
    for (_, held_out), result in zip(probe_set.folds.splits(), fold_results):
        out_of_fold[held_out] = result.chosen(result.validation_prediction).numpy()
    results, predictions, first = [], [], 0
    for index, variable in enumerate(probe_set.variables):
        columns = slice(first, first + len(variable.components))
        first = columns.stop
        chosen = [result.best_setting()[index] for result in fold_results]
        results.append(_result_row(options, probe_set, layer, variable, out_of_fold[:, columns], chosen))
        predictions.append(_prediction_rows(options, probe_set, layer, variable, out_of_fold[:, columns]))
    return pd.DataFrame(results), pd.concat(predictions, ignore_index=True)


def _result_row(options, probe_set: ProbeSet, layer: int, variable: Variable, predicted, chosen) -> dict:
    folds, settings = probe_set.folds, probe_set.store.settings
    scores = fold_scores(variable.targets, predicted, folds)
    known = scores[np.isfinite(scores)]
    return {
        "run_name": options.run_name,
        "variable": variable.name,
        "layer": layer,
        "layer_fraction": round(layer / settings["depth"], 6),
        "r2_mean": known.mean() if len(known) else np.nan,
        "r2_std": known.std() if len(known) else np.nan,
        "r2_pooled": r2(variable.targets, predicted),
        "best_lr_mode": _mode([setting.learning_rate for setting in chosen]),
        "best_wd_mode": _mode([setting.weight_decay for setting in chosen]),
        "protocol": PAPER_PROTOCOL,
        "unit": variable.unit,
        "probe_set": options.probe_set,
        "solver": options.solver,
        "norm_mode": options.norm_mode,
        "grouping": options.grouping,
        "direction_target": check_direction_target(options.probe_set, options.direction_target),
        "residual_capture": options.residual_capture,
        "preprocessing": options.preprocessing,
        "pooling": probe_set.pooling,
        "frame_order": settings.get("frame_order", "original"),
        "model": settings["model"],
        "weights": settings["weights_label"],
        "n_clips": len(folds.fold),
        "n_groups": folds.n_groups,
        "n_folds": folds.n_folds,
        "n_folds_scored": len(known),
        "seed": options.seed,
    }


def fold_scores(values: np.ndarray, predicted: np.ndarray, folds: Folds) -> np.ndarray:
    """R^2 of each fold's held-out clips, [folds]; NaN where the fold holds the target constant."""
    least = _LEAST_VARIANCE * values.var(0)
    return np.array([r2(values[rows], predicted[rows], least) for _, rows in folds.splits()])


def _mode(values: list[float]) -> float:
    """The commonest value, of equally common ones the smallest; NaN if there is none."""
    common = pd.Series(values, dtype=float).mode()
    return float(common.iloc[0]) if len(common) else float("nan")


def _prediction_rows(options, probe_set: ProbeSet, layer: int, variable: Variable, predicted) -> pd.DataFrame:
    n, k = predicted.shape
    return pd.DataFrame(
        {
            "run_name": options.run_name,
            "protocol": PAPER_PROTOCOL,
            "variable": variable.name,
            "layer": layer,
            "clip_id": np.repeat(probe_set.store.clips["clip_id"].to_numpy(), k),
            "group": np.repeat(probe_set.folds.group, k),
            "fold": np.repeat(probe_set.folds.fold, k),
            "component": np.tile(variable.components, n),
            "target": variable.targets.ravel(),
            "prediction": predicted.ravel(),
        }
    )


def record(options: ProbeOptions, probe_sets: list[ProbeSet]) -> dict:
    """What the config file says of a run, provenance aside."""
    return {
        "options": {**dataclasses.asdict(options), "feature_root": str(options.feature_root)},
        "protocol": f"{PAPER_PROTOCOL}: setting and stopping epoch are chosen on the fold that is reported",
        "settings": [dataclasses.asdict(setting) for setting in solver_settings(options.solver)],
        "clip_sets": {
            probe_set.store.name: {
                "variables": {variable.name: variable.unit for variable in probe_set.variables},
                "pooling": probe_set.pooling,
                "n_clips": len(probe_set.folds.fold),
                "n_groups": probe_set.folds.n_groups,
                "n_folds": probe_set.folds.n_folds,
                "features": probe_set.store.settings,
            }
            for probe_set in probe_sets
        },
    }
