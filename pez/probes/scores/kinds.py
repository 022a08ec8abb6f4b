"""Kinds of targets: what each is trained with, scored by, and what knowing nothing would score.

    quantity             least squares; R^2, mean absolute error
    angle, sincos, vxy   a direction in one of three forms: the same, and error and correlation on the circle
    possible             possible and impossible movies: logistic; pez/probes/scores/possibility.py
    pair                 true and false, inside groups that pair them: logistic; accuracy, AUC, pairwise accuracy
    class                one of several classes, a column each: logistic; accuracy, balanced accuracy, ROC AUC
    possible_pairs       possible and impossible movies in numbered pairs: pairwise accuracy first
    ..._summed, image_angle, possible_strict     as the public reproduction scores them (pez/probes/recipes.py)

A kind is an entry of KINDS: the same data, solvers, folds, scores, figures and verdicts serve all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from pez.probes.data.probe_data import LEAST_VARIANCE
from pez.probes.predictions import Predictions
from pez.probes.scores.bootstrap import (
    BootstrapCurve,
    Resamples,
    bootstrap_accuracy,
    bootstrap_angular_error,
    bootstrap_auc,
    bootstrap_balanced_accuracy,
    bootstrap_circular_correlation,
    bootstrap_mean,
    bootstrap_pairwise_accuracy,
    bootstrap_r2,
    bootstrap_relative_accuracy,
    mean_curve,
)
from pez.probes.scores.circular import angular_error, circular_correlation, predicted_angle
from pez.probes.scores.possibility import (
    COUNTS,
    METRICS,
    OVERALL,
    PAIR,
    auc,
    probability,
    score_movies,
    score_movies_strictly,
    score_rows,
)
from pez.probes.scores.r2 import r2, summed_r2

FoldScores = Callable[[Predictions, int, int, np.ndarray], dict[str, dict[str, float]]]
Curve = Callable[[np.ndarray, np.ndarray, np.ndarray, Resamples], BootstrapCurve]
_Score = TypeVar("_Score")


@dataclass(frozen=True)
class Pooled:
    """A score of all held-out clips at once.

    `curve`: (target [m, k], prediction [L, m, k], group [m], resamples) -> BootstrapCurve; None: it has no interval.
    `value`: (target [m, k], prediction [m, k], target [n, k] of all clips) -> float, for runs without resamples; None:
    it is not known without them.
    """

    curve: Curve | None
    value: Callable[[np.ndarray, np.ndarray, np.ndarray], float] | None = None


@dataclass(frozen=True)
class Kind:
    """What a kind of target is trained with and scored by.

    loss: "mse" or "logistic".
    chance: what knowing nothing scores in `headline`; threshold: the score at which it counts as readable by the
        threshold rule of pez.probes.scores.onset.
    headline: the metric that is quoted, tested and drawn first.
    over_folds: metrics that every fold has, from `of_fold`: (predictions, repeat, index of the layer, rows of the fold)
        -> part of the clips ("overall" first) -> metric -> score.
    counts: further numbers of `of_fold`, which are summed over folds.
    pooled: metrics of all held-out clips at once.
    joined: predictions [R, L, n, k] as they are before folds meet; folds may each have a scale of their own.
    value: (metric, rows of the clip table, target [m, k], prediction [m, k]) -> score of one set of clips, by which a
        setting can be chosen, or a tuple of scores, of which the first that differ decide; None: settings are chosen by
        loss alone.
    """

    loss: str
    chance: float
    threshold: float
    headline: str
    over_folds: tuple[str, ...]
    of_fold: FoldScores
    pooled: Mapping[str, Pooled]
    counts: tuple[str, ...] = ()
    joined: Callable[[Predictions], np.ndarray] = field(default=lambda predictions: predictions.predicted)
    value: Callable[[str, pd.DataFrame, np.ndarray, np.ndarray], float | tuple[float, ...]] | None = None


# ---------------------------------------------------------------- quantities and directions


def _fold_r2(predictions: Predictions, repeat: int, layer: int, rows: np.ndarray) -> dict[str, dict[str, float]]:
    targets = predictions.variable.targets
    least = LEAST_VARIANCE * targets.var(0)
    return {OVERALL: {"r2": r2(targets[rows], predictions.predicted[repeat, layer, rows], least)}}


def _pooled_r2(target: np.ndarray, prediction: np.ndarray, every: np.ndarray) -> float:
    return r2(target, prediction, LEAST_VARIANCE * every.var(0))


def _mean_absolute_error(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
    return float(np.abs(prediction - target).mean())


_R2 = {"r2": Pooled(bootstrap_r2, _pooled_r2), "mae": Pooled(None, _mean_absolute_error)}


def _fold_summed_r2(predictions: Predictions, repeat: int, layer: int, rows: np.ndarray) -> dict[str, dict[str, float]]:
    return {OVERALL: {"r2": summed_r2(predictions.variable.targets[rows], predictions.predicted[repeat, layer, rows])}}


def _pooled_summed_r2(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
    return summed_r2(target, prediction)


def _value_of_summed(_metric: str, _clips: pd.DataFrame, target: np.ndarray, prediction: np.ndarray) -> float:
    return summed_r2(target, prediction)


_SUMMED_R2 = {"r2": Pooled(partial(bootstrap_r2, summed=True), _pooled_summed_r2), "mae": _R2["mae"]}


def _on_circle(
    form: str, score: Callable[..., _Score], target: np.ndarray, prediction: np.ndarray, *rest: Any
) -> _Score:
    """`score` of the directions, in degrees, that targets and predictions in `form` mean."""
    return score(predicted_angle(target, form), predicted_angle(prediction, form), *rest)


def _angular_error(target: np.ndarray, prediction: np.ndarray) -> float:
    return float(angular_error(prediction, target).mean())


def _direction(form: str, summed: bool = False) -> Kind:
    error = Pooled(
        partial(_on_circle, form, bootstrap_angular_error),
        lambda target, prediction, _every: _on_circle(form, _angular_error, target, prediction),
    )
    correlation = Pooled(
        partial(_on_circle, form, bootstrap_circular_correlation),
        lambda target, prediction, _every: _on_circle(form, circular_correlation, target, prediction),
    )
    more = {"mae_deg": error, "circular_corr": correlation}
    return _summed(more) if summed else Kind("mse", 0.0, 0.5, "r2", ("r2",), _fold_r2, {**_R2, **more})


def _summed(more: Mapping[str, Pooled]) -> Kind:
    """A kind of number whose R^2 sums squares over outputs, and by which settings are chosen."""
    pooled = {**_SUMMED_R2, **more}
    return Kind("mse", 0.0, 0.5, "r2", ("r2",), _fold_summed_r2, pooled, value=_value_of_summed)


# ---------------------------------------------------------------- possible and impossible movies


def _fold_possibility(
    predictions: Predictions, repeat: int, layer: int, rows: np.ndarray
) -> dict[str, dict[str, float]]:
    table = predictions.clips.iloc[rows].assign(score=predictions.predicted[repeat, layer, rows, 0])
    if predictions.rounding is not None and np.isfinite(predictions.rounding[repeat, layer, rows]).all():
        table = table.assign(rounding=predictions.rounding[repeat, layer, rows])
    parts = {name: np.flatnonzero(np.isin(rows, own)) for name, own in predictions.parts.items()}
    scored = score_rows(table, parts)
    return {str(row.pop("subtask")): row for row in scored.to_dict("records")}


def _possibility(metric: str, movies: pd.DataFrame, _target: np.ndarray, prediction: np.ndarray) -> float:
    return score_movies(movies.assign(score=prediction[:, 0]))[metric]


def _one_scale(predictions: Predictions) -> np.ndarray:
    """Every fold's scores, and their rounding beside them (NaN: not known), divided by its largest score, [R, L, n, 2].

    Each fold has a probe, and so a scale, of its own. Dividing changes neither clip accuracy nor relative accuracy.
    """
    scores = predictions.predicted[..., 0]
    rounding = np.full(scores.shape, np.nan) if predictions.rounding is None else predictions.rounding
    scaled = np.stack([scores, rounding], axis=-1)
    for repeat, rows in predictions.held_out():
        largest = np.abs(scores[repeat][:, rows]).max(axis=1)[:, None, None]
        scaled[repeat][:, rows] /= np.where(largest > 0, largest, 1.0)
    return scaled


def _of_scores(score: Callable[..., BootstrapCurve]) -> Pooled:
    def curve(target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples) -> BootstrapCurve:
        return score(target[:, 0] > 0.5, prediction[..., 0], group, resamples)

    return Pooled(curve)


def _relative_accuracy_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    scores, rounding = prediction[..., 0], prediction[..., 1]
    return bootstrap_relative_accuracy(target[:, 0] > 0.5, scores, group, resamples, largest=1.0, rounding=rounding)


def _pairwise_of_movies(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    """Of matched pairs; their number, the same in every layer, stands in the third column."""
    possible, (scores, rounding, pair) = target[:, 0] > 0.5, np.moveaxis(prediction, -1, 0)
    return bootstrap_pairwise_accuracy(possible, scores, group, pair[0], resamples, rounding=rounding)


def _one_scale_with_pairs(predictions: Predictions) -> np.ndarray:
    """`_one_scale` and the number of every movie's pair beside it, [R, L, n, 3]."""
    scaled = _one_scale(predictions)
    pair = predictions.clips[PAIR].to_numpy(dtype=np.float64)
    return np.concatenate([scaled, np.broadcast_to(pair[:, None], (*scaled.shape[:3], 1))], axis=-1)


