"""Scores of out-of-fold predictions, a row a layer, with intervals by bootstrap over the grouping's groups.

    mean, std               of R^2 over folds (of all repeats); NaN where every fold holds the target constant
    pooled                  R^2 over all clips that were held out, the mean over repeats; pooled_low, pooled_high
    mae                     mean absolute error in the variable's unit, over components and repeats
    mae_deg, circular_corr  of directions, whatever their form, each with _low and _high (pez/probes/circular.py)

Intervals hold 95 of 100; the same groups are drawn for every layer, variable, protocol and control of a clip set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.probes.bootstrap import (
    BootstrapCurve,
    Resamples,
    bootstrap_angular_error,
    bootstrap_circular_correlation,
    bootstrap_r2,
    group_resamples,
    mean_curve,
)
from pez.probes.circular import angular_error, circular_correlation, predicted_angle
from pez.probes.folds import Folds
from pez.probes.metrics import r2
from pez.probes.targets import Variable, direction_form

LEAST_GROUPS = 3  # two groups, one value each, have one resample with a score
LEAST_VARIANCE = 1e-6  # share of a target's variance over all clips under which a fold holds it constant


@dataclass(frozen=True)
class LayerScores:
    """`table`: the columns above, a row a layer; `pooled`: the bootstrap behind `pooled`, None without one."""

    table: pd.DataFrame
    pooled: BootstrapCurve | None


def resamples_of(folds: Folds, n_resamples: int) -> Resamples | None:
    """Resamples of the groups that are held out; None if `n_resamples` is 0 or there are fewer than LEAST_GROUPS."""
    group = folds.group[folds.tested]
    if not n_resamples or len(set(group)) < LEAST_GROUPS:
        return None
    return group_resamples(group, n_resamples, n_folds=max(2, folds.n_folds))


def layer_scores(
    variable: Variable, predicted: np.ndarray, repeats: Sequence[Folds], resamples: Resamples | None
) -> LayerScores:
    """Scores of `predicted` [repeats, layers, n, k]; NaN in rows that are never held out."""
    columns, curve = _r2_columns(variable, predicted, repeats, resamples)
    rows = repeats[0].tested
    columns["mae"] = np.abs(predicted - variable.targets)[:, :, rows].mean((0, 2, 3))
    form = direction_form(variable)
    if form:
        target = predicted_angle(variable.targets[rows], form)
        angles = predicted_angle(predicted[:, :, rows], form)
        columns |= _angle_columns(target, angles, repeats[0].group[rows], resamples)
    return LayerScores(pd.DataFrame(columns), curve)


def fold_scores(values: np.ndarray, predicted: np.ndarray, folds: Folds) -> np.ndarray:
    """R^2 of each fold's held-out clips, [folds]; NaN where the fold holds the target constant."""
    least = LEAST_VARIANCE * values.var(0)
    return np.array([r2(values[rows], predicted[rows], least) for _, rows in folds.splits()])


def _r2_columns(variable, predicted, repeats, resamples) -> tuple[dict, BootstrapCurve | None]:
    values, rows = variable.targets, repeats[0].tested
    by_layer = [
        np.concatenate([fold_scores(values, own[layer], folds) for own, folds in zip(predicted, repeats)])
        for layer in range(predicted.shape[1])
    ]
    least = LEAST_VARIANCE * values.var(0)
    pooled = np.array([[r2(values[rows], layer[rows], least) for layer in own] for own in predicted]).mean(0)
    columns = {
        "mean": [_of_known(scores, np.mean) for scores in by_layer],
        "std": [_of_known(scores, np.std) for scores in by_layer],
        "pooled": pooled,
    }
    if resamples is None or np.isnan(pooled).all():
        return {**columns, **_ends("pooled", None, len(pooled))}, None
    group = repeats[0].group[rows]
    curve = mean_curve([bootstrap_r2(values[rows], own[:, rows], group, resamples) for own in predicted])
    return {**columns, **_ends("pooled", curve, len(pooled))}, curve


def _of_known(scores: np.ndarray, statistic: Callable) -> float:
    known = scores[np.isfinite(scores)]
    return float(statistic(known)) if len(known) else float("nan")


def _ends(name: str, curve: BootstrapCurve | None, n_layers: int) -> dict:
    ends = np.full((n_layers, 2), np.nan) if curve is None else curve.interval()
    return {f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}


def _angle_columns(target: np.ndarray, angles: np.ndarray, group: np.ndarray, resamples: Resamples | None) -> dict:
    """Columns of `angles` [repeats, layers, n] for `target` [n], in degrees."""
    measures = {
        "mae_deg": (lambda angle: angular_error(angle, target).mean(), bootstrap_angular_error),
        "circular_corr": (lambda angle: circular_correlation(target, angle), bootstrap_circular_correlation),
    }
    columns = {}
    for name, (measure, boot) in measures.items():
        columns[name] = np.array([[measure(layer) for layer in own] for own in angles]).mean(0)
        curve = None if resamples is None else mean_curve([boot(target, own, group, resamples) for own in angles])
        columns |= _ends(name, curve, angles.shape[1])
    return columns
