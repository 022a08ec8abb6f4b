"""Regressions: one layer's features and targets, split into rows to train on, to validate on and to predict.

A regression is stored the way the sweep (pez/probes/solvers/sweep.py) eats it: features normalised with the training
rows' statistics, targets standardised, and either the training rows themselves or, where that is cheaper an
epoch, their Gram matrix X'X and X'Y.

A column of ones stands for the bias, except in least squares with centred features: there the bias's gradient is
zero in exact arithmetic and the bias stays where it starts, at zero. Left in, AdamW (whose epsilon is 1e-8) would
blow its rounding errors up to some 1e-5 to 1e-3 of a target's standard deviation, differently on every machine.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from constants import PROBE_LEARNING_RATES, PROBE_WEIGHT_DECAYS
from pez.errors import UserError, check_choice

NORM_MODES = ("zscore", "center", "none")
LOSSES = ("mse", "logistic")
_GRAM_GAIN = 1.25  # a Gram epoch must be this much cheaper than two passes over the rows


@dataclass(frozen=True)
class Setting:
    """One AdamW setting."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Training:
    """How a probe is trained by gradient where there is a choice; by default this project's.

    l2: weight decay is added to the gradient (Adam), in place of taken off the weights (AdamW).
    start_seed: weights and bias start as torch.nn.Linear's do under this seed; None: from zero.
    bias: a bias is trained, also where its gradient is zero in exact arithmetic.
    targets_as_features: targets are normalised as features are; otherwise they are always standardised.
    least_gain: by how much a validation loss must fall to count as lower.
    stops_by: "loss"; or "accuracy" of a logistic probe, the share of validation rows on the right side of a half.
    """

    l2: bool = False
    start_seed: int | None = None
    bias: bool = False
    targets_as_features: bool = False
    least_gain: float = 0.0
    stops_by: str = "loss"


def paper_settings() -> tuple[Setting, ...]:
    """The paper's 20 settings (appendix B), learning rate slowest."""
    return tuple(itertools.starmap(Setting, itertools.product(PROBE_LEARNING_RATES, PROBE_WEIGHT_DECAYS)))