# as the public reproduction scores them


def _fold_strictly(predictions: Predictions, repeat: int, layer: int, rows: np.ndarray) -> dict[str, dict[str, float]]:
    scores = probability(predictions.predicted[repeat, layer, rows, 0])
    parts = {name: np.flatnonzero(np.isin(rows, own)) for name, own in predictions.parts.items()}
    scored = score_rows(predictions.clips.iloc[rows].assign(score=scores), parts, score_movies_strictly)
    return {str(row.pop("subtask")): row for row in scored.to_dict("records")}


def _strict_possibility(
    metric: str, movies: pd.DataFrame, _target: np.ndarray, prediction: np.ndarray
) -> tuple[float, float]:
    """Accuracy, of equals AUC; relative accuracy, of equals accuracy."""
    scores = score_movies_strictly(movies.assign(score=probability(prediction[:, 0])))
    return scores[metric], scores["auc" if metric == "clip_accuracy" else "clip_accuracy"]


def _strict_accuracy_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    right = (prediction[..., 0] >= 0.5) == (target[:, 0] > 0.5)
    return bootstrap_mean(right.astype(np.float64), group, resamples, 0.0, 1.0)


def _strict_relative_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    possible, scores = target[:, 0] > 0.5, prediction[..., 0]
    return bootstrap_relative_accuracy(possible, scores, group, resamples, tie_tolerance=0.0, tie=0.0)


