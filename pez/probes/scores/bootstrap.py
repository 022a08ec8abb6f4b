"""Intervals of out-of-fold scores by a bootstrap over groups: whole groups are drawn, never single clips.

    resamples = group_resamples(group)                        # [n] group of every clip
    main = bootstrap_r2(target, prediction, group, resamples)     # targets [n, k], predictions [layers, n, k]
    control = bootstrap_r2(target, control_prediction, group, resamples)
    main.interval()                                           # [layers, 2]
    (main - control).interval()                               # paired: resample b is the same groups in both

Clips of a group are alike and share a fold, so the group is the unit that could have been drawn otherwise (Davison &
Hinkley 1997, Bootstrap Methods and their Application, section 3.8). A resample is a row of counts: how often each group
was drawn. Every score here is a function of sums over groups, so 1,000 resamples of all layers are a few matrix
products.

Predictions stay what they were, so such resamples lack what another training set would have changed: of intervals
meant to hold in 95 of 100 cases, 80 to 93 did (docs/onset.md, column "unwidened"). Their distance
from the estimate is therefore stretched by sqrt(1 + K/(K - 1)), 1.5 for K = 5 folds: Nadeau & Bengio's correction of a
cross-validation's variance, 1/K + n_test/n_train in place of 1/K (2003, Inference for the Generalization Error,
Machine Learning 52). It is a rule of thumb, held to account by studies/onset/calibration.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from constants import N_FOLDS
from pez.errors import UserError
from pez.probes.scores.circular import angular_error, circular_moments, correlation_from_moments

N_RESAMPLES = 1000
LEVEL = 0.95
FEW_GROUPS = 20  # below this, intervals come out too short: say so beside them
ROUNDINGS = 6.0  # standard errors of a difference of sums that may be rounding alone
TIE_TOLERANCE = 1e-5  # of the largest score: rounding of float32 products, up to 2e-6 measured on spliced movies


@dataclass(frozen=True)
class Resamples:
    """`names` [G] of the groups, sorted; `counts` [B, G]: how often each resample drew each group; `stretch`: by
    what a resample's distance from the estimate is multiplied."""

    names: np.ndarray
    counts: np.ndarray
    stretch: float = 1.0

    def index(self, group: npt.ArrayLike) -> np.ndarray:
        """Position in `names` of every clip's group, [n]; UserError unless exactly these groups are there."""
        names, index = np.unique(np.asarray(group), return_inverse=True)
        if not np.array_equal(names, self.names):
            other = sorted(set(map(str, names)) ^ set(map(str, self.names)))[0]
            raise UserError(
                f"group {other} is in one run only, so the runs cannot be compared group by group: "
                "rerun both with the same clips and --grouping"
            )
        return index


def group_resamples(
    group: npt.ArrayLike, n_resamples: int = N_RESAMPLES, seed: int = 0, n_folds: int | None = N_FOLDS
) -> Resamples:
    """Draw as many groups as there are, with replacement, `n_resamples` times; `group` [n] names every clip's.

    `n_folds` of the cross-validation that made the predictions; None for predictions that were not trained on the
    other clips, which need no stretching. The same groups, number and seed give the same resamples whatever the
    order of the clips, so curves of separate runs pair up. UserError for a single group.
    """
    names = np.unique(np.asarray(group))
    if len(names) < 2:
        raise UserError(f"a bootstrap over groups needs at least two; there is one ({names[0]}): regroup the clips")
    shares = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), shares, size=n_resamples)
    stretch = 1.0 if n_folds is None else training_stretch(n_folds)
    return Resamples(names, counts.astype(np.float64), stretch)


def training_stretch(n_folds: int) -> float:
    """Standard error of a cross-validated score as a multiple of what its fixed predictions show."""
    return float(np.sqrt(1 + n_folds / (n_folds - 1)))


