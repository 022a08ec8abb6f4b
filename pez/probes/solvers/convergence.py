"""Whether training reached what a probe of its size can reach: its training loss beside the smallest of the same norm.

A probe that stopped before it had converged scores low because of its training, not because of the features. Its
weights w have a norm; no probe of that norm or less has a smaller training loss than the minimiser under that
constraint, which is found exactly: of least squares in closed form from an eigendecomposition (the ridge solution whose
strength gives that norm), of a logistic probe by Newton's method on the penalised loss, at the strength that gives it.
A probe that was stopped early on purpose has a small norm, and is compared with probes as small.
"""

import numpy as np
import torch
from scipy.optimize import brentq

from pez.probes.solvers.regression import Regression, not_none

_BISECTIONS = 60
_NEWTON_STEPS = 50
_STRENGTHS = (1e-9, 1e6)  # of the penalty in a logistic loss, between which the norm is looked for
_FIRST = 1e-2  # where the search begins


def training_losses(regression: Regression, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean training loss of each output's `weights` [k, D], for the regression's normalised features, and the smallest
    that weights of the same norm reach: [k] and [k], float64."""
    weights = weights.double().cpu()
    if regression.loss == "logistic":
        return _logistic(regression, weights)
    if regression.gram is None:
        rows, y = not_none(regression.rows).double().cpu(), not_none(regression.y).double().cpu()
        loss = (weights @ rows.T - y).square().mean(1)
        if len(rows) < rows.shape[1]:
            values, vectors = torch.linalg.eigh(rows @ rows.T)
            projected = (y @ vectors) * values.clamp_min(0).sqrt()
            return loss, _smallest(values, projected, y.square().sum(1), len(rows), weights)
        gram, xy, squares, count = rows.T @ rows, y @ rows, y.square().sum(1), len(rows)
    else:
        gram, xy, count = regression.gram.double().cpu(), not_none(regression.xy).double().cpu(), regression.count
        squares = torch.full((len(xy),), float(count), dtype=torch.float64)  # targets are standardised
        loss = ((weights @ gram) * weights).sum(1) - 2 * (weights * xy).sum(1) + squares
        loss = loss / count
    values, vectors = torch.linalg.eigh(gram)
    return loss, _smallest(values, xy @ vectors, squares, count, weights)


def _smallest(
    values: torch.Tensor, projected: torch.Tensor, squares: torch.Tensor, count: int, weights: torch.Tensor
) -> torch.Tensor:
    """Smallest mean squared error [k] under each output's norm; `values` [m] of the Gram matrix, `projected` [k, m] is
    X'y in its eigenvectors, `squares` [k] are sums of y^2."""
    values = values.clamp_min(0)
    usable = values > 1e-10 * values.max().clamp_min(1e-300)
    values, projected = values[usable], projected[:, usable]
    norm = weights.norm(dim=1)
    low = torch.full_like(norm, -20.0)  # log10 of the strength, as a share of the largest eigenvalue
    high = torch.full_like(norm, 8.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        at = values + (10**middle)[:, None] * values.max()
        larger = (projected / at).norm(dim=1) > norm
        low, high = torch.where(larger, middle, low), torch.where(larger, high, middle)
    at = values + (10**high)[:, None] * values.max()
    fitted = 2 * (projected.square() / at).sum(1) - (values * projected.square() / at.square()).sum(1)
    return (squares - fitted) / count


def _logistic(regression: Regression, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, labels = not_none(regression.rows).double().cpu(), not_none(regression.y).double().cpu()
    # weights outside of the rows' span change norms only: work in the span, where there are at most n coordinates
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    usable = singular > 1e-10 * singular.max()
    x = (left[:, usable] * singular[usable]).numpy()
    loss, smallest = [], []
    for own, y in zip(weights, labels.numpy()):
        loss.append(_cross_entropy(rows.numpy() @ own.numpy(), y))
        smallest.append(_smallest_logistic(x, y, float(own.norm())))
    return torch.tensor(loss, dtype=torch.float64), torch.tensor(smallest, dtype=torch.float64)


def _cross_entropy(logits: np.ndarray, y: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - y * logits).mean())


def _smallest_logistic(x: np.ndarray, y: np.ndarray, norm: float) -> float:
    """Smallest mean cross-entropy of weights of at most this norm."""
    weights = np.zeros(x.shape[1])

    def at(strength: float) -> np.ndarray:
        nonlocal weights
        weights = _newton(x, y, strength, weights)
        return weights

    def excess(log: float) -> float:
        return float(np.log(np.linalg.norm(at(float(np.exp(log))))) - np.log(norm))

    weakest, strongest = np.log(_STRENGTHS)
    near = np.log(_FIRST)
    towards = np.log(10) if excess(near) > 0 else -np.log(10)  # a larger penalty, or a smaller one
    while weakest < near + towards < strongest and excess(near + towards) * towards > 0:
        near += towards
    if not weakest < near + towards < strongest:  # as strong or as weak as it gets: the norm does not bind
        return _cross_entropy(x @ weights, y)
    root = brentq(excess, *sorted((near, near + towards)), xtol=0.02)
    return _cross_entropy(x @ at(float(np.exp(root))), y)


def _newton(x: np.ndarray, y: np.ndarray, strength: float, start: np.ndarray) -> np.ndarray:
    """Minimiser of mean cross-entropy + strength / 2 |w|^2, from `start`, with steps halved until the loss falls."""
    n, w = len(y), start.copy()

    def loss(weights: np.ndarray) -> float:
        return _cross_entropy(x @ weights, y) + strength / 2 * float(weights @ weights)

    before = loss(w)
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        gradient = x.T @ (probability - y) / n + strength * w
        curvature = (x.T * (probability * (1 - probability))) @ x / n + strength * np.eye(len(w))
        step, share = np.linalg.solve(curvature, gradient), 1.0
        while (after := loss(w - share * step)) > before and share > 1e-8:
            share /= 2
        w = w - share * step
        if before - after <= 1e-12 * max(1.0, abs(before)):
            break
        before = after
    return w
