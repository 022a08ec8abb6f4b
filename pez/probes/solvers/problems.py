"""Probe problems: one layer's features and targets, split into rows to train on, to judge by and to predict.

A problem is stored the way the sweep (pez/probes/solvers/sweep.py) eats it: features normalised with the training
rows' statistics, targets standardised, and either the training rows themselves or, where that is cheaper an
epoch, their Gram matrix X'X and X'Y.

A column of ones stands for the bias, except in least squares with centred features: there the bias's gradient is
zero in exact arithmetic and the bias stays where it starts, at zero. Left in, AdamW (whose epsilon is 1e-8) would
blow its rounding errors up to some 1e-5 to 1e-3 of a target's standard deviation, differently on every machine.
"""

import dataclasses
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
    """Sums over rows that decide a least-squares problem; float64, so that they add and subtract exactly enough.

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
        return Moments(*(a + b for a, b in zip(_fields(self), _fields(other))))

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(*(a - b for a, b in zip(_fields(self), _fields(other))))


def _fields(moments: Moments) -> list[Any]:
    return [getattr(moments, field.name) for field in dataclasses.fields(Moments)]


@dataclass(frozen=True)
class Problem:
    """What `pez.probes.solvers.sweep.solve` solves; build it with `row_problem` or `moment_problem`.

    With d features, k outputs in V variables, n training, m validation, p prediction rows, and D = d, or d + 1 with
    a column of ones last (`has_bias`):
    `rows` [n, D] and `y` [k, n], or `gram` [D, D] and `xy` [k, D] instead; `count` training rows;
    `evaluation` [m + p, D]; `y_validation` [k, m]; `outputs` sizes of the variables, summing to k; `settings`;
    `target_mean`, `target_scale` [k], which undo the standardisation; `stop_epochs` [S, V] or None: with it the
    sweep ignores validation and stops each setting and variable after that many epochs (a refit). `judges`: sizes of
    groups of validation rows, one after another, that each find a best epoch of their own; empty: one, of all rows.
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
    judges: tuple[int, ...] = ()
    scatter: torch.Tensor | None = None
    training: Training = Training()

    @property
    def judge_sizes(self) -> tuple[int, ...]:
        """Validation rows of every judge."""
        return self.judges or (self.n_validation,)

    @property
    def has_bias(self) -> bool:
        """Whether the last column stands for a bias."""
        return self.evaluation.shape[1] > len(self.feature_mean)

    @property
    def n_validation(self) -> int:
        """Validation rows; the rest of `evaluation` are prediction rows."""
        return self.y_validation.shape[1]


def there(part: torch.Tensor | None) -> torch.Tensor:
    """A part of a problem that problems of this form have."""
    assert part is not None
    return part


def row_problem(
    features: torch.Tensor | np.ndarray,
    targets: torch.Tensor | np.ndarray,
    train: npt.ArrayLike,
    validation: npt.ArrayLike | None,
    predict: npt.ArrayLike | None = None,
    *,
    settings: tuple[Setting, ...] | None = None,
    loss: str = "mse",
    normalise: str = "zscore",
    outputs: tuple[int, ...] | None = None,
    gram: bool | None = None,
    stop_epochs: torch.Tensor | None = None,
    judges: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    training: Training = Training(),
) -> Problem:
    """A problem from `features` [n, d] and `targets` [n, k] and integer row indices (or None for no rows).

    Normalisation of features ("zscore" | "center" | "none") and, for "mse", standardisation of targets use
    training rows only; a constant column is centred and left at that. "logistic" takes targets of 0 and 1 and
    leaves them; `training` may leave others as well. `outputs` are the sizes of the variables that share the features
    (default: one of size k); each has its own loss, early stopping and best setting; so has each of the `judges`.
    `gram` None chooses the cheaper form of an epoch.
    float32 follows torch.optim.AdamW in float32; where learning rates are high both wander from float64.

    Raises UserError for features or targets that are not finite.
    """
    features, targets = torch.as_tensor(features), torch.as_tensor(targets)
    targets = (targets[:, None] if targets.ndim == 1 else targets).to(features.device)
    x, y = features[_index(train)], targets[_index(train)]
    _check(x, y, loss)
    if loss == "mse" and (gram if gram is not None else 2 * len(x) > _GRAM_GAIN * x.shape[1]):
        moments = Moments.of(x, y)
        form = _gram_form(moments, normalise, dtype, training)
    else:
        form = _row_form(x, y, loss, normalise, dtype, training)
    evaluation = features[torch.cat([_index(validation), _index(predict)])]
    chosen: dict[str, Any] = {"settings": settings, "outputs": outputs, "stop_epochs": stop_epochs, "judges": judges}
    return _finish(form, evaluation, targets[_index(validation)], loss, normalise, dtype, training, **chosen)


