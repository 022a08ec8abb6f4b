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
from dataclasses import dataclass, field, replace
from functools import partial

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
    score_rows,
)
from pez.probes.scores.r2 import r2, summed_r2

FoldScores = Callable[[Predictions, int, int, np.ndarray], dict[str, dict[str, float]]]
Value = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
Curve = Callable[[np.ndarray, np.ndarray, np.ndarray, Resamples], BootstrapCurve]


@dataclass(frozen=True)
class Pooled:
    """A score of all held-out clips at once.

    `curve`: (target [m, k], prediction [L, m, k], group [m], resamples) -> BootstrapCurve; None: it has no interval.
    `value`: (target [m, k], prediction [m, k], target [n, k] of all clips) -> float, for runs without resamples; None:
    it is not known without them.
    """

    curve: Curve | None
    value: Value | None = None


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


def _fold_values(**values: Value) -> FoldScores:
    """`of_fold` of scores that a fold has as all held-out clips have them."""

    def of_fold(predictions: Predictions, repeat: int, layer: int, rows: np.ndarray) -> dict[str, dict[str, float]]:
        target, prediction = predictions.variable.targets, predictions.predicted[repeat, layer, rows]
        return {OVERALL: {name: value(target[rows], prediction, target) for name, value in values.items()}}

    return of_fold


def _r2(target: np.ndarray, prediction: np.ndarray, every: np.ndarray) -> float:
    return r2(target, prediction, LEAST_VARIANCE * every.var(0))


