"""Linear probes: f(h) = W h + b (paper, appendix B), least squares or logistic, 20 AdamW settings or ridge.

Vectors train on clips. Patches train on patches, each with its clip's target, and read clips by the mean of their
patches' predictions; least squares does that from sums over patches, taken once per fold.
"""

import collections
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
from pez.probes.solvers.problems import Moments, Problem, Setting, Training, moment_problem, paper_settings, row_problem
from pez.probes.solvers.ridge import ridge_settings, solve_ridge
from pez.probes.solvers.solver import Fit, Step, TrainedTogether, Trials
from pez.probes.solvers.sweep import SweepResult, solve

LINEAR = ("trainable", "adamw100", "ridge")  # what --solver calls them
PUBLISHED_TRAINING = Training(l2=True, start_seed=42, bias=True, targets_as_features=True, least_gain=1e-8)


@dataclass(frozen=True)
class LinearSolver(TrainedTogether):
    """See pez.probes.solvers.solver.Solver.

    `closed_form`: ridge, whose strengths stand where AdamW has its weight decay; `threads`, `memory_gib` as of
    pez.probes.solvers.sweep.solve. `training`: how a probe is trained by gradient. `by_patches`: probes of patches are
    judged by the patches' loss, and what it chose is trained once more, with decoupled decay, before it is read.
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
        layer: _Layer | None = None
        given: list[Fit] = []

        def problems() -> Iterator[Problem]:
            nonlocal layer
            for fit in fits:
                if layer is None or layer.number != fit.layer:
                    layer = _Layer(self, data, folds, fit.layer)
                given.append(fit)
                yield layer.problem(fit)

        for number, (result, again) in enumerate(self._twice(problems(), data, keep_weights)):
            step()
            yield LinearFitted(given[number], result, data, folds, again, exact=self.training == Training())

    def _twice(
        self, problems: Iterable[Problem], data: ProbeData, told: bool
    ) -> Iterator[tuple[SweepResult, SweepResult | None]]:
        """Every problem's result; where patches judge also that of what it chose, variable v at setting v."""
        problems = iter(problems)
        first = next(problems, None)
        problems = problems if first is None else itertools.chain([first], problems)
        if first is None or first.scatter is None:
            yield from ((result, None) for result in self._solved(problems, data, told))
            return
        waiting: collections.deque[Problem] = collections.deque()
        found: collections.deque[SweepResult] = collections.deque()

        def kept() -> Iterator[Problem]:
            for problem in problems:
                waiting.append(problem)
                yield problem

        def chosen() -> Iterator[Problem]:
            for result in self._solved(kept(), data, told):
                problem = waiting.popleft()
                found.append(result)
                training = replace(problem.training, l2=False)
                yield replace(problem, settings=tuple(result.best_setting()), training=training)

        for again in self._solved(chosen(), data, told):
            yield found.popleft(), again

    def _solved(self, problems: Iterable[Problem], data: ProbeData, told: bool) -> Iterator[SweepResult]:
        if self.closed_form:
            # small problems on busy cores are fastest on one thread
            before = torch.get_num_threads()
            torch.set_num_threads(min(self.threads or before, available_cores()))
            try:
                yield from solve_ridge(problems)
            finally:
                torch.set_num_threads(before)
            return
        yield from solve(
            problems,
            epochs=self.epochs,
            patience=self.patience,
            device=self.device,
            threads=self.threads,
            memory_gib=self.memory_gib,
            keep_weights=told or KINDS[data.variables[0].kind].loss == "logistic",
            tell_losses=told,
        )


def linear_solver(
    name: str, max_epochs: int | None = None, recipe: str = OURS, stops_by: str = "loss", **options: Any
) -> LinearSolver:
    """The solver that --solver names, with `device`, `threads` and `memory_gib`; `max_epochs` None: its own.

    By the published `recipe` ridge has the sweep's weight decays for strengths (and is to be given raw features),
    adamw100 decouples its decay and the sweep does not; `stops_by` of the sweep, as of Training.
    """
    check_choice("--solver", name, LINEAR)
    if recipe != OURS:
        return _published_solver(name, max_epochs, stops_by, **options)
    if name == "ridge":
        return LinearSolver(ridge_settings(), epochs=0, patience=0, closed_form=True, **options)
    if name == "adamw100":
        return LinearSolver((Setting(1e-3, 0.1),), epochs=max_epochs or 100, patience=10, **options)
    return LinearSolver(paper_settings(), epochs=max_epochs or PROBE_EPOCHS, **options)