@dataclass(frozen=True)
class BootstrapCurve:
    """A score per layer: `estimate` [layers]; `samples` [B, layers], a row per resample; the `resamples` behind it."""

    estimate: np.ndarray
    samples: np.ndarray
    resamples: Resamples

    def interval(self) -> np.ndarray:
        """Lower and upper end per layer, [layers, 2]."""
        return intervals(self.samples)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "BootstrapCurve":
        """`function` [rows, layers] -> [rows, any] of the estimate and of every resample."""
        return BootstrapCurve(function(self.estimate[None])[0], function(self.samples), self.resamples)

    def __sub__(self, other: "BootstrapCurve") -> "BootstrapCurve":
        """The paired difference; ValueError if the two were not resampled alike."""
        _check_paired([self, other])
        return BootstrapCurve(self.estimate - other.estimate, self.samples - other.samples, self.resamples)

    def over_layers(self, n_layers: int) -> "BootstrapCurve":
        """A curve of one layer, such as that of a control without an encoder, standing for `n_layers` layers."""
        return self.map(lambda rows: np.repeat(rows, n_layers, axis=1))


def mean_curve(curves: Sequence[BootstrapCurve]) -> BootstrapCurve:
    """The mean of curves that were resampled alike: repeats of a cross-validation, seeds of a control."""
    _check_paired(curves)
    estimate, samples = (
        np.mean([getattr(curve, name) for curve in curves], axis=0) for name in ("estimate", "samples")
    )
    return BootstrapCurve(estimate, samples, curves[0].resamples)


def _check_paired(curves: Sequence[BootstrapCurve]) -> None:
    first = curves[0].resamples
    for curve in curves[1:]:
        other = curve.resamples
        same = other.stretch == first.stretch and np.array_equal(other.counts, first.counts)
        if not same or curve.estimate.shape != curves[0].estimate.shape:
            raise ValueError("curves can only be paired over the same layers and the same resamples")


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: Resamples,
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> BootstrapCurve:
    """A BootstrapCurve of `statistic`, which takes counts [rows, G] and gives scores [rows, layers].

    `lowest` and `highest` are what the score can be, which a stretched sample must not leave.
    """
    n_groups = len(resamples.names)
    estimate = statistic(np.ones((1, n_groups)))[0]
    samples = estimate + resamples.stretch * (statistic(resamples.counts) - estimate)
    return BootstrapCurve(estimate, samples.clip(lowest, highest), resamples)


def bootstrap_r2(
    target: npt.ArrayLike, prediction: npt.ArrayLike, group: npt.ArrayLike, resamples: Resamples, summed: bool = False
) -> BootstrapCurve:
    """R^2 over all clips, averaged over outputs, as pez.probes.scores.r2 has it, or `summed` over them.

    `target` [n, k] or [n], `prediction` [layers, n, k] or [layers, n], `group` [n]. An output that does not vary in
    a resample is left out of its average; NaN if none is left.
    """
    target, prediction = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    target = target.reshape(len(target), -1)
    prediction = prediction.reshape(len(prediction), *target.shape)
    index, n_groups = resamples.index(group), len(resamples.names)
    centred = target - target.mean(0)  # keeps the difference of sums of squares exact enough
    n = np.bincount(index, minlength=n_groups)[:, None]
    y, yy = _group_sums(centred, index, n_groups), _group_sums(centred**2, index, n_groups)
    errors = np.stack([_group_sums((target - layer) ** 2, index, n_groups) for layer in prediction])  # [layers, G, k]
    constant = centred.var(0) * 1e-12

    def statistic(counts: np.ndarray) -> np.ndarray:
        total = counts @ n
        variance = counts @ yy / total - (counts @ y / total) ** 2
        error = np.einsum("bg,lgk->blk", counts, errors, optimize=True) / total[:, :, None]
        if summed:
            whole = variance.sum(1)[:, None]
            known = whole > constant.sum()
            return np.where(known, 1 - error.sum(2) / np.where(known, whole, 1.0), 0.0)
        varies = (variance > constant)[:, None]
        score = np.where(varies, 1 - error / np.where(varies, variance[:, None], 1.0), 0.0)
        outputs = varies.sum(2)
        return np.where(outputs > 0, score.sum(2) / np.maximum(outputs, 1), np.nan)

    return bootstrap(statistic, resamples, highest=1.0)


