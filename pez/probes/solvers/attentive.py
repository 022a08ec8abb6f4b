"""Attentive probes (pez/probes/solvers/attentive_model.py) as a solver: every setting and fold is a probe of its own.

A probe scores the movies it is read on after every epoch, so any setting and epoch of it can be read afterwards; a
setting stops at the epoch of its smallest validation loss (by the published recipe of its highest relative accuracy,
before PUBLISHED_PATIENCE epochs brought none higher). Nested validation chooses on one of the training folds, the
next one, by probes trained on the others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.metrics import log_loss

from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.predictions import Choice
from pez.probes.scores.kinds import KINDS
from pez.probes.solvers.attentive_model import check_sizes
from pez.probes.solvers.attentive_stack import stack_size
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, train
from pez.probes.solvers.regression import Setting
from pez.probes.solvers.solver import Fit, PredictsOnly, Step, Trials

POOLINGS = ("temporal_last_patch", "temporal_diff_patch", "all")  # those that keep tokens apart
CPU_MEMORY_BYTES = 3 * 2**30
PUBLISHED_PATIENCE = 5  # epochs
EpochMetric = Callable[[np.ndarray, np.ndarray], float]


@dataclass
class AttentiveSolver:
    """See pez.probes.solvers.solver.Solver.

    `memory_bytes`: for features, parameters and activations at once (default 3 GiB on a CPU, 60 % of a GPU's; not of
    what is free of it: other stacks would round otherwise); one probe is always trained, whatever it takes. `stops_by`:
    "loss" or "relative_accuracy", what chooses the epoch.
    """

    settings: tuple[Setting, ...]
    recipe: Recipe
    device: str = "cpu"
    memory_bytes: int | None = None
    stops_by: str = "loss"
    _of: ProbeData | None = field(default=None, repr=False)
    _held: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)  # features of some layers of it

    reads_any_epoch = True
    patience = 0

    @property
    def last_epoch(self) -> int:
        """Epochs of the recipe."""
        return self.recipe.num_epochs

    def validation_folds(self, fold: int, n_folds: int) -> tuple[int, ...]:
        """The next fold."""
        return ((fold + 1) % n_folds,)

    def steps(self, fit: Fit) -> int:
        """Probes that are trained."""
        return len(self.settings) if fit.choices is None else 1

    def check(self, data: ProbeData) -> None:
        """UserError for tokens that such a probe cannot read."""
        check_sizes(**self.recipe.sizes(data.described["width"]))

    def at_once(self, data: ProbeData, layer: int) -> tuple[int, int]:
        """How many probes to stack, and how many layers' features to hold (at least one)."""
        n_clips, n_tokens, width = self._features(data, [layer])[layer].shape
        memory = CPU_MEMORY_BYTES if self.memory_bytes is None else self.memory_bytes
        if self.memory_bytes is None and torch.device(self.device).type == "cuda":
            memory = int(0.6 * torch.cuda.get_device_properties(self.device).total_memory)
        layer_bytes = 2 * n_clips * n_tokens * width
        sizes = self.recipe.sizes(width)
        stacked = stack_size(sizes, self.recipe.batch_size, n_tokens, self.device, memory - 2 * layer_bytes)
        return stacked, max(1, memory // 3 // layer_bytes)

    def release(self) -> None:
        """Let go of features: a device's memory is the next curve's."""
        self._of, self._held = None, {}

    def solve(
        self, data: ProbeData, folds: Folds, fits: Iterable[Fit], step: Step, keep_weights: bool = False
    ) -> Iterator["AttentiveFitted"]:
        """Train the probes of all `fits` in stacks, then yield them in order; the features of their layers are held."""
        fits = list(fits)
        features = self._features(data, sorted({fit.layer for fit in fits}))
        labels = data.targets[:, 0].float()
        probes = [self._probes(fit, folds) for fit in fits]
        every = [probe for own in probes for probe in own]
        stacked, _ = self.at_once(data, fits[0].layer) if fits else (1, 1)
        scores_of: dict[int, np.ndarray] = {}
        for probe, scores in train(every, features.__getitem__, labels, self.recipe, self.device, stacked):
            scores_of[id(probe)] = scores
            step()
        metric = None if self.stops_by == "loss" else epoch_metric(self.stops_by, data)
        for fit, own in zip(fits, probes):
            yield AttentiveFitted(fit, own, [scores_of[id(probe)] for probe in own], labels, metric)

    def _probes(self, fit: Fit, folds: Folds) -> list[AttentiveProbe]:
        """One probe per setting; start and batch order go by the fold that is reported in the end."""
        train_rows = np.flatnonzero(~np.isin(folds.fold, fit.left_out))
        if len(fit.left_out) > 1:
            (reported,) = set(fit.left_out) - set(fit.validated_on)
            read = folds.rows(fit.validated_on[0])
        else:
            (reported,) = fit.left_out
            read = folds.rows(reported)
        every = tuple(range(1, self.recipe.num_epochs + 1))
        if fit.choices is None:
            chosen = [(setting, every) for setting in self.settings]
        else:
            chosen = [(self.settings[choice.setting], (choice.epochs,)) for choice in fit.choices]
        return [
            AttentiveProbe(fit.layer, reported, s.learning_rate, s.weight_decay, train_rows, read, epochs, fit.repeat)
            for s, epochs in chosen
        ]

    def _features(self, data: ProbeData, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Features of these layers; what was held of others, or of other data, is let go."""
        held = self._held if self._of is data else {}
        on_gpu = torch.device(self.device).type == "cuda"
        self._of, self._held = data, {layer: held[layer] for layer in layers if layer in held}
        for layer in layers:
            if layer not in self._held:
                features = data.features(layer)
                self._held[layer] = features.to(self.device) if on_gpu else features
        return self._held


@dataclass(frozen=True)
class AttentiveFitted(PredictsOnly):
    """See pez.probes.solvers.solver.Fitted: its probes, and the `scores` [epochs, rows] of each.

    `metric` (rows, scores) -> what chooses the epoch, the higher the better; None: the loss.
    """

    fit: Fit
    probes: list[AttentiveProbe]
    scores: list[np.ndarray]
    labels: torch.Tensor
    metric: EpochMetric | None = None

    def trials(self, fold: int) -> Trials:
        """Of every setting at its epoch of smallest loss; by a metric the loss is 1 less its value."""
        rows = self.probes[0].predict_rows
        possible = self.labels[torch.as_tensor(rows)].bool().numpy()
        if self.metric is None:
            likely = 1 / (1 + np.exp(-np.clip(self.scores, -500, 500)))  # [S, epochs, rows]
            losses = np.array([[log_loss(possible, one, labels=[False, True]) for one in own] for own in likely])
            best = losses.argmin(1)
        else:
            losses = 1 - np.array([[self.metric(rows, scores) for scores in own] for own in self.scores])
            best = np.array([_patient_best(own) for own in losses])
        at_best = np.stack([own[epoch] for own, epoch in zip(self.scores, best)])
        return Trials(
            torch.from_numpy(losses[np.arange(len(best)), best])[:, None],
            torch.from_numpy(best + 1)[:, None],
            torch.from_numpy(at_best)[:, :, None],
        )

    def prediction(self, choices: tuple[Choice, ...]) -> torch.Tensor:
        """[m, 1], at the setting and epoch chosen."""
        (choice,) = choices
        number = 0 if self.fit.choices is not None else choice.setting
        epochs = self.probes[number].epochs or ()
        return torch.from_numpy(self.scores[number][epochs.index(choice.epochs)])[:, None]


def epoch_metric(metric: str, data: ProbeData) -> EpochMetric:
    """(rows, their scores) -> a metric of the kind of movies."""
    variable = data.variables[0]
    value = KINDS[variable.kind].value
    assert value is not None

    def value_of(rows: np.ndarray, scores: np.ndarray) -> float:
        score = value(metric, data.clips.iloc[rows], variable.targets[rows], scores[:, None])
        return score[0] if isinstance(score, tuple) else score

    return value_of


def _patient_best(losses: np.ndarray) -> int:
    """The epoch (from 0) of the smallest loss, before PUBLISHED_PATIENCE epochs in a row brought none smaller."""
    best = 0
    for epoch, loss in enumerate(losses):
        if loss < losses[best]:
            best = epoch
        elif epoch - best >= PUBLISHED_PATIENCE:
            break
    return best