def _published_solver(name: str, max_epochs: int | None, stops_by: str, **options: Any) -> LinearSolver:
    if name == "ridge":
        return LinearSolver(ridge_settings(PROBE_WEIGHT_DECAYS), epochs=0, patience=0, closed_form=True, **options)
    if name == "adamw100":
        training = replace(PUBLISHED_TRAINING, l2=False)
        setting = Setting(1e-3, 0.1)
        return LinearSolver((setting,), epochs=max_epochs or 100, patience=10, training=training, **options)
    training = replace(PUBLISHED_TRAINING, stops_by=stops_by)
    return LinearSolver(
        paper_settings(), epochs=max_epochs or PROBE_EPOCHS, training=training, by_patches=True, **options
    )


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
        own = self.result.by_judge()[self.fit.validated_on.index(fold)]
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
        if not self.exact or self.result.weights is None or self.result.bias is None:
            return None
        fold = self.fit.read if self.fit.read is not None else self.fit.validated_on[0]
        source = self.data.features if self.data.read_features is None else self.data.read_features
        features = source(self.fit.layer)[torch.from_numpy(self.folds.rows(fold))].double()
        places = self._places(choices)
        weights = self.result.chosen(self.result.weights.mT, places)  # [d, k]
        bias = self.result.chosen(self.result.bias[:, None], places)[0]
        rounding = (features.square() @ weights.square()).sum(1).sqrt() * self.data.precision
        return features @ weights + bias, rounding

    def told(self, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        """With the training loss of every variable's refit, and the smallest of its norm."""
        trained, smallest = self.result.training_loss, self.result.smallest_loss
        if trained is None or smallest is None:
            return choices
        losses = zip(choices, trained.tolist(), smallest.tolist())
        return tuple(choice._replace(training_loss=own, smallest_loss=least) for choice, own, least in losses)

    def weights(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """[k, d] and [k]."""
        if self.result.weights is None or self.result.bias is None:
            return None
        places = self._places(self.fit.choices or ())
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
        self.scatters: dict[int, torch.Tensor] = {}
        if features.ndim == 3:
            if self.loss != "mse":
                raise UserError("classes are read from one vector a clip: choose a --pooling without patches")
            self.moments = self._moments_of_folds(features)
            features = features.float().mean(1)
            if solver.by_patches and not solver.closed_form:
                self.scatters = {fold: self._scatter(fold, features) for fold in self.moments}
        self.features, self.shift = features, 0
        if data.read_features is not None:
            read = data.read_features(number).to(solver.device)
            read = read.float().mean(1) if read.ndim == 3 else read
            self.features, self.shift = torch.cat([features, read]), len(features)

    def _moments_of_folds(self, features: torch.Tensor) -> dict[int, Moments]:
        """Moments over the patches of each fold's clips, and of those that are never held out."""
        rows = {int(number): torch.from_numpy(self.folds.rows(number)) for number in np.unique(self.folds.fold)}
        rows = {number: held.to(features.device) for number, held in rows.items()}
        return {number: Moments.of_patches(features[held], self.targets[held]) for number, held in rows.items()}

    def _scatter(self, fold: int, means: torch.Tensor) -> torch.Tensor:
        """Mean outer product [d, d] of a fold's patches, each less the mean of its clip's; `means` [n, d]."""
        assert self.moments is not None
        own = means[torch.from_numpy(self.folds.rows(fold)).to(means.device)].double()
        moments = self.moments[fold]
        return moments.xx / moments.count - own.T @ own / len(own)

    def problem(self, fit: Fit) -> Problem:
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
            options["judges"] = tuple(map(len, parts))
        if fit.choices is not None:
            options |= _refit(self.solver.settings, fit.choices)
        if self.moments is None:
            train = np.flatnonzero(~np.isin(self.folds.fold, fit.left_out))
            return row_problem(self.features, self.targets, train, validation, read, loss=self.loss, **options)
        rest = [part for fold, part in self.moments.items() if fold not in fit.left_out]
        moments = sum(rest[1:], start=rest[0])
        if self.scatters and len(fit.validated_on) == 1:
            options["scatter"] = self.scatters[fit.validated_on[0]]
        return moment_problem(
            moments, self.features[validation], self.targets[validation], self.features[read], **options
        )


def _refit(settings: tuple[Setting, ...], choices: tuple[Choice, ...]) -> dict[str, Any]:
    """Variable v at setting v, for its own number of epochs; other pairs train one epoch and are not read."""
    epochs = torch.ones(len(choices), len(choices), dtype=torch.int64)
    for variable, choice in enumerate(choices):
        epochs[variable, variable] = choice.epochs
    return {"settings": tuple(settings[choice.setting] for choice in choices), "stop_epochs": epochs}
