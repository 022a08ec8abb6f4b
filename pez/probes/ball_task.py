"""The ball probes as a task for pez/probes/protocols.py: problems of one clip set, a layer's features at a time."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from constants import PROBE_EPOCHS, PROBE_PATIENCE
from pez.probes.problems import Moments, Problem, Setting, moment_problem, paper_settings, row_problem
from pez.probes.protocols import choose_by_loss
from pez.probes.ridge import ridge_settings, solve_ridge
from pez.probes.sweep import SweepResult, solve

SOLVERS = ("trainable", "adamw100", "ridge")


def solver_settings(solver: str) -> tuple[Setting, ...]:
    """The settings a solver chooses from."""
    if solver == "adamw100":
        return (Setting(1e-3, 0.1),)
    return ridge_settings() if solver == "ridge" else paper_settings()


class BallTask:
    """Problems of one ProbeSet (pez/probes/probe_set.py); see pez.probes.protocols.ProbeTask."""

    def __init__(self, options, probe_set):
        self.options, self.probe_set = options, probe_set
        self.n_folds, self.outputs = probe_set.folds.n_folds, probe_set.outputs
        self.transfers = probe_set.test_store is not None
        self.settings = solver_settings(options.solver)
        self.choose = choose_by_loss
        self._rows = [rows for _, rows in probe_set.folds.splits()]
        self._targets = probe_set.targets.to(options.device)
        self._loaded: int | None = None

    def problem(self, layer: int, left_out, validation, predict, **changes) -> Problem:
        """Train on all folds but `left_out`, judge on each of the folds `validation`, predict fold `predict`."""
        if layer != self._loaded:
            self._load(layer)
        shared = {
            "settings": self.settings,
            "normalise": self.probe_set.norm_mode or self.options.norm_mode,
            "outputs": self.outputs,
            "dtype": torch.float64 if self.options.solver == "ridge" else torch.float32,
            **changes,
        }
        parts, predicted = [self._rows[fold] for fold in validation], self._held_out(predict)
        judged = np.concatenate([self._held_out(None), *parts])
        if len(parts) > 1:
            shared["judges"] = tuple(map(len, parts))
        if self._moments is None:
            train = np.flatnonzero(~np.isin(self.probe_set.folds.fold, left_out))
            return row_problem(self._features, self._targets, train, judged, predicted + self._shift, **shared)
        rest = [part for fold, part in self._moments.items() if fold not in left_out]
        moments = sum(rest[1:], start=rest[0])
        features = self._features
        tested = features[predicted + self._shift]
        return moment_problem(moments, features[judged], self._targets[judged], tested, **shared)

    def solve(self, problems: Iterable[Problem]) -> Iterator[SweepResult]:
        """Results of `problems` by the options' solver, in order."""
        options = self.options
        if options.solver == "ridge":
            return self._ridge(problems)
        epochs, patience = (100, 10) if options.solver == "adamw100" else (PROBE_EPOCHS, PROBE_PATIENCE)
        return solve(
            problems,
            epochs=epochs,
            patience=patience,
            device=options.device,
            threads=options.threads,
            memory_gib=options.memory_gib,
        )

    def _ridge(self, problems: Iterable[Problem]) -> Iterator[SweepResult]:
        """Ridge on as many threads as the options say; small problems on busy cores are fastest on one."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.options.threads or before)
        try:
            yield from solve_ridge(problems)
        finally:
            torch.set_num_threads(before)

    def _held_out(self, fold: int | None) -> np.ndarray:
        return np.zeros(0, dtype=np.int64) if fold is None else self._rows[fold]

    def _load(self, layer: int) -> None:
        """Features of one layer: clip vectors [n, d], or patch means [n, d] and each fold's moments over patches.

        Features to test on, where they are others, follow as rows of their own, `_shift` further down.
        """
        features = self.probe_set.features(layer).to(self.options.device)
        self._loaded, self._features, self._moments, self._shift = layer, features, None, 0
        if features.ndim == 3:
            self._moments = self._moments_of_folds(features)
            self._features = features.float().mean(1)
        tested = self.probe_set.test_features(layer)
        if tested is not None:
            tested = tested.to(self.options.device)
            tested = tested.float().mean(1) if tested.ndim == 3 else tested
            self._features, self._shift = torch.cat([self._features, tested]), len(features)

    def _moments_of_folds(self, features: torch.Tensor) -> dict[int, Moments]:
        """Moments over the patches of each fold's clips, and of those that are never held out."""
        fold = torch.as_tensor(self.probe_set.folds.fold, device=features.device)
        rows = {number: torch.nonzero(fold == number)[:, 0] for number in np.unique(self.probe_set.folds.fold)}
        return {int(number): Moments.of_patches(features[held], self._targets[held]) for number, held in rows.items()}