# ---------------------------------------------------------------- pairs of own labels


def _fold_pairs(predictions: Predictions, repeat: int, layer: int, rows: np.ndarray) -> dict[str, dict[str, float]]:
    label = predictions.variable.targets[rows, 0] > 0.5
    scored = predictions.predicted[repeat, layer, rows, 0]
    mates = predictions.group[rows][label][:, None] == predictions.group[rows][~label]
    differences = (scored[label][:, None] - scored[~label])[mates]
    both = label.any() and not label.all()
    return {
        OVERALL: {
            "accuracy": float(np.where(scored == 0, 0.5, (scored > 0) == label).mean()),
            "auc": auc(scored, label) if both else float("nan"),
            "pairwise_accuracy": float((0.5 * (np.sign(differences) + 1)).mean()) if mates.any() else float("nan"),
        }
    }


def _pairwise_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    label, scored = target[:, 0] > 0.5, prediction[..., 0]
    names, index = np.unique(group, return_inverse=True)
    won = np.zeros((len(scored), len(names)))
    for number in range(len(names)):
        own = index == number
        differences = scored[:, own & label][:, :, None] - scored[:, own & ~label][:, None, :]
        won[:, number] = (0.5 * (np.sign(differences) + 1)).mean((1, 2))
    return bootstrap_mean(won, names, resamples, 0.0, 1.0)


# ---------------------------------------------------------------- classes


def _fold_classes(predictions: Predictions, repeat: int, layer: int, rows: np.ndarray) -> dict[str, dict[str, float]]:
    target, prediction = predictions.variable.targets[rows], predictions.predicted[repeat, layer, rows]
    return {OVERALL: {name: value(target, prediction, target) for name, value in _CLASS_VALUES.items()}}


