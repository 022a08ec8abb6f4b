"""The attentive probes of one curve: problems of every layer and fold, stacked as fits, and what is chosen among them.

A setting stops at the epoch of its smallest validation loss; of several settings the best by `selection_metric` there
counts, of equals the one with the smaller loss. On which movies: pez/probes/intphys_attentive.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import log_loss

from pez.probes.attentive import check_sizes
from pez.probes.attentive_stack import stack_size
from pez.probes.attentive_training import Problem, Recipe, train
from pez.probes.attentive_units import Unit
from pez.probes.intphys_controls import Curve
from pez.probes.intphys_folds import inner_split, repeated_scene_folds
from pez.probes.intphys_scores import METRIC_OF, score_movies
from pez.probes.protocols import FIXED

CPU_MEMORY_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Plan:
    """What to probe of every curve, and how.

    settings: pairs of learning rate and weight decay; layers: of the main curve; protocols: see intphys_attentive.py.
    memory_bytes: for features, parameters and activations at once (default 3 GiB on a CPU, 70 % of what is free on a
    GPU); one probe is always trained, whatever it takes.
    """

    capture: str
    pooling: str
    layers: Sequence[int]
    recipe: Recipe
    settings: Sequence[tuple[float, float]]
    protocols: tuple[str, ...] = (FIXED,)
    selection_metric: str = "relative_accuracy"
    n_folds: int = 5
    repeats: int = 1
    device: str = "cpu"
    memory_bytes: int | None = None


@dataclass(frozen=True)
class _Fit:
    """A trained probe and its scores [epochs, rows]."""

    problem: Problem
    scores: np.ndarray

    def at(self, epoch: int) -> np.ndarray:
        """Scores [rows] after `epoch`."""
        return self.scores[self.problem.epochs.index(epoch)]


@dataclass(frozen=True)
class _Choice:
    setting: tuple[float, float]
    epoch: int


class CurveProbe:
    """The probes of one curve: its units, their problems, what is chosen among them, and their answers."""

    def __init__(self, curve: Curve, plan: Plan):
        self.curve, self.plan = curve, plan
        check_sizes(**plan.recipe.sizes(curve.store.settings["width"]))
        self.layers = curve.layers(plan.layers)
        self.device = torch.device(plan.device)
        self.labels = torch.as_tensor(curve.movies["possible"].to_numpy(dtype=np.float32))
        self.folds = repeated_scene_folds(curve.movies, plan.n_folds, plan.recipe.seed, plan.repeats)
        self.features: dict[int, torch.Tensor] = {}

    @property
    def n_probes(self) -> int:
        """Probes that are trained for a unit."""
        n = len(self.plan.settings)
        return {("paper", "nested"): 2 * n, ("nested",): n + 1}.get(self.plan.protocols, n)

    def units(self) -> list[Unit]:
        """Every unit of the curve, a layer's side by side."""
        return [
            Unit(layer, repeat, fold)
            for layer in self.layers
            for repeat, folds in enumerate(self.folds)
            for fold in range(int(folds.max()) + 1)
        ]

    def described(self) -> dict:
        """Everything that decides a score."""
        store, plan = self.curve.store.settings, self.plan
        made = {key: store[key] for key in ("model", "weights_sha256", "transform", "frame_order", "clip_set")}
        chosen = {"settings": [list(setting) for setting in plan.settings], "selection_metric": plan.selection_metric}
        asked = {"capture": plan.capture, "pooling": plan.pooling, "n_folds": plan.n_folds}
        whose = {"control": self.curve.control, "control_seed": self.curve.seed, "protocols": list(plan.protocols)}
        return {**made, **asked, **asdict(plan.recipe), **chosen, **whose}

    def train(self, units: Sequence[Unit], step) -> Iterator[tuple[Unit, pd.DataFrame]]:
        """Train the probes of `units`, in order, as many at once as fit; yield each with its table as it is done.

        `step` is called after every probe.
        """
        n_stacked, n_layers = self._at_once()
        for chunk in _chunks(units, n_stacked, n_layers):
            self._hold(sorted({unit.layer for unit in chunk}))
            yield from self._probe(chunk, n_stacked, step)
        self._hold([])  # a device's memory is the next curve's

    def _at_once(self) -> tuple[int, int]:
        """How many probes to stack, and how many layers' features to hold (at least one)."""
        store, memory = self.curve.store.settings, self.plan.memory_bytes
        if memory is None:
            on_gpu = self.device.type == "cuda"
            memory = int(0.7 * torch.cuda.mem_get_info(self.device)[0]) if on_gpu else CPU_MEMORY_BYTES
        n_tokens = store["n_patches"] * (store["n_tubelets"] if self.plan.pooling == "all" else 1)
        layer_bytes = 2 * len(self.curve.movies) * n_tokens * store["width"]
        recipe = self.plan.recipe
        sizes = recipe.sizes(store["width"])
        stacked = stack_size(sizes, recipe.batch_size, n_tokens, self.device, memory - 2 * layer_bytes)
        return stacked, max(1, memory // 3 // layer_bytes)

    def _hold(self, layers: list[int]) -> None:
        """Keep the features of these layers and of no other."""
        kept = {layer: self.features[layer] for layer in layers if layer in self.features}
        self.features = kept | {layer: self._load(layer) for layer in layers if layer not in kept}

    def _load(self, layer: int) -> torch.Tensor:
        features = self.curve.store.layer(self.plan.capture, self.plan.pooling, layer)
        return features.to(self.device) if self.device.type == "cuda" else features

    def _probe(self, units: list[Unit], stacked: int, step) -> Iterator[tuple[Unit, pd.DataFrame]]:
        nested = "nested" in self.plan.protocols
        inner = self._fits({unit: self._inner(unit) for unit in units}, stacked, step) if nested else {}
        outer = self._fits({unit: self._outer(unit, inner.get(unit, [])) for unit in units}, stacked, step)
        for unit in units:
            yield unit, self._table(unit, inner.get(unit, []), outer[unit])

    def _inner(self, unit: Unit) -> list[Problem]:
        """Every setting on the inner training folds of a unit, scoring its validation fold after every epoch."""
        rows = inner_split(self.folds[unit.repeat], unit.fold)
        return [self._problem(unit, setting, rows, self._epochs) for setting in self.plan.settings]

    def _outer(self, unit: Unit, judged: list[_Fit]) -> list[Problem]:
        """Probes on all training folds of a unit that score the reported one; `judged` are its inner fits.

        Where nested stands alone, only what was chosen inside is trained, and no longer than it needs.
        """
        reported = self.folds[unit.repeat] == unit.fold
        rows = np.flatnonzero(~reported), np.flatnonzero(reported)
        if self.plan.protocols == ("nested",):
            choice = self._choose(judged)
            return [self._problem(unit, choice.setting, rows, (choice.epoch,))]
        epochs = self._epochs[-1:] if FIXED in self.plan.protocols else self._epochs
        return [self._problem(unit, setting, rows, epochs) for setting in self.plan.settings]

    @property
    def _epochs(self) -> tuple[int, ...]:
        return tuple(range(1, self.plan.recipe.num_epochs + 1))

    def _problem(self, unit: Unit, setting: tuple[float, float], rows, epochs: tuple[int, ...]) -> Problem:
        return Problem(unit.layer, unit.fold, *setting, *rows, epochs, unit.repeat)

    def _fits(self, problems: dict[Unit, list[Problem]], stacked: int, step) -> dict[Unit, list[_Fit]]:
        """Train the problems of every unit."""
        fits = {}
        alone = [problem for own in problems.values() for problem in own]
        recipe = self.plan.recipe
        for problem, scores in train(alone, self.features.__getitem__, self.labels, recipe, self.device, stacked):
            fits[id(problem)] = _Fit(problem, scores)
            step()
        return {unit: [fits[id(problem)] for problem in own] for unit, own in problems.items()}

    def _table(self, unit: Unit, judged: list[_Fit], tried: list[_Fit]) -> pd.DataFrame:
        """Scores of a unit's movies under each protocol."""
        movies = self.curve.movies[self.folds[unit.repeat] == unit.fold]
        tables = []
        for protocol in self.plan.protocols:
            choice = self._choose(judged if protocol == "nested" else tried)
            (fit,) = (fit for fit in tried if (fit.problem.lr, fit.problem.weight_decay) == choice.setting)
            lr, weight_decay = choice.setting
            columns = {"layer": unit.layer, "fold": unit.fold, "score": fit.at(choice.epoch)}
            chosen = {"lr": lr, "weight_decay": weight_decay, "epoch": choice.epoch}
            tables.append(movies.assign(**columns, **chosen, protocol=protocol, repeat=unit.repeat))
        return pd.concat(tables, ignore_index=True)

    def _choose(self, fits: list[_Fit]) -> _Choice:
        """The setting and epoch that did best on the movies that these probes scored."""
        best, metric = None, METRIC_OF[self.plan.selection_metric]
        for fit in fits:
            movies = self.curve.movies.iloc[fit.problem.predict_rows]
            losses = [_loss(movies["possible"], scores) for scores in fit.scores]
            at = int(np.argmin(losses))
            value = score_movies(movies.assign(score=fit.scores[at]))[metric], -losses[at]
            if best is None or value > best[0]:
                best = value, _Choice((fit.problem.lr, fit.problem.weight_decay), fit.problem.epochs[at])
        return best[1]


def _loss(possible: pd.Series, scores: np.ndarray) -> float:
    probability = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return log_loss(possible, probability, labels=[False, True])


def _chunks(units: Iterable[Unit], most: int, most_layers: int) -> Iterator[list[Unit]]:
    """`units`, in order, in groups of at most `most` units and `most_layers` layers."""
    chunk: list[Unit] = []
    for unit in units:
        layers = {each.layer for each in chunk} | {unit.layer}
        if chunk and (len(chunk) >= most or len(layers) > most_layers):
            yield chunk
            chunk = []
        chunk.append(unit)
    if chunk:
        yield chunk
