"""The linear IntPhys probe: a logistic sweep on mean-pooled residual states, every layer, fold and setting together.

Protocols, by where the best of the 20 settings and the stopping epoch are chosen (pez/probes/protocols.py):

nested    on the training scenes alone, by cross-validation over the folds that are not reported; the chosen setting
          is trained again on all of them, for the mean of its best epochs, and the reported fold is read once.
paper     on the fold that is reported, which is how "best by validation performance" reads; it is optimistic.

`accuracy` and `relative_accuracy` choose a setting by that metric on the validation scenes. Few scenes make many
equal values, between which the smaller validation loss decides. Stopping is by validation loss either way.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from pez.probes.intphys_controls import Curve
from pez.probes.intphys_folds import repeated_scene_folds
from pez.probes.intphys_scores import score_movies
from pez.probes.protocols import Choice, FoldResult, chosen_protocols, n_problems, out_of_fold
from pez.probes.sweep import Problem, Setting, SweepResult, paper_settings, row_problem, solve
from pez.runs import progress

PROTOCOLS = ("nested", "paper")


def probe_linear(
    curve: Curve,
    *,
    capture: str,
    layers: Sequence[int],
    metric: str = "relative_accuracy",
    protocol: str = "nested",
    settings: Sequence[Setting] | None = None,
    n_folds: int = 5,
    seed: int = 0,
    repeats: int = 1,
    device: str = "cpu",
) -> pd.DataFrame:
    """Scores of every movie at every layer, by probes that did not train on its scene.

    Args:
        curve: mean-pooled features of IntPhys movies, and the movies' labels.
        layers: of the main curve; a control with one layer is probed there.
        metric: a name in pez.probes.intphys_scores.METRICS, by which a setting is chosen.
        protocol: nested, paper, or both.
        settings: default the paper's 20.

    Returns:
        One row a movie, layer, repeat and protocol: `clip_id block subtask scene movie possible layer fold score lr
        weight_decay protocol repeat`.
    """
    every = repeated_scene_folds(curve.movies, n_folds, seed, repeats)
    options = {"metric": metric, "settings": tuple(settings or paper_settings()), "device": device}
    tasks = [LinearTask(curve, capture, folds, **options) for folds in every]
    layers, protocols = curve.layers(layers), chosen_protocols(protocol, tasks[0].n_folds)
    total = sum(n_problems(protocols, len(layers), task.n_folds) for task in tasks)
    what = f"{curve.name}: " if curve.name else ""
    with progress(total=total, description=f"{what}{len(tasks[0].settings)}-setting sweeps", unit="sweep") as bar:
        tables = [
            task.table(result).assign(protocol=result.protocol, repeat=repeat)
            for repeat, task in enumerate(tasks)
            for result in out_of_fold(task, layers, protocols, bar.update)
        ]
    return pd.concat(tables, ignore_index=True)


class LinearTask:
    """Problems of IntPhys movies, [movies] in `folds`; see pez.probes.protocols.ProbeTask."""

    transfers = False
    outputs = (1,)

    def __init__(self, curve: Curve, capture: str, folds: np.ndarray, metric: str, settings, device):
        self.curve, self.capture, self.metric = curve, capture, metric
        self.settings, self.device = settings, device
        self.movies, self.folds = curve.movies, folds
        self.labels = torch.as_tensor(self.movies["possible"].to_numpy(dtype=np.float32))
        self.n_folds = int(folds.max()) + 1
        self._loaded: tuple[int, torch.Tensor] | None = None

    def problem(self, layer: int, left_out, validation, predict, **changes) -> Problem:
        """Train on all folds but `left_out`, judge on each of the folds `validation`, predict fold `predict`."""
        train = np.flatnonzero(~np.isin(self.folds, left_out))
        normalise = "center" if self.curve.control == "pixels" else "zscore"
        chosen = {"settings": self.settings, "loss": "logistic", "normalise": normalise, **changes}
        judged = [self._rows(fold) for fold in validation]
        if len(judged) > 1:
            chosen["judges"] = tuple(map(len, judged))
        rows = np.concatenate(judged) if judged else None
        return row_problem(self._features(layer), self.labels, train, rows, self._rows(predict), **chosen)

    def _rows(self, fold: int | None) -> np.ndarray | None:
        return None if fold is None else np.flatnonzero(self.folds == fold)

    def _features(self, layer: int) -> torch.Tensor:
        if self._loaded is None or self._loaded[0] != layer:
            self._loaded = layer, self.curve.store.layer(self.capture, "mean", layer).float()
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
