"""Banded ridge: features in two bands, each with a penalty of its own, in the dual.

Minimises ||y - b - X w - Z v||^2 + p ||w||^2 + q ||v||^2, where X is a layer and Z what it is compared with (Nunez-
Elizalde, Huth & Gallant 2019, Voxelwise encoding models with non-spherical multivariate normal priors, NeuroImage 197).
With kernels K = X X' and L = Z Z' that is kernel ridge of strength a on s K + (1 - s) L, where p = a / s and q =
a / (1 - s): one eigendecomposition for each share s gives every strength (Dupré la Tour et al. 2022, Feature-space
selection with banded ridge regression, NeuroImage 264). Shares and strengths are the settings that validation chooses
among: in a Setting the share stands where AdamW has its learning rate, the strength where it has its weight decay.

Kernels are of features centred (or z-scored) by the training rows and scaled to a mean diagonal of 1, so that a
strength means the same for any number of features. Z may itself be of several parts: each is scaled so, and their
kernels are averaged.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pez.errors import UserError
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.solvers.regression import Setting
from pez.probes.solvers.solver import Fit, FittedTogether, Step, TrainedTogether, Trials

SHARES = (0.0, *(1 / (1 + 10.0 ** (-power / 2)) for power in range(-5, 6)))  # of the layer; 0: the others alone
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-8, 9))


@dataclass(frozen=True)
class Part:
    """`width` columns of the features and their `norm_mode`, center or zscore."""

    width: int
    norm_mode: str


@dataclass(frozen=True)
class BandedSolver(TrainedTogether):
    """See pez.probes.solvers.solver.Solver; the first of `parts` is the layer (its width follows from the features),
    the last columns are the others'. Without a layer `shares` is (0,)."""

    others: tuple[Part, ...]
    layer_norm: str = "zscore"
    shares: tuple[float, ...] = SHARES
    strengths: tuple[float, ...] = STRENGTHS

    last_epoch, patience, reads_any_epoch = 0, 0, False

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every share with every strength, shares slowest."""
        return tuple(Setting(share, strength) for share in self.shares for strength in self.strengths)

    def solve(
        self, data: ProbeData, folds: Folds, fits: Iterable[Fit], step: Step, keep_weights: bool = False
    ) -> Iterator[FittedTogether]:
        """Solve `fits` in order, a layer's features at a time; UserError for features with tokens.

        Losses are squared errors in the targets' variance over all clips.
        """
        targets = data.targets
        for layer, of_layer in itertools.groupby(fits, key=lambda fit: fit.layer):
            features = data.features(layer).double()
            if features.ndim != 2:
                raise UserError("--unique reads one vector a clip: choose a --pooling without patches")
            for fit in of_layer:
                train = np.flatnonzero(~np.isin(folds.fold, fit.left_out))
                rows = [folds.rows(fold) for fold in fit.validated_on]
                rows += [] if fit.read is None else [folds.rows(fit.read)]
                predicted = self._predicted(features, targets, train, np.concatenate(rows))
                step()
                parts = torch.split(predicted, [len(each) for each in rows], dim=1)
                tried = []
                for own, part in zip(rows[: len(fit.validated_on)], parts):
                    errors = (part - targets[own]).square().mean(1) / targets.var(0, correction=0)
                    of_variables = torch.split(errors, list(data.outputs), dim=1)
                    loss = torch.stack([each.mean(1) for each in of_variables], dim=1)
                    tried.append(Trials(loss, torch.zeros(loss.shape, dtype=torch.int64), part))
                yield FittedTogether(fit, tuple(tried), parts[-1], data.outputs)

    def _predicted(
        self, features: torch.Tensor, targets: torch.Tensor, train: np.ndarray, rows: np.ndarray
    ) -> torch.Tensor:
        """Predictions of every setting, [S, rows, k]."""
        layer, other = self.kernels(features, train, np.concatenate([train, rows]))
        mean = targets[train].mean(0)
        centred = targets[train] - mean
        strengths = torch.tensor(self.strengths, dtype=torch.float64)[:, None, None]
        predictions = []
        for share in self.shares:
            kernel = share * layer + (1 - share) * other
            values, vectors = torch.linalg.eigh(kernel[: len(train)])
            dual = vectors @ ((vectors.T @ centred) / (values.clamp_min(0)[:, None] + strengths))  # [A, n, k]
            predictions.append(kernel[len(train) :] @ dual + mean)
        return torch.cat(predictions)

    def kernels(self, features: torch.Tensor, train: np.ndarray, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Kernels of the layer and of the others between `rows` and the training rows, [rows, train] each."""
        widths = [part.width for part in self.others]
        layer, *others = torch.split(features, [features.shape[1] - sum(widths), *widths], dim=1)
        modes = [self.layer_norm, *(part.norm_mode for part in self.others)]
        own, *rest = [_kernel(part, mode, train, rows) for part, mode in zip((layer, *others), modes)]
        return own, torch.stack(rest).mean(0)


def _kernel(features: torch.Tensor, norm_mode: str, train: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """[rows, train]; of no features, or of such that do not vary, 0."""
    if not features.shape[1]:
        return features.new_zeros(len(rows), len(train))
    mean = features[train].mean(0)
    scale = features[train].std(0, correction=0) if norm_mode == "zscore" else torch.ones_like(mean)
    scaled = (features - mean) / torch.where(scale > 0, scale, 1.0)
    kernel = scaled[rows] @ scaled[train].T
    diagonal = scaled[train].square().sum(1).mean()
    return kernel / diagonal if float(diagonal) > 0 else torch.zeros_like(kernel)