@dataclass(frozen=True)
class Moments:
    """Sums over rows that decide a least-squares regression; float64, so that they add exactly enough.

    `count`; `x` [d], `xx` [d, d], `xy` [d, k], `y` [k], `yy` [k]: sums of x, xx', xy', y, y*y.
    """

    count: int
    x: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor
    y: torch.Tensor
    yy: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, targets: torch.Tensor) -> "Moments":
        """Moments of `features` [n, d] and `targets` [n, k]."""
        x, y = features.double(), targets.double()
        return cls(len(x), x.sum(0), x.T @ x, x.T @ y, y.sum(0), y.square().sum(0))

    @classmethod
    def of_patches(cls, patches: torch.Tensor, targets: torch.Tensor, chunk: int = 32) -> "Moments":
        """Moments of `patches` [n, P, d], every patch with its clip's target [n, k]; `chunk` clips at a time.

        Products are taken in float32 after removing the mean, then summed and shifted back in float64:
        that keeps seven digits of the centred matrix at a third of the time.
        """
        n, per_clip, d = patches.shape
        means = patches.float().mean(1).double()
        shift = means.mean(0)
        centred = torch.zeros(d, d, dtype=torch.float64, device=patches.device)
        for part in torch.split(patches, chunk):
            rows = part.flatten(0, 1).float() - shift.float()
            centred += (rows.T @ rows).double()
        shift = shift.float().double()  # what was in fact subtracted
        total, count = per_clip * means.sum(0), n * per_clip
        rest = total - count * shift
        xx = centred + torch.outer(rest, shift) + torch.outer(shift, rest) + count * torch.outer(shift, shift)
        y = targets.double()
        return cls(count, total, xx, per_clip * means.T @ y, per_clip * y.sum(0), per_clip * y.square().sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Regression:
    """What `pez.probes.solvers.sweep.solve` solves; build it with `row_regression` or `moment_regression`.

    With d features, k outputs in V variables, n training, m validation, p prediction rows, and D = d, or d + 1 with
    a column of ones last (`has_bias`):
    `rows` [n, D] and `y` [k, n], or `gram` [D, D] and `xy` [k, D] instead; `count` training rows;
    `evaluation` [m + p, D]; `y_validation` [k, m]; `outputs` sizes of the variables, summing to k; `settings`;
    `target_mean`, `target_scale` [k], which undo the standardisation; `stop_epochs` [S, V] or None: with it the
    sweep ignores validation and stops each setting and variable after that many epochs (a refit). `fold_sizes`: rows
    of validation folds, one after another, that each find a best epoch of their own; empty: one, of all rows.
    `scatter` [D, D]: where validation rows are means (of patches), the mean outer product of what they are means of,
    less the mean: with it the loss is that of those, not of the means. `training`: how it is trained.
    """

    count: int
    evaluation: torch.Tensor
    y_validation: torch.Tensor
    outputs: tuple[int, ...]
    settings: tuple[Setting, ...]
    loss: str
    target_mean: torch.Tensor
    target_scale: torch.Tensor
    feature_mean: torch.Tensor
    feature_scale: torch.Tensor
    rows: torch.Tensor | None = None
    y: torch.Tensor | None = None
    gram: torch.Tensor | None = None
    xy: torch.Tensor | None = None
    stop_epochs: torch.Tensor | None = None
    fold_sizes: tuple[int, ...] = ()
    scatter: torch.Tensor | None = None
    training: Training = Training()

    @property
    def validation_sizes(self) -> tuple[int, ...]:
        """Rows of every validation fold."""
        return self.fold_sizes or (self.n_validation,)

    @property
    def has_bias(self) -> bool:
        """Whether the last column stands for a bias."""
        return self.evaluation.shape[1] > len(self.feature_mean)

    @property
    def n_validation(self) -> int:
        """Validation rows; the rest of `evaluation` are prediction rows."""
        return self.y_validation.shape[1]


def not_none(part: torch.Tensor | None) -> torch.Tensor:
    """A part that regressions of this form have."""
    assert part is not None
    return part


def row_regression(
    features: torch.Tensor | np.ndarray,
    targets: torch.Tensor | np.ndarray,
    train: npt.ArrayLike,
    validation: npt.ArrayLike | None,
    predict: npt.ArrayLike | None = None,
    *,
    loss: str = "mse",
    normalise: str = "zscore",
    gram: bool | None = None,
    dtype: torch.dtype = torch.float32,
    training: Training = Training(),
    **options: Any,
) -> Regression:
    """A regression from `features` [n, d] and `targets` [n, k] and integer row indices (or None for no rows).

    Normalisation of features ("zscore" | "center" | "none") and, for "mse", standardisation of targets use
    training rows only; a constant column is centred and left at that. "logistic" takes targets of 0 and 1 and
    leaves them; `training` may leave others as well. `gram` None chooses the cheaper form of an epoch.
    float32 follows torch.optim.AdamW in float32; where learning rates are high both wander from float64.

    Of the `options`, `settings` are the paper's by default; `outputs` are the sizes of the variables that share the
    features (default: one of size k); each has its own loss, early stopping and best setting; so has each of the
    `fold_sizes`. `stop_epochs` as of `Regression`.

    Raises UserError for features or targets that are not finite.
    """
    check_choice("loss", loss, LOSSES)
    features, targets = torch.as_tensor(features), torch.as_tensor(targets)
    targets = (targets[:, None] if targets.ndim == 1 else targets).to(features.device)
    rows, held, read = (_index(each) for each in (train, validation, predict))
    x, y = features[rows], targets[rows]
    if not len(x):
        raise UserError("a probe has no clip to train on: use fewer --folds or another --grouping")
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise UserError("features or targets of a probe are not finite: rerun step2_extract.py with --overwrite")
    options |= {"normalise": normalise, "dtype": dtype, "training": training}
    if loss == "mse" and (gram if gram is not None else 2 * len(x) > _GRAM_GAIN * x.shape[1]):
        return moment_regression(Moments.of(x, y), features[held], targets[held], features[read], **options)
    x, y = x.double(), y.double()
    scaling = _scalings(x.mean(0), x.var(0, correction=0), y.mean(0), y.var(0, correction=0), loss, normalise, training)
    form = {
        "count": len(x),
        "rows": _normalised(x, scaling, dtype, _needs_bias(loss, normalise, training)),
        "y": ((y - scaling["target_mean"]) / scaling["target_scale"]).T.to(dtype).contiguous(),
    }
    return _finished(form | scaling, features[torch.cat([held, read])], targets[held], loss, **options)


def moment_regression(
    moments: Moments,
    validation_features: torch.Tensor,
    validation_targets: torch.Tensor,
    predict_features: torch.Tensor | None = None,
    *,
    normalise: str = "zscore",
    dtype: torch.dtype = torch.float32,
    training: Training = Training(),
    scatter: torch.Tensor | None = None,
    **options: Any,
) -> Regression:
    """A least-squares regression from the training rows' `moments`; `options` as of `row_regression`.

    For patch features: train on patches, validate on and predict clips by the mean over their patches. A linear
    probe's mean prediction is its prediction for the mean patch, so [m, d] and [p, d] are patch means here. With
    `scatter` [d, d] of the validation clips' patches about their means it is validated on patches too (see Regression).
    """
    n = moments.count
    x_mean, y_mean = moments.x / n, moments.y / n
    x_variance = moments.xx.diagonal() / n - x_mean.square()
    y_variance = moments.yy / n - y_mean.square()
    scaling = _scalings(x_mean, x_variance, y_mean, y_variance, "mse", normalise, training)
    mean, scale, y_mean, y_scale = scaling.values()
    shifted, y_shifted = moments.x - n * mean, moments.y - n * y_mean  # sums of what is left: zero if centred
    gram = moments.xx - torch.outer(mean, moments.x) - torch.outer(shifted, mean)
    xy = moments.xy - torch.outer(mean, moments.y) - torch.outer(shifted, y_mean)
    gram, xy = gram / torch.outer(scale, scale), xy / torch.outer(scale, y_scale)
    scatter = None if scatter is None else (scatter / torch.outer(scale, scale)).to(dtype)
    if _needs_bias("mse", normalise, training):
        ones = torch.cat([shifted / scale, shifted.new_tensor([n])])
        gram = torch.cat([torch.cat([gram, ones[None, :-1]]), ones[:, None]], dim=1)
        xy = torch.cat([xy, (y_shifted / y_scale)[None]])
        scatter = None if scatter is None else torch.nn.functional.pad(scatter, (0, 1, 0, 1))
    form = {"count": n, "gram": gram.to(dtype), "xy": xy.T.to(dtype).contiguous(), "scatter": scatter}
    evaluation = torch.cat([validation_features] + ([] if predict_features is None else [predict_features]))
    options |= {"normalise": normalise, "dtype": dtype, "training": training}
    return _finished(form | scaling, evaluation, validation_targets, "mse", **options)


def _index(rows: npt.ArrayLike | None) -> torch.Tensor:
    rows = np.zeros(0, dtype=np.int64) if rows is None else np.asarray(rows)
    return torch.as_tensor(rows, dtype=torch.int64)


def _needs_bias(loss: str, normalise: str, training: Training) -> bool:
    return training.bias or loss == "logistic" or normalise == "none"


def _scalings(
    mean: torch.Tensor,
    variance: torch.Tensor,
    y_mean: torch.Tensor,
    y_variance: torch.Tensor,
    loss: str,
    normalise: str,
    training: Training,
) -> dict[str, torch.Tensor]:
    """What is taken off features and targets, and what they are divided by then, as `Regression` names it."""
    check_choice("norm mode", normalise, NORM_MODES)
    of_targets = normalise if training.targets_as_features else "zscore"
    feature_mean, feature_scale = _scaling(mean, variance, normalise)
    target_mean, target_scale = _scaling(y_mean, y_variance, "none" if loss == "logistic" else of_targets)
    return {
        "feature_mean": feature_mean,
        "feature_scale": feature_scale,
        "target_mean": target_mean,
        "target_scale": target_scale,
    }


def _scaling(mean: torch.Tensor, variance: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one of NORM_MODES; columns that are constant up to rounding are divided by 1."""
    if mode == "zscore":
        constant = variance <= 1e-13 * mean.square().clamp_min(1e-30)
        return mean, torch.where(constant, 1.0, variance.clamp_min(0)).sqrt()
    shift = mean if mode == "center" else torch.zeros_like(mean)
    return shift, torch.ones_like(mean)


def _normalised(x: torch.Tensor, scaling: dict[str, torch.Tensor], dtype: torch.dtype, ones: bool) -> torch.Tensor:
    """Normalised rows, with a column of ones last if asked for."""
    rows = ((x.double() - scaling["feature_mean"]) / scaling["feature_scale"]).to(dtype)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if ones else rows


def _finished(
    form: dict[str, Any],
    evaluation: torch.Tensor,
    y_validation: torch.Tensor,
    loss: str,
    *,
    normalise: str,
    dtype: torch.dtype,
    training: Training,
    settings: tuple[Setting, ...] | None = None,
    outputs: tuple[int, ...] | None = None,
    stop_epochs: torch.Tensor | None = None,
    fold_sizes: tuple[int, ...] = (),
) -> Regression:
    y_mean, y_scale = form["target_mean"], form["target_scale"]
    y_validation = torch.as_tensor(y_validation, device=y_mean.device)
    y_validation = y_validation.reshape(len(y_validation), len(y_mean)).double()
    outputs = tuple(outputs) if outputs else (len(y_mean),)
    if sum(outputs) != len(y_mean):
        raise ValueError(f"variables of sizes {outputs} do not make {len(y_mean)} outputs")
    if fold_sizes and sum(fold_sizes) != len(y_validation):
        raise ValueError(f"judges of {fold_sizes} rows do not make {len(y_validation)} validation rows")
    if not len(y_validation) and stop_epochs is None:
        raise UserError("a probe has no clip to validate on: use fewer --folds or another --grouping")
    return Regression(
        **form,
        evaluation=_normalised(evaluation, form, dtype, _needs_bias(loss, normalise, training)),
        y_validation=((y_validation - y_mean) / y_scale).T.to(dtype).contiguous(),
        outputs=outputs,
        settings=tuple(settings) if settings else paper_settings(),
        loss=loss,
        stop_epochs=None if stop_epochs is None else torch.as_tensor(stop_epochs, dtype=torch.int64),
        fold_sizes=tuple(fold_sizes),
        training=training,
    )


def linear_start(width: int, outputs: tuple[int, ...], seed: int) -> torch.Tensor:
    """Weights and, last, bias [k, width + 1] of a `torch.nn.Linear(width, size)` for each of `outputs`, made under
    `torch.manual_seed(seed)`: uniform within 1 / sqrt(width), from a generator of its own."""
    rows = []
    for size in outputs:
        generator, bound = torch.Generator().manual_seed(seed), width**-0.5
        weights = torch.empty(size, width).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(size).uniform_(-bound, bound, generator=generator)
        rows.append(torch.cat([weights, bias[:, None]], dim=1))
    return torch.cat(rows)
