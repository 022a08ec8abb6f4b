"""Ridge regression in closed form, every strength from one eigendecomposition.

Minimises ||y - b - Xw||^2 + strength * ||w||^2 with the bias free, as scikit-learn's `Ridge` does; X and y are
the regression's normalised features and standardised targets (Hoerl & Kennard 1970).
"""

import math
from collections.abc import Iterable, Iterator

import torch

from pez.probes.solvers.regression import Regression, Setting, not_none
from pez.probes.solvers.sweep import SweepResult

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-4, 13))  # 0.01 ... 1e6, two a decade


def ridge_settings(strengths: Iterable[float] = STRENGTHS) -> tuple[Setting, ...]:
    """Settings of ridge: the strength stands where AdamW has its weight decay; there is no learning rate."""
    return tuple(Setting(math.nan, float(strength)) for strength in strengths)  # one NaN: no grid of several rates


def solve_ridge(regressions: Iterable[Regression]) -> Iterator[SweepResult]:
    """Solve least-squares regressions made with `settings=ridge_settings(...)` (and best with dtype=torch.float64)."""
    for regression in regressions:
        weights, bias = ridge_weights(regression)
        rows = regression.evaluation[:, : weights.shape[2]].double() @ weights.mT + bias[:, None]  # [S, m + p, k]
        m = regression.n_validation
        squares = (rows[:, :m] - regression.y_validation.double().T).square()  # [S, m, k]
        losses = []
        for of_fold in torch.split(squares, list(regression.validation_sizes), dim=1):
            of_variables = torch.split(of_fold.mean(1), list(regression.outputs), dim=1)
            losses.append(torch.stack([each.mean(1) for each in of_variables], dim=1))
        loss = torch.stack(losses, dim=2) if regression.fold_sizes else losses[0]  # [S, V, J] or [S, V]
        rows = (rows * regression.target_scale + regression.target_mean).cpu()
        raw = weights * regression.target_scale[:, None] / regression.feature_scale
        raw_bias = bias * regression.target_scale + regression.target_mean - raw @ regression.feature_mean
        yield SweepResult(
            settings=regression.settings,
            outputs=regression.outputs,
            best_epoch=torch.zeros(loss.shape, dtype=torch.int64),
            validation_loss=loss.cpu(),
            validation_prediction=rows[:, :m],
            prediction=rows[:, m:],
            weights=raw.cpu(),
            bias=raw_bias.cpu(),
            fold_sizes=regression.fold_sizes,
        )


def ridge_weights(regression: Regression) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [S, k, d] and bias [S, k] for the regression's normalised features and standardised targets.

    With fewer rows than features the small n x n matrix is decomposed, else the d x d one.
    """
    strengths = torch.tensor([s.weight_decay for s in regression.settings], dtype=torch.float64)[:, None, None]
    strengths = strengths.to(regression.feature_mean.device)
    d, n = len(regression.feature_mean), regression.count
    if regression.gram is None:
        x, y = not_none(regression.rows)[:, :d].double(), not_none(regression.y).double()
        x_mean, y_mean = x.mean(0), y.mean(1)
        x, y = x - x_mean, y - y_mean[:, None]
        if n <= d:
            values, vectors = torch.linalg.eigh(x @ x.T)
            weights = ((y @ vectors) / (values.clamp_min(0) + strengths)) @ vectors.T @ x
            return weights, y_mean - weights @ x_mean
        gram, xy = x.T @ x, y @ x
    else:
        gram, xy = regression.gram.double(), not_none(regression.xy).double()
        x_mean, y_mean = gram[:d, d:].sum(1) / n, xy[:, d:].sum(1) / n  # without a column of ones both are zero
        gram = gram[:d, :d] - n * torch.outer(x_mean, x_mean)
        xy = xy[:, :d] - n * torch.outer(y_mean, x_mean)
    values, vectors = torch.linalg.eigh(gram)
    weights = ((xy @ vectors) / (values.clamp_min(0) + strengths)) @ vectors.T
    return weights, y_mean - weights @ x_mean


def ridge_at(x: torch.Tensor, y: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Weights [..., d, k] of many regressions at one strength [...] each: `x` [..., n, d], `y` [..., n, k],
    both centred.

    As `ridge_weights`, by one Cholesky decomposition of the smaller of the n x n and the d x d matrix.
    """
    n, d = x.shape[-2:]
    gram = x @ x.mT if n <= d else x.mT @ x
    gram.diagonal(dim1=-2, dim2=-1).add_(strength[..., None])
    factor = torch.linalg.cholesky(gram)
    return x.mT @ torch.cholesky_solve(y, factor) if n <= d else torch.cholesky_solve(x.mT @ y, factor)