def _accuracy(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
    return float((prediction.argmax(1) == target.argmax(1)).mean())


def _balanced_accuracy(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
    """The mean, over classes that are there, of the share of their clips that is named rightly."""
    label, right = target.argmax(1), prediction.argmax(1) == target.argmax(1)
    return float(np.mean([right[label == one].mean() for one in np.unique(label)]))


def _class_auc(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
    """The mean, over classes that are there and are not all there is, of one against the rest; NaN without one."""
    known = [k for k in range(target.shape[1]) if 0 < target[:, k].sum() < len(target)]
    scores = [auc(prediction[:, k], target[:, k] > 0.5) for k in known]
    return float(np.mean(scores)) if scores else float("nan")


_CLASS_VALUES = {"accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "auc": _class_auc}


def _accuracy_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    right = prediction.argmax(2) == target.argmax(1)
    return bootstrap_mean(right.astype(np.float64), group, resamples, 0.0, 1.0)


def _balanced_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    return bootstrap_balanced_accuracy(target.argmax(1), prediction.argmax(2), group, resamples)


def _class_auc_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    known = [k for k in range(target.shape[1]) if 0 < target[:, k].sum() < len(target)]
    return mean_curve([bootstrap_auc(target[:, k] > 0.5, prediction[..., k], group, resamples) for k in known])


_CLASS_POOLED = {
    "accuracy": Pooled(_accuracy_curve, _accuracy),
    "balanced_accuracy": Pooled(_balanced_curve, _balanced_accuracy),
    "auc": Pooled(_class_auc_curve, _class_auc),
}

_POSSIBLE_POOLED = {
    "clip_accuracy": _of_scores(bootstrap_accuracy),
    "auc": _of_scores(bootstrap_auc),
    "relative_accuracy": Pooled(_relative_accuracy_curve),
}

KINDS: dict[str, Kind] = {
    "quantity": Kind("mse", 0.0, 0.5, "r2", ("r2",), _fold_r2, _R2),
    "angle": _direction("angle"),
    "sincos": _direction("sincos"),
    "vxy": _direction("vxy"),
    "possible": Kind(
        "logistic",
        0.5,
        0.75,
        "relative_accuracy",
        METRICS,
        _fold_possibility,
        _POSSIBLE_POOLED,
        COUNTS,
        _one_scale,
        _possibility,
    ),
    "possible_pairs": Kind(
        "logistic",
        0.5,
        0.75,
        "pairwise_accuracy",
        METRICS,
        _fold_possibility,
        {**_POSSIBLE_POOLED, "pairwise_accuracy": Pooled(_pairwise_of_movies)},
        COUNTS,
        _one_scale_with_pairs,
        _possibility,
    ),
    "pair": Kind(
        "logistic",
        0.5,
        0.75,
        "pairwise_accuracy",
        ("accuracy", "auc", "pairwise_accuracy"),
        _fold_pairs,
        {
            "accuracy": _of_scores(bootstrap_accuracy),
            "auc": _of_scores(bootstrap_auc),
            "pairwise_accuracy": Pooled(_pairwise_curve),
        },
        (),
        _one_scale,
    ),
    # one against the rest: an AUC of 0.5 is chance whatever the number of classes and their shares
    "class": Kind("logistic", 0.5, 0.75, "auc", tuple(_CLASS_VALUES), _fold_classes, _CLASS_POOLED),
    # the published recipe's
    "quantity_summed": _summed({}),
    "sincos_summed": _direction("sincos", summed=True),
    "vxy_summed": _direction("vxy", summed=True),
    "image_angle": _direction("image_angle", summed=True),
    "possible_strict": Kind(
        "logistic",
        0.5,
        0.75,
        "relative_accuracy",
        METRICS,
        _fold_strictly,
        {
            "clip_accuracy": Pooled(_strict_accuracy_curve),
            "auc": _of_scores(bootstrap_auc),
            "relative_accuracy": Pooled(_strict_relative_curve),
        },
        COUNTS,
        lambda predictions: probability(predictions.predicted),
        _strict_possibility,
    ),
}


def headline(table: pd.DataFrame) -> str:
    """The metric to quote of rows of a results or controls table: that of the kind of target whose metrics they have.

    Of several kinds, the one with most of its metrics there.
    """

    def there(metric: str) -> bool:
        columns = [f"{metric}_{end}" for end in ("mean", "pooled", "nested_pooled")]
        return any(column in table and table[column].notna().any() for column in columns)

    known = [kind for kind in KINDS.values() if there(kind.headline)] or list(KINDS.values())[:1]
    return max(known, key=lambda kind: sum(map(there, kind.over_folds))).headline


def chance_of(metric: str) -> float:
    """What knowing nothing scores in a metric that a kind of target is quoted by; of another one, that of the kinds
    that have it."""
    kinds = [kind for kind in KINDS.values() if kind.headline == metric]
    kinds += [kind for kind in KINDS.values() if metric in (*kind.over_folds, *kind.pooled)]
    return kinds[0].chance