def bootstrap_mean(
    values: npt.ArrayLike,
    group: npt.ArrayLike,
    resamples: Resamples,
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> BootstrapCurve:
    """The mean over clips of `values` [layers, n] that can be `lowest` to `highest`: an accuracy, an error."""
    values = np.asarray(values, dtype=np.float64)
    index, n_groups = resamples.index(group), len(resamples.names)
    n, sums = np.bincount(index, minlength=n_groups), _group_sums(values.T, index, n_groups)
    return bootstrap(lambda counts: (counts @ sums) / (counts @ n)[:, None], resamples, lowest, highest)


def bootstrap_accuracy(
    label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, resamples: Resamples, threshold: float = 0.0
) -> BootstrapCurve:
    """Share of clips on the right side of `threshold`: `label` [n] bool, `score` [layers, n]; on it is a half."""
    score = np.asarray(score, dtype=np.float64)
    right = (score > threshold) == np.asarray(label, dtype=bool)
    return bootstrap_mean(np.where(score == threshold, 0.5, right), group, resamples, 0.0, 1.0)


def bootstrap_balanced_accuracy(
    label: npt.ArrayLike, predicted: npt.ArrayLike, group: npt.ArrayLike, resamples: Resamples
) -> BootstrapCurve:
    """The mean over classes of the share of their clips that is named rightly; a class that a resample lacks is left
    out of its mean. `label` [n] and `predicted` [layers, n] are class numbers."""
    label, predicted = np.asarray(label), np.asarray(predicted)
    index, n_groups, classes = resamples.index(group), len(resamples.names), np.unique(label)
    of_class = (label[:, None] == classes).astype(np.float64)  # [n, C]
    n = _group_sums(of_class, index, n_groups)
    right = np.stack([_group_sums(of_class * (layer == label)[:, None], index, n_groups) for layer in predicted])

    def statistic(counts: np.ndarray) -> np.ndarray:
        of_classes = counts @ n  # [rows, C]
        share = np.einsum("bg,lgc->blc", counts, right, optimize=True) / np.maximum(of_classes, 1e-12)[:, None]
        return cast(np.ndarray, share.sum(2) / (of_classes > 0).sum(1)[:, None])

    return bootstrap(statistic, resamples, 0.0, 1.0)


def bootstrap_auc(
    label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, resamples: Resamples
) -> BootstrapCurve:
    """ROC AUC of `score` [layers, n] for `label` [n] bool: positives over negatives, a tie is a half.

    NaN for a resample with one class only.
    """
    label, score = np.asarray(label, dtype=bool), np.asarray(score, dtype=np.float64)
    n_groups = len(resamples.names)
    member = np.eye(n_groups)[resamples.index(group)]  # [n, G]
    positive, negative = member[label], member[~label]
    wins = np.empty((len(score), n_groups, n_groups))
    for won, layer in zip(wins, score):
        above = 0.5 * (np.sign(layer[label][:, None] - layer[~label]) + 1)
        won[:] = positive.T @ above @ negative

    def statistic(counts: np.ndarray) -> np.ndarray:
        won = np.einsum("bg,lgh,bh->bl", counts, wins, counts, optimize=["einsum_path", (0, 1), (0, 1)])
        pairs = (counts @ positive.sum(0)) * (counts @ negative.sum(0))
        return np.where(pairs[:, None] > 0, won / np.maximum(pairs, 1)[:, None], np.nan)

    return bootstrap(statistic, resamples, 0.0, 1.0)


def bootstrap_relative_accuracy(
    possible: npt.ArrayLike,
    score: npt.ArrayLike,
    scene: npt.ArrayLike,
    resamples: Resamples,
    tie_tolerance: float = TIE_TOLERANCE,
    largest: float | None = None,
    rounding: npt.ArrayLike | None = None,
    tie: float = 0.5,
) -> BootstrapCurve:
    """Share of scenes whose possible movies' scores sum to more than the impossible ones', a tie worth `tie`.

    `possible` [n] bool, `score` [layers, n], `scene` [n]: the scenes are the groups. Sums within `tie_tolerance` of
    the `largest` score (default: each layer's) are tied, or, where the `rounding` [layers, n] of
    scores is known, within ROUNDINGS of the scene's, as in pez.probes.scores.possibility.
    """
    score = np.asarray(score, dtype=np.float64)
    signed = np.where(np.asarray(possible, dtype=bool), score, -score)
    margin = _group_sums(signed.T, resamples.index(scene), len(resamples.names)).T  # [layers, scenes]
    tolerance = tie_tolerance * np.abs(score).max(1)[:, None] if largest is None else tie_tolerance * largest
    if rounding is not None:
        squares = _group_sums(np.square(rounding).T, resamples.index(scene), len(resamples.names)).T
        tolerance = np.where(np.isfinite(squares), ROUNDINGS * np.sqrt(squares), tolerance)
    tied = np.abs(margin) <= tolerance
    return bootstrap_mean(np.where(tied, tie, margin > 0), resamples.names, resamples, 0.0, 1.0)


def bootstrap_pairwise_accuracy(
    possible: npt.ArrayLike,
    score: npt.ArrayLike,
    scene: npt.ArrayLike,
    pair: npt.ArrayLike,
    resamples: Resamples,
    rounding: npt.ArrayLike,
) -> BootstrapCurve:
    """Share of matched pairs whose possible movie has the higher score, a tie a half; scenes are the groups.

    `pair` [n] numbers the pairs of a scene; `rounding` [layers, n], NaN where it is not known. Ties as of
    `bootstrap_relative_accuracy`, of scores whose largest is 1.
    """
    possible, score = np.asarray(possible, dtype=bool), np.asarray(score, dtype=np.float64)
    index, pair = resamples.index(scene), np.asarray(pair)
    mates = (index[possible][:, None] == index[~possible]) & (pair[possible][:, None] == pair[~possible])
    one, other = np.nonzero(mates)
    margin = score[:, possible][:, one] - score[:, ~possible][:, other]  # [layers, pairs]
    squares = np.square(np.asarray(rounding))
    squares = squares[:, possible][:, one] + squares[:, ~possible][:, other]
    tolerance = np.where(np.isfinite(squares), ROUNDINGS * np.sqrt(squares), TIE_TOLERANCE)
    won = np.where(np.abs(margin) <= tolerance, 0.5, margin > 0)
    return bootstrap_mean(won, np.asarray(scene)[possible][one], resamples, 0.0, 1.0)


def bootstrap_angular_error(
    target_deg: npt.ArrayLike, prediction_deg: npt.ArrayLike, group: npt.ArrayLike, resamples: Resamples
) -> BootstrapCurve:
    """Mean absolute angular error in degrees, 0 to 180; `target_deg` [n], `prediction_deg` [layers, n]."""
    return bootstrap_mean(angular_error(prediction_deg, target_deg), group, resamples, 0.0, 180.0)


def bootstrap_circular_correlation(
    target_deg: npt.ArrayLike, prediction_deg: npt.ArrayLike, group: npt.ArrayLike, resamples: Resamples
) -> BootstrapCurve:
    """Circular correlation (pez.probes.scores.circular); `target_deg` [n], `prediction_deg` [layers, n], degrees."""
    index, n_groups = resamples.index(group), len(resamples.names)
    moments = [
        _group_sums(circular_moments(target_deg, layer), index, n_groups) for layer in np.asarray(prediction_deg)
    ]

    def statistic(counts: np.ndarray) -> np.ndarray:
        return np.stack([correlation_from_moments(counts @ sums) for sums in moments], axis=1)

    return bootstrap(statistic, resamples, -1.0, 1.0)


def intervals(samples: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Percentile intervals [..., 2] of scalars, from their resamples `samples` [B, ...].

    Ends are order statistics, so samples may hold infinities; samples that are NaN are left out.
    """
    columns = samples.reshape(len(samples), -1).T
    ends = np.full((len(columns), 2), np.nan)
    for end, column in zip(ends, columns):
        known = np.sort(column[~np.isnan(column)])
        if len(known):
            last = len(known) - 1
            end[0] = known[int(np.floor((1 - level) / 2 * last))]
            end[1] = known[int(np.ceil((1 + level) / 2 * last))]
    return ends.reshape(*samples.shape[1:], 2)


def _group_sums(values: np.ndarray, index: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums over the clips of each group: `values` [n, m] -> [G, m]."""
    sums = np.zeros((n_groups, values.shape[1]), dtype=values.dtype)
    np.add.at(sums, index, values)
    return sums
