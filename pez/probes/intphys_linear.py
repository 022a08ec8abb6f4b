"""The linear IntPhys probe: a logistic sweep on mean-pooled residual states, every layer, fold and setting together.

Protocols, by where the best of the 20 settings and the stopping epoch are chosen:

nested    on the training scenes alone, by cross-validation over the folds that are not reported; the chosen setting
          is trained again on all of them, for the mean of its best epochs, and the reported fold is read once.
paper     on the fold that is reported, which is how "best by validation performance" reads; it is optimistic.

`accuracy` and `relative_accuracy` choose a setting by that metric on the validation scenes. Few scenes make many
equal values, between which the smaller validation loss decides. Stopping is by validation loss either way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pez.probes.intphys_folds import scene_folds
from pez.probes.intphys_scores import score_movies
from pez.probes.sweep import Problem, Setting, SweepResult, paper_settings, row_problem, solve
from pez.runs import progress
from pez.store import FeatureStore

PROTOCOLS = ("nested", "paper")
MOVIE_COLUMNS = ["clip_id", "block", "subtask", "scene", "movie", "possible"]


@dataclass(frozen=True)
class _Fit:
    """One sweep: at `layer`, for reported fold `fold`, judged on fold `validation`."""

    layer: int
    fold: int
    validation: int


def probe_linear(
    store: FeatureStore,
    *,
    capture: str,
    layers: Sequence[int],
    metric: str = "relative_accuracy",
    protocol: str = "nested",
    settings: Sequence[Setting] | None = None,
    n_folds: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Scores of every movie at every layer, by probes that did not train on its scene.

    Args:
        store: mean-pooled features of IntPhys movies; its clip table has the labels.
        metric: a name in pez.probes.intphys_scores.METRICS, by which a setting is chosen.
        settings: default the paper's 20.

    Returns:
        One row a movie and layer: `clip_id block subtask scene movie possible layer fold score lr weight_decay`.
    """
    run = _LinearRun(store, capture, metric, tuple(settings or paper_settings()), n_folds, seed, device)
    sweeps = run.sweeps(layers, protocol)
    total = len(sweeps) + (len(layers) * run.n_folds if protocol == "nested" else 0)
    with progress(total=total, description=f"{len(run.settings)}-setting sweeps", unit="sweep") as bar:
        found = run.solve(sweeps, bar)
        tables = run.refit(found, layers, bar) if protocol == "nested" else run.reported(found)
        return pd.concat(tables, ignore_index=True)


class _LinearRun:
    """Movies, folds and features, and the sweeps over them."""

    def __init__(self, store, capture, metric, settings, n_folds, seed, device):
        self.store, self.capture, self.metric = store, capture, metric
        self.settings, self.device = settings, device
        self.movies = store.clips[MOVIE_COLUMNS].reset_index(drop=True)  # the order of store.layer's rows
        self.labels = torch.as_tensor(self.movies["possible"].to_numpy(dtype=np.float32))
        self.folds = scene_folds(self.movies, n_folds, seed)
        self.n_folds = int(self.folds.max()) + 1

    def sweeps(self, layers: Sequence[int], protocol: str) -> list[_Fit]:
        """Every sweep that choosing needs."""
        folds = range(self.n_folds)
        if protocol == "paper":
            return [_Fit(layer, fold, fold) for layer in layers for fold in folds]
        return [_Fit(layer, fold, inner) for layer in layers for fold in folds for inner in folds if inner != fold]

    def solve(self, sweeps: list[_Fit], bar) -> dict[_Fit, SweepResult]:
        """Solve the sweeps; validation predictions of all settings are kept, features of one layer at a time."""
        found = {}
        for fit, result in zip(sweeps, solve(self._problems(sweeps), device=self.device)):
            found[fit] = result
            bar.update()
        return found

    def _problems(self, sweeps: list[_Fit]) -> Iterator[Problem]:
        features, loaded = None, None
        for fit in sweeps:
            if fit.layer != loaded:
                features, loaded = self._layer(fit.layer), fit.layer
            train = np.flatnonzero((self.folds != fit.fold) & (self.folds != fit.validation))
            yield self._problem(features, train, np.flatnonzero(self.folds == fit.validation))

    def _layer(self, layer: int) -> torch.Tensor:
        return self.store.layer(self.capture, "mean", layer).float()

    def _problem(self, features, train, validation) -> Problem:
        return row_problem(features, self.labels, train, validation, settings=self.settings, loss="logistic")

    def reported(self, found: dict[_Fit, SweepResult]) -> Iterator[pd.DataFrame]:
        """Protocol "paper": a fold's scores are its validation predictions at the setting that did best on them."""
        for fit, result in found.items():
            best, _ = self._best([(fit, result)])
            yield self._table(fit.layer, fit.fold, result.validation_prediction[best, :, 0], self.settings[best])

    def refit(self, found: dict[_Fit, SweepResult], layers: Sequence[int], bar) -> Iterator[pd.DataFrame]:
        """Protocol "nested": the chosen setting on all training scenes, then the reported fold."""
        keys = [(layer, fold) for layer in layers for fold in range(self.n_folds)]
        chosen = {key: self._best([(f, r) for f, r in found.items() if (f.layer, f.fold) == key]) for key in keys}
        problems = (self._refit_problem(*key, *chosen[key]) for key in keys)
        for (layer, fold), result in zip(keys, solve(problems, device=self.device)):
            bar.update()
            yield self._table(layer, fold, result.prediction[0, :, 0], self.settings[chosen[layer, fold][0]])

    def _refit_problem(self, layer: int, fold: int, best: int, epoch: int) -> Problem:
        return row_problem(
            self._layer(layer),
            self.labels,
            np.flatnonzero(self.folds != fold),
            None,
            np.flatnonzero(self.folds == fold),
            settings=(self.settings[best],),
            loss="logistic",
            stop_epochs=[[epoch]],
        )

    def _best(self, judged: list[tuple[_Fit, SweepResult]]) -> tuple[int, int]:
        """Index and epoch of the setting that did best on the validation scenes of all these sweeps together."""
        rows = np.concatenate([np.flatnonzero(self.folds == fit.validation) for fit, _ in judged])
        scores = torch.cat([result.validation_prediction[:, :, 0] for _, result in judged], dim=1).double().numpy()
        loss = torch.stack([result.validation_loss[:, 0] for _, result in judged]).mean(dim=0)
        movies = self.movies.iloc[rows]
        values = [(score_movies(movies.assign(score=s))[self.metric], -float(x)) for s, x in zip(scores, loss)]
        best = max(range(len(values)), key=values.__getitem__)
        epochs = [int(result.best_epoch[best, 0]) for _, result in judged]
        return best, max(1, round(float(np.mean(epochs))))

    def _table(self, layer: int, fold: int, scores: torch.Tensor, setting: Setting) -> pd.DataFrame:
        movies = self.movies[self.folds == fold]
        columns = {"layer": layer, "fold": fold, "score": scores.double().numpy()}
        return movies.assign(**columns, lr=setting.learning_rate, weight_decay=setting.weight_decay)
