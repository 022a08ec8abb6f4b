"""Layer curves: feature stores and settings in; results tables, out-of-fold predictions and a record out.

One layer of one clip set is in memory at a time. Settings are chosen by one protocol or by two side by side
(pez/probes/protocols.py). Columns of the results table:

    r2_mean, r2_std, r2_pooled, r2_pooled_low, r2_pooled_high      under the published protocol (or the only one asked)
    r2_nested_mean, ...                                            the same under the nested protocol
    optimism, optimism_pooled                                      r2_mean - r2_nested_mean, the same of r2_pooled
    mae, mae_deg, circular_corr, and mae_nested, mae_nested_deg, ...   see pez/probes/layer_scores.py

Controls (pez/probes/controls.py) go through the same path into a table of their own.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.probes.ball_task import BallTask, solver_settings
from pez.probes.controls import ControlRun, control_sets, control_table
from pez.probes.layer_scores import LEAST_VARIANCE, LayerScores, layer_scores, resamples_of
from pez.probes.probe_set import ProbeOptions, ProbeSet, plan
from pez.probes.protocols import Choice, n_problems, out_of_fold
from pez.probes.targets import Variable, check_direction_target, direction_form
from pez.runs import progress

ANGLE_NOTE = (
    "scalar angle: jumps at ±180°, where neighbouring directions lie 360° apart; read direction_sincos beside it"
)


@dataclass(frozen=True)
class Curves:
    """`results`: one row a variable and layer; `controls`: one a control, seed, variable and layer, empty without;
    `predictions`: one a protocol, variable, layer, clip, component and repeat, out of fold, the controls' last;
    `record`: settings and what they meant, for the config file."""

    results: pd.DataFrame
    controls: pd.DataFrame
    predictions: pd.DataFrame
    record: dict


@dataclass(frozen=True)
class Predicted:
    """Out-of-fold predictions of a ProbeSet by protocol: `values` [repeats, layers, n, k], NaN where never held out;
    `chosen`: layer -> every fold's choices, of the first protocol."""

    probe_set: ProbeSet
    values: dict[str, np.ndarray]
    chosen: dict[int, list[tuple[Choice, ...]]]

    def of_variable(self, index: int) -> dict[str, np.ndarray]:
        """`values` of one variable's columns."""
        ends = np.cumsum((0, *self.probe_set.outputs))
        return {name: values[..., ends[index] : ends[index + 1]] for name, values in self.values.items()}


def probe_curves(options: ProbeOptions) -> Curves:
    """Probe every layer, and the controls asked for. UserError for options that do not fit the features."""
    mains = plan(options)
    controls = [control for main in mains for control in control_sets(options, main)]
    total = sum(_n_problems(probe_set) for probe_set in [*mains, *controls])
    with progress(total=total, description=options.run_name, unit="probe") as bar:
        found = [predict(options, probe_set, bar.update) for probe_set in [*mains, *controls]]
    scored = [(each, _scores(options, each)) for each in found]
    predictions = pd.concat([_prediction_rows(options, each) for each in found], ignore_index=True)
    results = _ordered([_result_rows(options, *each) for each in scored[: len(mains)]])
    runs = [ControlRun(each.probe_set, scores) for each, scores in scored]
    return Curves(results, control_table(options, runs, len(mains)), predictions, record(options, mains, controls))


def _n_problems(probe_set: ProbeSet) -> int:
    return sum(n_problems(probe_set.protocols, len(probe_set.layers), folds.n_folds) for folds in probe_set.repeats)


def predict(options: ProbeOptions, probe_set: ProbeSet, step=lambda: None) -> Predicted:
    """Train and predict every layer, fold and repeat of a ProbeSet."""
    shape = (len(probe_set.repeats), len(probe_set.layers), *probe_set.targets.shape)
    values = {protocol: np.full(shape, np.nan) for protocol in probe_set.protocols}
    chosen = {layer: [] for layer in probe_set.layers}
    for repeat, folds in enumerate(probe_set.repeats):
        task = BallTask(options, dataclasses.replace(probe_set, repeats=(folds,)))
        for result in out_of_fold(task, probe_set.layers, probe_set.protocols, step):
            layer = probe_set.layers.index(result.layer)
            values[result.protocol][repeat, layer, folds.fold == result.fold] = result.prediction.numpy()
            if result.protocol == probe_set.protocols[0]:
                chosen[result.layer].append(result.choices)
    return Predicted(probe_set, values, chosen)


def _scores(options: ProbeOptions, found: Predicted) -> list[dict[str, LayerScores]]:
    """Of every variable, by protocol."""
    probe_set = found.probe_set
    resamples = resamples_of(probe_set.folds, options.bootstrap)
    return [
        {name: layer_scores(variable, own, probe_set.repeats, resamples) for name, own in found.of_variable(v).items()}
        for v, variable in enumerate(probe_set.scored)
    ]


def _result_rows(options: ProbeOptions, found: Predicted, scores: list[dict[str, LayerScores]]) -> pd.DataFrame:
    """Result rows of one clip set, layers fastest."""
    probe_set = found.probe_set
    tables = []
    for index, (variable, by_protocol) in enumerate(zip(probe_set.scored, scores)):
        table = pd.DataFrame({"variable": variable.name, "layer": probe_set.layers})
        table.insert(0, "run_name", options.run_name)
        table["layer_fraction"] = (table["layer"] / probe_set.store.depth).round(6)
        table = pd.concat([table, _score_columns(by_protocol), _best_settings(options, found, index)], axis=1)
        tables.append(table.assign(**_described(options, probe_set, variable)))
    return pd.concat(tables, ignore_index=True)


