"""Linear probes: f(h) = W h + b (paper, appendix B), least squares or logistic, 20 AdamW settings or ridge.

Vectors train on clips. Patches train on patches, each with its clip's target, and read clips by the mean of their
patches' predictions; least squares does that from sums over patches, taken once per fold.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from constants import PROBE_EPOCHS, PROBE_PATIENCE, PROBE_WEIGHT_DECAYS
from pez.errors import UserError, check_choice
from pez.machine import available_cores
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.predictions import Choice
from pez.probes.recipes import OURS
from pez.probes.scores.kinds import KINDS
from pez.probes.solvers.regression import (
    Moments,
    Regression,
    Setting,
    Training,
    moment_regression,
    paper_settings,
    row_regression,
)
from pez.probes.solvers.ridge import STRENGTHS, ridge_settings, solve_ridge
from pez.probes.solvers.solver import Fit, Step, TrainedTogether, Trials
from pez.probes.solvers.sweep import SweepResult, blas_threads, solve

LINEAR = ("trainable", "adamw100", "ridge")  # what --solver calls them
PUBLISHED_TRAINING = Training(l2=True, start_seed=42, bias=True, targets_as_features=True, least_gain=1e-8)


@dataclass(frozen=True)
class LinearSolver(TrainedTogether):
    """See pez.probes.solvers.solver.Solver.

    `closed_form`: ridge, whose strengths stand where AdamW has its weight decay; `threads`, `memory_gib` as of
    pez.probes.solvers.sweep.solve. `training`: how a probe is trained by gradient. `by_patches`: probes of patches are
    validated by the patches' loss, and what it chose is trained once more, with decoupled decay, before it is read.
    """

    settings: tuple[Setting, ...] = ()
    epochs: int = PROBE_EPOCHS
    patience: int = PROBE_PATIENCE
    closed_form: bool = False
    device: str = "cpu"
    threads: int | None = None
    memory_gib: float | None = None
    training: Training = Training()
    by_patches: bool = False

    reads_any_epoch = False

    @property
    def last_epoch(self) -> int:
        """Epochs at most."""
        return self.epochs

    def solve(
        self, data: ProbeData, folds: Folds, fits: Iterable[Fit], step: Step, keep_weights: bool = False
    ) -> Iterator["LinearFitted"]:
        """Train `fits` in order, a layer's features at a time."""
        fits = list(fits)

        def regressions() -> Iterator[Regression]:
            for number, of_layer in itertools.groupby(fits, key=lambda fit: fit.layer):
                layer = _Layer(self, data, folds, number)
                yield from map(layer.regression, of_layer)

        for (result, again), fit in zip(self._twice(regressions(), data, keep_weights), fits):
            step()
            yield LinearFitted(fit, result, data, folds, again, exact=self.training == Training())

    def _twice(
        self, regressions: Iterator[Regression], data: ProbeData, keep_weights: bool
    ) -> Iterator[tuple[SweepResult, SweepResult | None]]:
        """Every regression's result. Where patches validate, also that of the chosen, variable v at setting v."""
        first = next(regressions, None)
        regressions = regressions if first is None else itertools.chain([first], regressions)
        if first is None or first.scatter is None:
            yield from ((result, None) for result in self._solved(regressions, data, keep_weights))
            return
        regressions, to_refit = itertools.tee(regressions)
        results, first_results = itertools.tee(self._solved(regressions, data, keep_weights))

        def chosen() -> Iterator[Regression]:
            for result, regression in zip(results, to_refit):
                training = replace(regression.training, l2=False)
                yield replace(regression, settings=tuple(result.best_setting()), training=training)

        for again, result in zip(self._solved(chosen(), data, keep_weights), first_results):
            yield result, again

    def _solved(self, regressions: Iterable[Regression], data: ProbeData, keep_weights: bool) -> Iterator[SweepResult]:
        if self.closed_form:
            # small regressions on busy cores are fastest on one thread
            with blas_threads(min(self.threads or torch.get_num_threads(), available_cores())):
                yield from solve_ridge(regressions)
            return
        yield from solve(
            regressions,
            epochs=self.epochs,
            patience=self.patience,
            device=self.device,
            threads=self.threads,
            memory_gib=self.memory_gib,
            keep_weights=keep_weights or KINDS[data.variables[0].kind].loss == "logistic",
            tell_losses=keep_weights,
        )