def moment_problem(
    moments: Moments,
    validation_features: torch.Tensor,
    validation_targets: torch.Tensor,
    predict_features: torch.Tensor | None = None,
    *,
    settings: tuple[Setting, ...] | None = None,
    normalise: str = "zscore",
    outputs: tuple[int, ...] | None = None,
    stop_epochs: torch.Tensor | None = None,
    judges: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    training: Training = Training(),
    scatter: torch.Tensor | None = None,
) -> Problem:
    """A least-squares problem from the training rows' `moments`.

    For patch features: train on patches, judge and predict clips by the mean over their patches. A linear
    probe's mean prediction is its prediction for the mean patch, so [m, d] and [p, d] are patch means here. With
    `scatter` [d, d] of the validation clips' patches about their means it is judged by patches too (Problem).
    """
    parts = [validation_features] + ([] if predict_features is None else [predict_features])
    form = _gram_form(moments, normalise, dtype, training)
    if scatter is not None:
        scale = form["feature_scale"]
        form["scatter"] = (scatter / torch.outer(scale, scale)).to(dtype)
        if _needs_bias("mse", normalise, training):
            form["scatter"] = torch.nn.functional.pad(form["scatter"], (0, 1, 0, 1))
    chosen: dict[str, Any] = {"settings": settings, "outputs": outputs, "stop_epochs": stop_epochs, "judges": judges}
    return _finish(form, torch.cat(parts), validation_targets, "mse", normalise, dtype, training, **chosen)


def _index(rows: npt.ArrayLike | None) -> torch.Tensor:
    rows = np.zeros(0, dtype=np.int64) if rows is None else np.asarray(rows)
    return torch.as_tensor(rows, dtype=torch.int64)


def _check(x: torch.Tensor, y: torch.Tensor, loss: str) -> None:
    check_choice("loss", loss, LOSSES)
    if not len(x):
        raise UserError("a probe has no clip to train on: use fewer --folds or another --grouping")
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise UserError("features or targets of a probe are not finite: rerun step2_extract.py with --overwrite")


def _row_form(
    x: torch.Tensor, y: torch.Tensor, loss: str, normalise: str, dtype: torch.dtype, training: Training
) -> dict[str, Any]:
    x, y = x.double(), y.double()
    mean, scale = _feature_scaling(x.mean(0), x.var(0, correction=0), normalise)
    y_mean, y_scale = _target_scaling(y.mean(0), y.var(0, correction=0), loss, normalise, training)
    return {
        "rows": _normalised(x, mean, scale, dtype, _needs_bias(loss, normalise, training)),
        "y": ((y - y_mean) / y_scale).T.to(dtype).contiguous(),
        "count": len(x),
        **_scalings(mean, scale, y_mean, y_scale),
    }


