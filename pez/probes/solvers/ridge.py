"""Ridge regression in closed form, every strength from one eigendecomposition.

Minimises ||y - b - Xw||^2 + strength * ||w||^2 with the bias free, as scikit-learn's `Ridge` does; X and y are
the problem's normalised features and standardised targets (Hoerl & Kennard 1970).
"""

import math
from collections.abc import Iterable, Iterator

import torch

from pez.probes.solvers.regression import Regression, Setting, there
from pez.probes.solvers.sweep import SweepResult

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-4, 13))  # 0.01 ... 1e6, two a decade


def ridge_settings(strengths: Iterable[float] = STRENGTHS) -> tuple[Setting, ...]:
    """Settings of a ridge problem: the strength stands where AdamW has its weight decay; there is no learning rate."""
    return tuple(Setting(math.nan, float(strength)) for strength in strengths)  # one NaN: no grid of several rates


def solve_ridge(problems: Iterable[Regression]) -> Iterator[SweepResult]:
    """Solve least-squares problems made with `settings=ridge_settings(...)` (and best with dtype=torch.float64)."""
    for problem in problems:
        weights, bias = ridge_weights(problem)
        rows = problem.evaluation[:, : weights.shape[2]].double() @ weights.mT + bias[:, None]  # [S, m + p, k]
        m = problem.n_validation
        squares = (rows[:, :m] - problem.y_validation.double().T).square()  # [S, m, k]
        losses = []
        for judged in torch.split(squares, list(problem.judge_sizes), dim=1):
            of_variables = torch.split(judged.mean(1), list(problem.outputs), dim=1)
            losses.append(torch.stack([each.mean(1) for each in of_variables], dim=1))
        loss = torch.stack(losses, dim=2) if problem.judges else losses[0]  # [S, V, J] or [S, V]
        rows = (rows * problem.target_scale + problem.target_mean).cpu()
        raw = weights * problem.target_scale[:, None] / problem.feature_scale
        raw_bias = bias * problem.target_scale + problem.target_mean - raw @ problem.feature_mean
        yield SweepResult(
            settings=problem.settings,
            outputs=problem.outputs,
            best_epoch=torch.zeros(loss.shape, dtype=torch.int64),
            validation_loss=loss.cpu(),
            validation_prediction=rows[:, :m],
            prediction=rows[:, m:],
            weights=raw.cpu(),
            bias=raw_bias.cpu(),
            judges=problem.judges,
        )


def ridge_weights(problem: Regression) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [S, k, d] and bias [S, k] for the problem's normalised features and standardised targets.

    With fewer rows than features the small n x n matrix is decomposed, else the d x d one.
    """
    strengths = torch.tensor([s.weight_decay for s in problem.settings], dtype=torch.float64)[:, None, None]
    strengths = strengths.to(problem.feature_mean.device)
    d, n = len(problem.feature_mean), problem.count
    if problem.gram is None:
        x, y = there(problem.rows)[:, :d].double(), there(problem.y).double()
        x_mean, y_mean = x.mean(0), y.mean(1)
        x, y = x - x_mean, y - y_mean[:, None]
        if n <= d:
            values, vectors = torch.linalg.eigh(x @ x.T)
            weights = ((y @ vectors) / (values.clamp_min(0) + strengths)) @ vectors.T @ x
            return weights, y_mean - weights @ x_mean
        gram, xy = x.T @ x, y @ x
    else:
        gram, xy = problem.gram.double(), there(problem.xy).double()
        x_mean, y_mean = gram[:d, d:].sum(1) / n, xy[:, d:].sum(1) / n  # without a column of ones both are zero
        gram = gram[:d, :d] - n * torch.outer(x_mean, x_mean)
        xy = xy[:, :d] - n * torch.outer(y_mean, x_mean)
    values, vectors = torch.linalg.eigh(gram)
    weights = ((xy @ vectors) / (values.clamp_min(0) + strengths)) @ vectors.T
    return weights, y_mean - weights @ x_mean


def ridge_at(x: torch.Tensor, y: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Weights [..., d, k] of many small problems at one strength [...] each: `x` [..., n, d], `y` [..., n, k], centred.

    As `ridge_weights`, by one Cholesky decomposition of the smaller of the n x n and the d x d matrix.
    """
    n, d = x.shape[-2:]
    gram = x @ x.mT if n <= d else x.mT @ x
    gram.diagonal(dim1=-2, dim2=-1).add_(strength[..., None])
    factor = torch.linalg.cholesky(gram)
    return x.mT @ torch.cholesky_solve(y, factor) if n <= d else torch.cholesky_solve(x.mT @ y, factor)