def linear_solver(
    name: str, max_epochs: int | None = None, recipe: str = OURS, stops_by: str = "loss", **options: Any
) -> LinearSolver:
    """The solver that --solver names, with `device`, `threads` and `memory_gib`; `max_epochs` None: its own.

    By the published `recipe` ridge has the sweep's weight decays for strengths (and is to be given raw features),
    adamw100 decouples its decay and the sweep does not; `stops_by` of the sweep, as of Training.
    """
    check_choice("--solver", name, LINEAR)
    published = recipe != OURS
    if name == "ridge":
        strengths = PROBE_WEIGHT_DECAYS if published else STRENGTHS
        return LinearSolver(ridge_settings(strengths), epochs=0, patience=0, closed_form=True, **options)
    training = PUBLISHED_TRAINING if published else Training()
    if name == "adamw100":
        settings, training = (Setting(1e-3, 0.1),), replace(training, l2=False)
        return LinearSolver(settings, epochs=max_epochs or 100, patience=10, training=training, **options)
    training, epochs = replace(training, stops_by=stops_by), max_epochs or PROBE_EPOCHS
    return LinearSolver(paper_settings(), epochs=epochs, training=training, by_patches=published, **options)


@dataclass(frozen=True)
class LinearFitted:
    """See pez.probes.solvers.solver.Fitted.

    `again`: of what was chosen, trained once more, variable v at setting v; `exact`: scores may be read again in
    float64.
    """

    fit: Fit
    result: SweepResult
    data: ProbeData
    folds: Folds
    again: SweepResult | None = None
    exact: bool = True

    def trials(self, fold: int) -> Trials:
        """Of every setting, as validated on `fold`."""
        own = self.result.by_fold()[self.fit.validated_on.index(fold)]
        return Trials(own.validation_loss, own.best_epoch, own.validation_prediction)

    def prediction(self, choices: tuple[Choice, ...]) -> torch.Tensor:
        """[m, k]; a Fit without choices is read at the best epoch of its settings."""
        result = self.result if self.again is None else self.again
        rows = result.prediction if self.fit.read is not None else result.validation_prediction
        return result.chosen(rows, list(range(len(choices))) if self.again is not None else self._places(choices))

    def exactly(self, choices: tuple[Choice, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same from the features as they are stored, in float64, and each row's rounding: [m, k] and [m].

        A score's rounding goes with the sum of |w x|, not with the score: it is the root of the sum of squares of w x,
        times the features' precision. None where weights were not kept.
        """
        kept = self._weights(choices) if self.exact else None
        if kept is None:
            return None
        weights, bias = kept
        fold = self.fit.read if self.fit.read is not None else self.fit.validated_on[0]
        source = self.data.features if self.data.read_features is None else self.data.read_features
        features = source(self.fit.layer)[torch.from_numpy(self.folds.rows(fold))].double()
        rounding = (features.square() @ weights.T.square()).sum(1).sqrt() * self.data.precision
        return features @ weights.T + bias, rounding

    def with_training_losses(self, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        """With the training loss of every variable's refit, and the smallest of its norm."""
        trained, smallest = self.result.training_loss, self.result.smallest_loss
        if trained is None or smallest is None:
            return choices
        losses = zip(choices, trained.tolist(), smallest.tolist())
        return tuple(choice._replace(training_loss=own, smallest_loss=least) for choice, own, least in losses)

    def weights(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """[k, d] and [k]."""
        return self._weights(self.fit.choices or ())

    def _weights(self, choices: tuple[Choice, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.result.weights is None or self.result.bias is None:
            return None
        places = self._places(choices)
        weights = self.result.chosen(self.result.weights.mT, places).T
        return weights, self.result.chosen(self.result.bias[:, None], places)[0]

    def _places(self, choices: tuple[Choice, ...]) -> list[int]:
        """Which of the result's settings belongs to each variable: after a refit, variable v is at setting v."""
        return list(range(len(choices))) if self.fit.choices else [choice.setting for choice in choices]


class _Layer:
    """One layer's features: clip vectors [n, d], or patch means [n, d] and each fold's moments over patches.

    Features to read, where they are others than those trained on, follow as rows of their own, `shift` further down.
    """

    def __init__(self, solver: LinearSolver, data: ProbeData, folds: Folds, number: int):
        self.solver, self.data, self.folds, self.number = solver, data, folds, number
        self.loss = KINDS[data.variables[0].kind].loss
        self.targets = data.targets.to(solver.device)
        features = data.features(number).to(solver.device)
        self.moments: dict[int, Moments] | None = None
        self.scatters: dict[int, torch.Tensor] = {}  # mean outer product of a fold's patches less their clip's mean
        if features.ndim == 3:
            if self.loss != "mse":
                raise UserError("classes are read from one vector a clip: choose a --pooling without patches")
            self.moments, means = {}, features.float().mean(1)
            for fold in map(int, np.unique(folds.fold)):  # clips that are NEVER held out are one more
                rows = torch.from_numpy(folds.rows(fold)).to(features.device)
                moments = self.moments[fold] = Moments.of_patches(features[rows], self.targets[rows])
                if solver.by_patches and not solver.closed_form:
                    own = means[rows].double()
                    self.scatters[fold] = moments.xx / moments.count - own.T @ own / len(own)
            features = means
        self.features, self.shift = features, 0
        if data.read_features is not None:
            read = data.read_features(number).to(solver.device)
            read = read.float().mean(1) if read.ndim == 3 else read
            self.features, self.shift = torch.cat([features, read]), len(features)

    def regression(self, fit: Fit) -> Regression:
        """What the sweep or ridge solves for a Fit."""
        none = np.zeros(0, dtype=np.int64)
        parts = [self.folds.rows(fold) for fold in fit.validated_on]
        validation = np.concatenate([none, *parts])
        read = none if fit.read is None else self.folds.rows(fit.read) + self.shift
        options: dict[str, Any] = {
            "settings": self.solver.settings,
            "normalise": self.data.norm_mode,
            "outputs": self.data.outputs,
            "dtype": torch.float64 if self.solver.closed_form else torch.float32,
            "training": self.solver.training,
        }
        if len(parts) > 1:
            if self.scatters:
                raise UserError("--recipe published validates probes of patches on one fold each: use --protocol paper")
            options["fold_sizes"] = tuple(map(len, parts))
        if fit.choices is not None:
            # variable v at setting v, for its own number of epochs; other pairs train one epoch and are not read
            options["settings"] = tuple(self.solver.settings[choice.setting] for choice in fit.choices)
            epochs = options["stop_epochs"] = torch.ones(len(fit.choices), len(fit.choices), dtype=torch.int64)
            epochs.diagonal().copy_(torch.tensor([choice.epochs for choice in fit.choices]))
        if self.moments is None:
            train = np.flatnonzero(~np.isin(self.folds.fold, fit.left_out))
            return row_regression(self.features, self.targets, train, validation, read, loss=self.loss, **options)
        rest = [part for fold, part in self.moments.items() if fold not in fit.left_out]
        moments = sum(rest[1:], start=rest[0])
        if self.scatters and len(fit.validated_on) == 1:
            options["scatter"] = self.scatters[fit.validated_on[0]]
        return moment_regression(
            moments, self.features[validation], self.targets[validation], self.features[read], **options
        )
