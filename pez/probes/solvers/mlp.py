"""A probe with one hidden layer: what features hold, but not linearly. Same folds and protocols as the linear ones.

    f(h) = V gelu(W h + b) + c

with HIDDEN units, trained on all training clips at once by AdamW on mean squared errors or, for classes, cross-entropy;
every variable has a network of its own. All settings start from the same weights and train together, as a batch of
networks; each is scored at its own best epoch.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, gelu

from pez.errors import UserError
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.scores.kinds import KINDS
from pez.probes.solvers.regression import Setting
from pez.probes.solvers.solver import Fit, FittedTogether, Step, TrainedTogether, Trials
from pez.probes.solvers.sweep import blas_threads

MLP = "mlp"  # what --solver calls it
HIDDEN = 64
EPOCHS = 200
SETTINGS = tuple(Setting(rate, decay) for rate in (1e-3, 3e-3) for decay in (1e-2, 1.0, 10.0))


@dataclass(frozen=True)
class MLPSolver(TrainedTogether):
    """See pez.probes.solvers.solver.Solver; `seed` of the starting weights."""

    settings: tuple[Setting, ...] = SETTINGS
    epochs: int = EPOCHS
    hidden: int = HIDDEN
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0

    patience, reads_any_epoch = 0, False

    @property
    def last_epoch(self) -> int:
        """Epochs at most."""
        return self.epochs

    def solve(
        self, data: ProbeData, folds: Folds, fits: Iterable[Fit], step: Step, keep_weights: bool = False
    ) -> Iterator[FittedTogether]:
        """Train `fits` in order, a layer's features at a time; UserError for features with tokens."""
        if keep_weights:
            raise UserError("--save-probes keeps weights of linear probes: leave it out with --solver mlp")
        with blas_threads(self.threads or torch.get_num_threads()):
            for layer, of_layer in itertools.groupby(fits, key=lambda fit: fit.layer):
                features = data.features(layer).float().to(self.device)
                if features.ndim != 2:
                    raise UserError("--solver mlp reads one vector a clip: choose a --pooling without patches")
                read = features if data.read_features is None else data.read_features(layer).float().to(self.device)
                for fit in of_layer:
                    yield self._fitted(fit, data, folds, features, read)
                    step()

    def _fitted(
        self, fit: Fit, data: ProbeData, folds: Folds, features: torch.Tensor, read: torch.Tensor
    ) -> FittedTogether:
        train = np.flatnonzero(~np.isin(folds.fold, fit.left_out))
        validation_rows = [folds.rows(fold) for fold in fit.validated_on]
        mean, scale = _scaling(features[train], data.norm_mode)
        inside = (features - mean) / scale
        outside = (read[folds.rows(fit.read)] - mean) / scale if fit.read is not None else inside[:0]
        of_variables: list[list[Trials]] = []
        predicted = []
        for number, variable in enumerate(data.variables):
            chosen = self.settings if fit.choices is None else (self.settings[fit.choices[number].setting],)
            stop = self.epochs if fit.choices is None else fit.choices[number].epochs
            targets = torch.tensor(variable.targets, dtype=torch.float32, device=self.device)
            loss = KINDS[variable.kind].loss
            shift, spread = _scaling(targets[train], "zscore") if loss == "mse" else (0.0, 1.0)
            targets = (targets - shift) / spread
            rows = [inside[own] for own in validation_rows], [targets[own] for own in validation_rows]
            own, last = _train(
                inside[train], targets[train], *rows, outside, chosen, stop, self.hidden, self.seed, loss
            )
            raw = [(one.prediction * spread + shift).double().cpu() for one in own]
            of_variables.append([Trials(one.loss.double().cpu(), one.epoch.cpu(), at) for one, at in zip(own, raw)])
            predicted.append((last * spread + shift).double().cpu())
        tried = []
        for of_fold in zip(*of_variables):
            losses, epochs, predictions = (torch.cat(parts, dim=-1) for parts in zip(*of_fold))
            tried.append(Trials(losses, epochs, predictions))
        outcome = torch.cat(predicted, dim=2) if fit.read is not None else tried[0].prediction
        if fit.choices is not None:  # every variable was trained at its choice alone
            outcome = outcome.expand(len(self.settings), -1, -1)
        return FittedTogether(fit, tuple(tried), outcome, data.outputs)