def _gram_form(sums: Moments, normalise: str, dtype: torch.dtype, training: Training) -> dict[str, Any]:
    n = sums.count
    x_mean, y_mean = sums.x / n, sums.y / n
    mean, scale = _feature_scaling(x_mean, sums.xx.diagonal() / n - x_mean.square(), normalise)
    y_mean, y_scale = _target_scaling(y_mean, sums.yy / n - y_mean.square(), "mse", normalise, training)
    shifted, y_shifted = sums.x - n * mean, sums.y - n * y_mean  # sums of what is left: zero if centred
    gram = sums.xx - torch.outer(mean, sums.x) - torch.outer(shifted, mean)
    xy = sums.xy - torch.outer(mean, sums.y) - torch.outer(shifted, y_mean)
    gram, xy = gram / torch.outer(scale, scale), xy / torch.outer(scale, y_scale)
    if _needs_bias("mse", normalise, training):
        ones = torch.cat([shifted / scale, shifted.new_tensor([n])])
        gram = torch.cat([torch.cat([gram, ones[None, :-1]]), ones[:, None]], dim=1)
        xy = torch.cat([xy, (y_shifted / y_scale)[None]])
    return {
        "gram": gram.to(dtype),
        "xy": xy.T.to(dtype).contiguous(),
        "count": n,
        **_scalings(mean, scale, y_mean, y_scale),
    }


def _needs_bias(loss: str, normalise: str, training: Training) -> bool:
    return training.bias or loss == "logistic" or normalise == "none"


def _scalings(
    mean: torch.Tensor, scale: torch.Tensor, y_mean: torch.Tensor, y_scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    return {"feature_mean": mean, "feature_scale": scale, "target_mean": y_mean, "target_scale": y_scale}


def _feature_scaling(mean: torch.Tensor, variance: torch.Tensor, normalise: str) -> tuple[torch.Tensor, torch.Tensor]:
    check_choice("norm mode", normalise, NORM_MODES)
    if normalise == "none":
        return torch.zeros_like(mean), torch.ones_like(mean)
    if normalise == "center":
        return mean, torch.ones_like(mean)
    return mean, _positive_scale(mean, variance)


def _target_scaling(
    mean: torch.Tensor, variance: torch.Tensor, loss: str, normalise: str, training: Training
) -> tuple[torch.Tensor, torch.Tensor]:
    if loss == "logistic":
        return torch.zeros_like(mean), torch.ones_like(mean)
    if training.targets_as_features:
        return _feature_scaling(mean, variance, normalise)
    return mean, _positive_scale(mean, variance)


def _positive_scale(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Standard deviations, with 1 for columns that are constant up to rounding."""
    constant = variance <= 1e-13 * mean.square().clamp_min(1e-30)
    return torch.where(constant, 1.0, variance.clamp_min(0)).sqrt()


def _normalised(
    x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, ones: bool
) -> torch.Tensor:
    """Normalised rows, with a column of ones last if asked for."""
    rows = ((x.double() - mean) / scale).to(dtype)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if ones else rows


def _finish(
    form: dict[str, Any],
    evaluation: torch.Tensor,
    y_validation: torch.Tensor,
    loss: str,
    normalise: str,
    dtype: torch.dtype,
    training: Training,
    *,
    settings: tuple[Setting, ...] | None,
    outputs: tuple[int, ...] | None,
    stop_epochs: torch.Tensor | None,
    judges: tuple[int, ...],
) -> Problem:
    y_mean, y_scale = form["target_mean"], form["target_scale"]
    y_validation = torch.as_tensor(y_validation, device=y_mean.device)
    y_validation = y_validation.reshape(len(y_validation), len(y_mean)).double()
    outputs = tuple(outputs) if outputs else (len(y_mean),)
    if sum(outputs) != len(y_mean):
        raise ValueError(f"variables of sizes {outputs} do not make {len(y_mean)} outputs")
    if judges and sum(judges) != len(y_validation):
        raise ValueError(f"judges of {judges} rows do not make {len(y_validation)} validation rows")
    if not len(y_validation) and stop_epochs is None:
        raise UserError("a probe has no clip to validate on: use fewer --folds or another --grouping")
    ones = _needs_bias(loss, normalise, training)
    return Problem(
        **form,
        evaluation=_normalised(evaluation, form["feature_mean"], form["feature_scale"], dtype, ones),
        y_validation=((y_validation - y_mean) / y_scale).T.to(dtype).contiguous(),
        outputs=outputs,
        settings=tuple(settings) if settings else paper_settings(),
        loss=loss,
        stop_epochs=None if stop_epochs is None else torch.as_tensor(stop_epochs, dtype=torch.int64),
        judges=tuple(judges),
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
