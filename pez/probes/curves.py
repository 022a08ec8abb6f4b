"""Layer curves: feature stores and settings in; a results table, out-of-fold predictions and a record out.

One layer of one clip set is in memory at a time. Settings are chosen by one protocol or by two side by side
(pez/probes/protocols.py): `r2_mean` and `r2_std` are over folds under the published protocol, `r2_nested_mean` and
`r2_nested_std` under the nested one, and `optimism` is what the first claims more than the second.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from constants import N_FOLDS
from pez.errors import UserError, check_choice
from pez.probes.ball_task import SOLVERS, BallTask, solver_settings
from pez.probes.folds import Folds, make_folds
from pez.probes.metrics import r2
from pez.probes.problems import NORM_MODES
from pez.probes.protocols import FoldResult, chosen_protocols, n_problems, out_of_fold
from pez.probes.targets import Variable, check_direction_target, clip_sets_of, variables
from pez.runs import progress
from pez.store import FeatureStore, open_stores

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
    protocol: str = "both"
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
    protocols: tuple[str, ...]
    capture: str

    def features(self, layer: int) -> torch.Tensor:
        """Features of one layer, [n, d] or [n, patches, d], in the stored precision."""
        return self.store.layer(self.capture, self.pooling, layer)

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
    """`results`: one row a variable and layer; `predictions`: one a protocol, variable, layer, clip and component,
    out of fold; `record`: settings and what they meant, for the config file."""

    results: pd.DataFrame
    predictions: pd.DataFrame
    record: dict


def probe_curves(options: ProbeOptions) -> Curves:
    """Probe every layer. UserError for options that do not fit the features."""
    probe_sets = plan(options)
    total = sum(n_problems(p.protocols, len(p.layers), p.folds.n_folds) for p in probe_sets)
    with progress(total=total, description=options.run_name, unit="probe") as bar:
        tables = [table for probe_set in probe_sets for table in _set_tables(options, probe_set, bar.update)]
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
    folds = make_folds(store, options.grouping, options.folds, options.seed)
    protocols = chosen_protocols(options.protocol, folds.n_folds)
    return ProbeSet(store, pooling, found, folds, layers, protocols, options.residual_capture)


def _check_capture(capture: str, store: FeatureStore) -> None:
    there = store.settings["captures"]
    if capture not in there:
        raise UserError(
            f"{store.directory} holds {', '.join(there)}, but --residual-capture says {capture}: "
            f"say {there[0]}, or extract with --capture {capture}"
        )


def _set_tables(options: ProbeOptions, probe_set: ProbeSet, step) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Result and prediction rows of every layer of one clip set."""
    found: dict[int, list[FoldResult]] = {layer: [] for layer in probe_set.layers}
    for result in out_of_fold(BallTask(options, probe_set), probe_set.layers, probe_set.protocols, step):
        found[result.layer].append(result)
    return [_tables_of_layer(options, probe_set, layer, results) for layer, results in found.items()]


def _tables_of_layer(
    options: ProbeOptions, probe_set: ProbeSet, layer: int, found: Sequence[FoldResult]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Result rows and prediction rows of one layer from its folds under each protocol."""
    predicted = {protocol: _gathered(probe_set, found, protocol) for protocol in probe_set.protocols}
    settings = solver_settings(options.solver)
    results, predictions, first = [], [], 0
    for index, variable in enumerate(probe_set.variables):
        columns = slice(first, first + len(variable.components))
        first = columns.stop
        own = {protocol: values[:, columns] for protocol, values in predicted.items()}
        shown = [result for result in found if result.protocol == probe_set.protocols[0]]
        chosen = [settings[result.choices[index].setting] for result in shown]
        results.append(_result_row(options, probe_set, layer, variable, own, chosen))
        predictions += [_prediction_rows(options, probe_set, layer, variable, *item) for item in own.items()]
    return pd.DataFrame(results), pd.concat(predictions, ignore_index=True)


def _gathered(probe_set: ProbeSet, found: Sequence[FoldResult], protocol: str) -> np.ndarray:
    """Out-of-fold predictions of all clips, [n, k]; NaN for a clip that no fold holds out."""
    values = np.full(probe_set.targets.shape, np.nan)
    for result in found:
        if result.protocol == protocol:
            values[probe_set.folds.fold == result.fold] = result.prediction.numpy()
    return values


def _result_row(options, probe_set: ProbeSet, layer: int, variable: Variable, predicted: dict, chosen) -> dict:
    folds, settings = probe_set.folds, probe_set.store.settings
    scores = {protocol: fold_scores(variable.targets, values, folds) for protocol, values in predicted.items()}
    main = scores[probe_set.protocols[0]]
    return {
        "run_name": options.run_name,
        "variable": variable.name,
        "layer": layer,
        "layer_fraction": round(layer / settings["depth"], 6),
        **_score_columns(variable, predicted, scores),
        "best_lr_mode": _mode([setting.learning_rate for setting in chosen]),
        "best_wd_mode": _mode([setting.weight_decay for setting in chosen]),
        "protocol": "both" if len(probe_set.protocols) > 1 else probe_set.protocols[0],
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
        "n_folds_scored": int(np.isfinite(main).sum()),
        "seed": options.seed,
    }


def _score_columns(variable: Variable, predicted: dict, scores: dict) -> dict:
    """`r2_mean` and `r2_std` over folds and `r2_pooled` of the first protocol, the same of `nested`, and `optimism`.

    With one protocol the plain columns are that protocol's, so a table always has them.
    """
    first = next(iter(scores))
    columns = _over_folds("r2", variable, predicted[first], scores[first])
    if "nested" in scores:
        columns |= _over_folds("r2_nested", variable, predicted["nested"], scores["nested"])
        columns["optimism"] = columns["r2_mean"] - columns["r2_nested_mean"] if len(scores) > 1 else np.nan
    return columns


def _over_folds(prefix: str, variable: Variable, predicted: np.ndarray, scores: np.ndarray) -> dict:
    known = scores[np.isfinite(scores)]
    return {
        f"{prefix}_mean": known.mean() if len(known) else np.nan,
        f"{prefix}_std": known.std() if len(known) else np.nan,
        f"{prefix}_pooled": r2(variable.targets, predicted),
    }


def fold_scores(values: np.ndarray, predicted: np.ndarray, folds: Folds) -> np.ndarray:
    """R^2 of each fold's held-out clips, [folds]; NaN where the fold holds the target constant."""
    least = _LEAST_VARIANCE * values.var(0)
    return np.array([r2(values[rows], predicted[rows], least) for _, rows in folds.splits()])


def _mode(values: list[float]) -> float:
    """The commonest value, of equally common ones the smallest; NaN if there is none."""
    common = pd.Series(values, dtype=float).mode()
    return float(common.iloc[0]) if len(common) else float("nan")


def _prediction_rows(options, probe_set: ProbeSet, layer: int, variable, protocol: str, predicted) -> pd.DataFrame:
    n, k = predicted.shape
    return pd.DataFrame(
        {
            "run_name": options.run_name,
            "protocol": protocol,
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
        "protocol": options.protocol,
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
