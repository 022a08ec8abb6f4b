"""The linear IntPhys probe: a logistic sweep on mean-pooled residual states, every layer, fold and setting together.

Protocols, by where the best of the 20 settings and the stopping epoch are chosen (pez/probes/protocols.py):

nested    on the training scenes alone, by cross-validation over the folds that are not reported; the chosen setting
          is trained again on all of them, for the mean of its best epochs, and the reported fold is read once.
paper     on the fold that is reported, which is how "best by validation performance" reads; it is optimistic.

`accuracy` and `relative_accuracy` choose a setting by that metric on the validation scenes. Few scenes make many
equal values, between which the smaller validation loss decides. Stopping is by validation loss either way.

Control `shuffled_labels`: within each scene the movies' labels are permuted, so a scene still has two possible and two
impossible movies and every metric keeps its chance level.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from pez.probes.intphys_folds import scene_folds
from pez.probes.intphys_scores import score_movies
from pez.probes.protocols import Choice, FoldResult, chosen_protocols, n_problems, out_of_fold
from pez.probes.sweep import Problem, Setting, SweepResult, paper_settings, row_problem, solve
from pez.runs import progress
from pez.store import FeatureStore

PROTOCOLS = ("nested", "paper")
CONTROLS = ("shuffled_labels",)
MOVIE_COLUMNS = ["clip_id", "block", "subtask", "scene", "movie", "possible"]


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
    control: str | None = None,
) -> pd.DataFrame:
    """Scores of every movie at every layer, by probes that did not train on its scene.

    Args:
        store: mean-pooled features of IntPhys movies; its clip table has the labels.
        metric: a name in pez.probes.intphys_scores.METRICS, by which a setting is chosen.
        protocol: nested, paper, or both: then both protocols' rows, told apart by a column `protocol`.
        settings: default the paper's 20.
        control: `shuffled_labels`, drawn with `seed`; `possible` is then the shuffled label.

    Returns:
        One row a movie and layer: `clip_id block subtask scene movie possible layer fold score lr weight_decay`.
    """
    movies = store.clips[MOVIE_COLUMNS].reset_index(drop=True)  # the order of store.layer's rows
    movies = movies if control is None else shuffled_labels(movies, seed)
    folds = scene_folds(movies, n_folds, seed)
    task = LinearTask(store, capture, movies, folds, metric, tuple(settings or paper_settings()), device)
    protocols = chosen_protocols(protocol, task.n_folds)
    total = n_problems(protocols, len(layers), task.n_folds)
    with progress(total=total, description=f"{len(task.settings)}-setting sweeps", unit="sweep") as bar:
        found = list(out_of_fold(task, layers, protocols, bar.update))
    tables = [task.table(result) for result in found]
    if len(protocols) > 1:
        tables = [table.assign(protocol=result.protocol) for table, result in zip(tables, found)]
    return pd.concat(tables, ignore_index=True)


def shuffled_labels(movies: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`movies` with `possible` permuted among the movies of each scene."""
    rng = np.random.default_rng(seed)
    shuffled = movies.groupby(["block", "scene"])["possible"].transform(lambda own: rng.permutation(own.to_numpy()))
    return movies.assign(possible=shuffled.astype(bool))


class LinearTask:
    """Problems of IntPhys movies, [movies] in `folds`; see pez.probes.protocols.ProbeTask."""

    transfers = False
    outputs = (1,)

    def __init__(self, store, capture: str, movies: pd.DataFrame, folds: np.ndarray, metric: str, settings, device):
        self.store, self.capture, self.metric = store, capture, metric
        self.settings, self.device = settings, device
        self.movies, self.folds = movies, folds
        self.labels = torch.as_tensor(movies["possible"].to_numpy(dtype=np.float32))
        self.n_folds = int(folds.max()) + 1
        self._loaded: tuple[int, torch.Tensor] | None = None

    def problem(self, layer: int, left_out, validation, predict, **changes) -> Problem:
        """Train on all folds but `left_out`, judge on fold `validation`, predict fold `predict`."""
        train = np.flatnonzero(~np.isin(self.folds, left_out))
        chosen = {"settings": self.settings, "loss": "logistic", **changes}
        return row_problem(
            self._features(layer), self.labels, train, self._rows(validation), self._rows(predict), **chosen
        )

    def _rows(self, fold: int | None) -> np.ndarray | None:
        return None if fold is None else np.flatnonzero(self.folds == fold)

    def _features(self, layer: int) -> torch.Tensor:
        if self._loaded is None or self._loaded[0] != layer:
            self._loaded = layer, self.store.layer(self.capture, "mean", layer).float()
        return self._loaded[1]

    def solve(self, problems: Iterable[Problem]) -> Iterator[SweepResult]:
        """Results of `problems`, in order."""
        return solve(problems, device=self.device)

    def choose(self, judged: list[tuple[int, SweepResult]]) -> tuple[Choice, ...]:
        """The setting that did best by the metric on the validation scenes of all these sweeps together."""
        rows = np.concatenate([self._rows(fold) for fold, _ in judged])
        scores = torch.cat([result.validation_prediction[:, :, 0] for _, result in judged], dim=1).double().numpy()
        loss = torch.stack([result.validation_loss[:, 0] for _, result in judged]).mean(dim=0)
        movies = self.movies.iloc[rows]
        values = [(score_movies(movies.assign(score=s))[self.metric], -float(x)) for s, x in zip(scores, loss)]
        best = max(range(len(values)), key=values.__getitem__)
        epochs = [int(result.best_epoch[best, 0]) for _, result in judged]
        return (Choice(best, max(1, round(float(np.mean(epochs))))),)

    def table(self, result: FoldResult) -> pd.DataFrame:
        """The rows of one fold's movies."""
        movies = self.movies[self.folds == result.fold]
        setting = self.settings[result.choices[0].setting]
        columns = {"layer": result.layer, "fold": result.fold, "score": result.prediction[:, 0].double().numpy()}
        return movies.assign(**columns, lr=setting.learning_rate, weight_decay=setting.weight_decay)