def _summed_r2(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
    return summed_r2(target, prediction)


_MEAN_ABSOLUTE_ERROR = Pooled(None, lambda target, prediction, _every: float(np.abs(prediction - target).mean()))


def _number(**more: Pooled) -> Kind:
    pooled = {"r2": Pooled(bootstrap_r2, _r2), "mae": _MEAN_ABSOLUTE_ERROR, **more}
    return Kind("mse", 0.0, 0.5, "r2", ("r2",), _fold_values(r2=_r2), pooled)


def _summed(**more: Pooled) -> Kind:
    """A number whose R^2 sums squares over outputs, and by which settings are chosen."""
    pooled = {"r2": Pooled(partial(bootstrap_r2, summed=True), _summed_r2), "mae": _MEAN_ABSOLUTE_ERROR, **more}

    def value(_metric: str, _clips: pd.DataFrame, target: np.ndarray, prediction: np.ndarray) -> float:
        return summed_r2(target, prediction)

    return Kind("mse", 0.0, 0.5, "r2", ("r2",), _fold_values(r2=_summed_r2), pooled, value=value)


def _on_circle(form: str) -> dict[str, Pooled]:
    """Scores of the directions, in degrees, that targets and predictions in `form` mean."""

    def angles(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return predicted_angle(target, form), predicted_angle(prediction, form)

    def error(target: np.ndarray, prediction: np.ndarray, _every: np.ndarray) -> float:
        target, prediction = angles(target, prediction)
        return float(angular_error(prediction, target).mean())

    return {
        "mae_deg": Pooled(lambda t, p, group, drawn: bootstrap_angular_error(*angles(t, p), group, drawn), error),
        "circular_corr": Pooled(
            lambda t, p, group, drawn: bootstrap_circular_correlation(*angles(t, p), group, drawn),
            lambda t, p, _every: circular_correlation(*angles(t, p)),
        ),
    }


# ---------------------------------------------------------------- possible and impossible movies


def _fold_movies(
    predictions: Predictions, repeat: int, layer: int, rows: np.ndarray, strictly: bool = False
) -> dict[str, dict[str, float]]:
    scores = predictions.predicted[repeat, layer, rows, 0]
    table = predictions.clips.iloc[rows].assign(score=probability(scores) if strictly else scores)
    rounding = None if predictions.rounding is None or strictly else predictions.rounding[repeat, layer, rows]
    if rounding is not None and np.isfinite(rounding).all():
        table = table.assign(rounding=rounding)
    parts = {name: np.flatnonzero(np.isin(rows, own)) for name, own in predictions.parts.items()}
    scored = score_rows(table, parts, strictly)
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


def _of_scores(score: Callable[..., BootstrapCurve], **options: float) -> Pooled:
    """A score of one number a clip, the higher the more of label 1."""
    return Pooled(lambda t, p, group, drawn: score(t[:, 0] > 0.5, p[..., 0], group, drawn, **options))


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


def _strict_possibility(
    metric: str, movies: pd.DataFrame, _target: np.ndarray, prediction: np.ndarray
) -> tuple[float, float]:
    """Accuracy, of equals AUC; relative accuracy, of equals accuracy."""
    scores = score_movies(movies.assign(score=probability(prediction[:, 0])), strictly=True)
    return scores[metric], scores["auc" if metric == "clip_accuracy" else "clip_accuracy"]


def _strict_accuracy_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    return bootstrap_mean((prediction[..., 0] >= 0.5) == (target[:, 0] > 0.5), group, resamples, 0.0, 1.0)


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


def _class_auc_curve(
    target: np.ndarray, prediction: np.ndarray, group: np.ndarray, resamples: Resamples
) -> BootstrapCurve:
    known = [k for k in range(target.shape[1]) if 0 < target[:, k].sum() < len(target)]
    return mean_curve([bootstrap_auc(target[:, k] > 0.5, prediction[..., k], group, resamples) for k in known])


_CLASS_VALUES = {"accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "auc": _class_auc}
_CLASS_POOLED = {
    "accuracy": Pooled(
        lambda t, p, group, drawn: bootstrap_mean(p.argmax(2) == t.argmax(1), group, drawn, 0.0, 1.0), _accuracy
    ),
    "balanced_accuracy": Pooled(
        lambda t, p, group, drawn: bootstrap_balanced_accuracy(t.argmax(1), p.argmax(2), group, drawn),
        _balanced_accuracy,
    ),
    "auc": Pooled(_class_auc_curve, _class_auc),
}

_POSSIBLE = Kind(
    loss="logistic",
    chance=0.5,
    threshold=0.75,
    headline="relative_accuracy",
    over_folds=METRICS,
    of_fold=_fold_movies,
    pooled={
        "clip_accuracy": _of_scores(bootstrap_accuracy),
        "auc": _of_scores(bootstrap_auc),
        "relative_accuracy": Pooled(_relative_accuracy_curve),
    },
    counts=COUNTS,
    joined=_one_scale,
    value=_possibility,
)

KINDS: dict[str, Kind] = {
    "quantity": _number(),
    "angle": _number(**_on_circle("angle")),
    "sincos": _number(**_on_circle("sincos")),
    "vxy": _number(**_on_circle("vxy")),
    "possible": _POSSIBLE,
    "possible_pairs": replace(
        _POSSIBLE,
        headline="pairwise_accuracy",
        pooled={**_POSSIBLE.pooled, "pairwise_accuracy": Pooled(_pairwise_of_movies)},
        joined=_one_scale_with_pairs,
    ),
    "pair": Kind(
        loss="logistic",
        chance=0.5,
        threshold=0.75,
        headline="pairwise_accuracy",
        over_folds=("accuracy", "auc", "pairwise_accuracy"),
        of_fold=_fold_pairs,
        pooled={
            "accuracy": _of_scores(bootstrap_accuracy),
            "auc": _of_scores(bootstrap_auc),
            "pairwise_accuracy": Pooled(_pairwise_curve),
        },
        joined=_one_scale,
    ),
    # one against the rest: an AUC of 0.5 is chance whatever the number of classes and their shares
    "class": Kind("logistic", 0.5, 0.75, "auc", tuple(_CLASS_VALUES), _fold_values(**_CLASS_VALUES), _CLASS_POOLED),
    # the published recipe's
    "quantity_summed": _summed(),
    "sincos_summed": _summed(**_on_circle("sincos")),
    "vxy_summed": _summed(**_on_circle("vxy")),
    "image_angle": _summed(**_on_circle("image_angle")),
    "possible_strict": replace(
        _POSSIBLE,
        of_fold=partial(_fold_movies, strictly=True),
        pooled={
            "clip_accuracy": Pooled(_strict_accuracy_curve),
            "auc": _of_scores(bootstrap_auc),
            "relative_accuracy": _of_scores(bootstrap_relative_accuracy, tie_tolerance=0.0, tie=0.0),
        },
        joined=lambda predictions: probability(predictions.predicted),
        value=_strict_possibility,
    ),
}


def headline(table: pd.DataFrame) -> str:
    """The metric to quote of rows of a results or controls table: that of the kind of target whose metrics they have.

    Of several kinds, the one with most of its metrics there.
    """

    def has_scores(metric: str) -> bool:
        columns = [f"{metric}_{end}" for end in ("mean", "pooled", "nested_pooled")]
        return any(column in table and table[column].notna().any() for column in columns)

    known = [kind for kind in KINDS.values() if has_scores(kind.headline)] or list(KINDS.values())[:1]
    return max(known, key=lambda kind: sum(map(has_scores, kind.over_folds))).headline


def chance_of(metric: str) -> float:
    """What knowing nothing scores in a metric that a kind of target is quoted by; of another one, that of the kinds
    that have it."""
    kinds = [kind for kind in KINDS.values() if kind.headline == metric]
    kinds += [kind for kind in KINDS.values() if metric in (*kind.over_folds, *kind.pooled)]
    return kinds[0].chance