def _scaling(values: torch.Tensor, norm_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    mean = values.mean(0) if norm_mode != "none" else torch.zeros_like(values[0])
    if norm_mode == "zscore":
        scale = values.std(0, correction=0)
        return mean, torch.where(scale > 1e-12, scale, 1.0)
    return mean, values.var(0, correction=0).mean().sqrt().clamp_min(1e-12)  # one for all: a width-free start


def _train(
    x: torch.Tensor,
    y: torch.Tensor,
    validation: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    read: torch.Tensor,
    settings: Sequence[Setting],
    epochs: int,
    hidden: int,
    seed: int,
    loss: str,
) -> tuple[list[Trials], torch.Tensor]:
    """Train a network per setting on x [n, d], y [n, k] for `epochs`, reading every validation fold after each.

    Returns every validation fold's Trials, at its own best epoch; and predictions [S, p, k] of the rows to `read`, at
    the first fold's best epoch, or after the last epoch if there is no validation fold.
    """
    width, k, generator = x.shape[1], y.shape[1], torch.Generator().manual_seed(seed)
    rate = torch.tensor([[[one.learning_rate]] for one in settings], device=x.device)
    decay = torch.tensor([[[one.weight_decay]] for one in settings], device=x.device)
    first = torch.randn(width, hidden, generator=generator) / math.sqrt(width)
    second = torch.randn(hidden, k, generator=generator) / math.sqrt(hidden)
    starts = [each.to(x.device) for each in (first, torch.zeros(1, hidden), second, torch.zeros(1, k))]
    parameters = [each.expand(len(settings), -1, -1).clone().requires_grad_() for each in starts]
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in parameters]

    def forward(features: torch.Tensor) -> torch.Tensor:
        first, bias, second, last = parameters
        return gelu(features @ first + bias) @ second + last  # [S, rows, k]

    def losses(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        truth = truth.expand(len(settings), -1, -1)
        if loss == "logistic":
            return binary_cross_entropy_with_logits(predicted, truth, reduction="none").mean((1, 2))
        return (predicted - truth).square().mean((1, 2))

    sizes = [len(rows) for rows in validation]
    together = torch.cat([*validation, read])
    best = [torch.full((len(settings),), float("inf"), device=x.device) for _ in validation]
    epoch_of = [torch.zeros(len(settings), dtype=torch.int64, device=x.device) for _ in validation]
    kept = [torch.zeros(len(settings), size, k, device=x.device) for size in [*sizes, len(read)]]
    for epoch in range(1, epochs + 1):
        gradients = torch.autograd.grad(losses(forward(x), y).sum(), parameters)
        with torch.no_grad():
            for parameter, gradient, (mean, square) in zip(parameters, gradients, moments):
                _adamw_step(parameter, gradient, mean, square, epoch, rate, decay)
            if not sizes and epoch < epochs:
                continue
            *parts, last = torch.split(forward(together), [*sizes, len(read)], dim=1)
            better = torch.ones(len(settings), dtype=torch.bool, device=x.device)
            for place in reversed(range(len(sizes))):
                now = losses(parts[place], targets[place])
                better = now < best[place]
                best[place] = torch.where(better, now, best[place])
                epoch_of[place][better] = epoch
                kept[place][better] = parts[place][better]
            kept[-1][better] = last[better]  # the first fold decides
    return [Trials(loss[:, None], at[:, None], part) for loss, at, part in zip(best, epoch_of, kept)], kept[-1]


def _adamw_step(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    rate: torch.Tensor,
    decay: torch.Tensor,
) -> None:
    """One step of AdamW as torch.optim.AdamW does it, in place, with a `rate` and a `decay` per setting [S, 1, 1]."""
    first, second, epsilon = 0.9, 0.999, 1e-8
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    parameter.mul_(1 - rate * decay)
    parameter.sub_(rate * (mean / (1 - first**step)) / ((square / (1 - second**step)).sqrt() + epsilon))