def _score_columns(by_protocol: dict[str, LayerScores]) -> pd.DataFrame:
    """The first protocol's scores as plain columns, those of nested under names of their own, and optimism.

    With one protocol the plain columns are that protocol's, so a table always has them.
    """
    first = next(iter(by_protocol.values())).table
    parts = [first.rename(columns=lambda name: _column(name, ""))]
    if "nested" in by_protocol:
        nested = by_protocol["nested"].table
        parts.append(nested.rename(columns=lambda name: _column(name, "nested_")))
        known = 1.0 if len(by_protocol) > 1 else np.nan
        parts += [
            ((first[score] - nested[score]) * known).rename(name)
            for score, name in (("mean", "optimism"), ("pooled", "optimism_pooled"))
        ]
    return pd.concat(parts, axis=1)


def _column(name: str, infix: str) -> str:
    """Column of a score: r2_nested_mean, mae_nested_deg, circular_nested_corr."""
    if name.split("_")[0] in ("mean", "std", "pooled"):
        return f"r2_{infix}{name}"
    head, _, tail = name.partition("_")
    return "_".join(part for part in (head, infix.rstrip("_"), tail) if part)


def _best_settings(options: ProbeOptions, found: Predicted, index: int) -> pd.DataFrame:
    settings = solver_settings(options.solver)
    chosen = [[settings[choices[index].setting] for choices in found.chosen[layer]] for layer in found.probe_set.layers]
    return pd.DataFrame(
        {
            "best_lr_mode": [_mode([setting.learning_rate for setting in folds]) for folds in chosen],
            "best_wd_mode": [_mode([setting.weight_decay for setting in folds]) for folds in chosen],
        }
    )


def _mode(values: list[float]) -> float:
    """The commonest value, of equally common ones the smallest; NaN if there is none."""
    common = pd.Series(values, dtype=float).mode()
    return float(common.iloc[0]) if len(common) else float("nan")


def _described(options: ProbeOptions, probe_set: ProbeSet, variable: Variable) -> dict:
    """What the rows of one variable say of how they were made."""
    folds, settings = probe_set.folds, probe_set.store.settings
    least = LEAST_VARIANCE * variable.targets.var(0)
    return {
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
        "n_folds_scored": sum(bool((variable.targets[rows].var(0) > least).any()) for _, rows in folds.splits()),
        "n_repeats": len(probe_set.repeats),
        "n_bootstrap": options.bootstrap,
        "seed": options.seed,
        "note": ANGLE_NOTE if direction_form(variable) == "angle" else "",
    }


def _ordered(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows by variable, in the order in which they come, and layer."""
    results = pd.concat(tables, ignore_index=True)
    results["variable"] = pd.Categorical(results["variable"], categories=results["variable"].unique())
    results = results.sort_values(["variable", "layer"], kind="stable").astype({"variable": str})
    return results.reset_index(drop=True)


def _prediction_rows(options: ProbeOptions, found: Predicted) -> pd.DataFrame:
    parts = []
    for index, variable in enumerate(found.probe_set.scored):
        for protocol, values in found.of_variable(index).items():
            parts.append(_rows_of(options, found.probe_set, variable, protocol, values))
    return pd.concat(parts, ignore_index=True)


def _rows_of(options, probe_set: ProbeSet, variable: Variable, protocol: str, values: np.ndarray) -> pd.DataFrame:
    """Prediction rows of `values` [repeats, layers, n, k]: held-out clips only, components fastest."""
    rows = probe_set.folds.tested
    repeats, layers, _, k = values.shape
    clip = np.tile(np.repeat(rows, k), repeats * layers)
    fold = np.stack([np.repeat(folds.fold[rows], k) for folds in probe_set.repeats])
    each = len(rows) * k
    return pd.DataFrame(
        {
            "run_name": options.run_name,
            "protocol": protocol,
            "variable": variable.name,
            "layer": np.tile(np.repeat(probe_set.layers, each), repeats),
            "clip_id": probe_set.store.clips["clip_id"].to_numpy()[clip],
            "group": probe_set.folds.group[clip],
            "fold": np.repeat(fold[:, None], layers, axis=1).ravel(),
            "component": np.tile(variable.components, repeats * layers * len(rows)),
            "target": np.tile(variable.targets[rows].ravel(), repeats * layers),
            "prediction": values[:, :, rows].ravel(),
            "repeat": np.repeat(np.arange(repeats), layers * each),
            "control": probe_set.control,
            "control_seed": probe_set.control_seed,
        }
    )


def record(options: ProbeOptions, probe_sets: list[ProbeSet], controls: Sequence[ProbeSet] = ()) -> dict:
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
        "controls": [
            {
                "control": control.control,
                "control_seed": control.control_seed,
                "clip_set": control.store.name,
                "features": (control.test_store or control.store).settings,
                "note": control.note,
            }
            for control in controls
        ],
    }
