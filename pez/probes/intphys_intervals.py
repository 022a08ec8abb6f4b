"""Intervals of IntPhys scores by a bootstrap over scenes, from out-of-fold scores.

Fold means and these are two readings of one set of predictions: METRIC_mean averages the folds' own scores,
METRIC_pooled and its interval score all scenes at once. Every fold has a probe of its own and so a scale of its own:
each fold's scores are divided by their largest before folds meet. That changes neither clip accuracy nor relative
accuracy (within a scene; ties are the same too), whose pooled value is the fold mean weighted by scenes. The pooled AUC
also ranks movies of different folds against each other, which the fold mean does not, and can be lower for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.errors import UserError
from pez.probes.bootstrap import (
    BootstrapCurve,
    Resamples,
    bootstrap_accuracy,
    bootstrap_auc,
    bootstrap_relative_accuracy,
    group_resamples,
    mean_curve,
)
from pez.probes.intphys_scores import OVERALL, SUBTASK_ROWS

BOOTSTRAPPED = ("clip_accuracy", "auc", "relative_accuracy")
POOLED = ("pooled", "low", "high")
SELECTIVITY = ("selectivity", "selectivity_low", "selectivity_high")
LEAST_SCENES = 3  # as of groups of balls (pez.probes.layer_scores)


@dataclass(frozen=True)
class MovieScores:
    """Scores of the same movies at every layer, by every repeat of a cross-validation.

    `layers` [L], `possible` [n] bool, `scene` [n], `score` [R, L, n].
    """

    layers: np.ndarray
    possible: np.ndarray
    scene: np.ndarray
    score: np.ndarray
    n_folds: int

    @property
    def n_scenes(self) -> int:
        """How many scenes there are."""
        return len(np.unique(self.scene))

    def resamples(self, n_resamples: int = 1000) -> Resamples:
        """Draws of these scenes; the same scenes always give the same."""
        return group_resamples(self.scene, n_resamples, n_folds=self.n_folds)

    def curve(self, metric: str, resamples: Resamples) -> BootstrapCurve:
        """`metric`, one of BOOTSTRAPPED, at every layer; the mean over repeats."""
        score = {"clip_accuracy": bootstrap_accuracy, "auc": bootstrap_auc}.get(metric, _relative_accuracy)
        return mean_curve([score(self.possible, own, self.scene, resamples) for own in self.score])


def _relative_accuracy(possible, score, scene, resamples: Resamples) -> BootstrapCurve:
    return bootstrap_relative_accuracy(possible, score, scene, resamples, largest=1.0)


def movie_scores(predictions: pd.DataFrame, subtask: str = OVERALL) -> MovieScores:
    """Arrays of a curve's predictions by one protocol, a row a movie, layer and repeat, of the movies of `subtask`."""
    table = predictions.assign(repeat=predictions.get("repeat", 0))
    largest = table.groupby(["repeat", "layer", "fold"])["score"].transform(lambda own: own.abs().max())
    table["score"] = table["score"] / largest.where(largest > 0, 1.0)
    if subtask != OVERALL:
        table = table[table["subtask"] == subtask]
    wide = table.pivot_table(index="clip_id", columns=["repeat", "layer"], values="score").sort_index(axis=1)
    repeats, layers = (wide.columns.unique(name).to_numpy() for name in ("repeat", "layer"))
    movies = table.drop_duplicates("clip_id").set_index("clip_id").loc[wide.index]
    scene = (movies["block"] + "/" + movies["scene"]).to_numpy(dtype=str)
    n_folds = max(2, int(predictions["fold"].max()) + 1)
    possible = movies["possible"].to_numpy(dtype=bool)
    score = wide.to_numpy(dtype=np.float64).T.reshape(len(repeats), len(layers), len(wide))
    return MovieScores(layers, possible, scene, score, n_folds)


@dataclass(frozen=True)
class ScoreCurves:
    """Bootstrap curves over `layers` [L] by (sub-task, metric); None where there are fewer than LEAST_SCENES scenes."""

    layers: np.ndarray
    n_scenes: int
    by_name: dict[tuple[str, str], BootstrapCurve | None]

    def __sub__(self, other: "ScoreCurves") -> "ScoreCurves":
        """The paired difference, over the same layers."""
        pairs = {name: (own, other.by_name.get(name)) for name, own in self.by_name.items()}
        less = {name: None if None in pair else pair[0] - pair[1] for name, pair in pairs.items()}
        return ScoreCurves(self.layers, self.n_scenes, less)

    def rows(self, kinds: tuple[str, str, str]) -> pd.DataFrame:
        """`subtask layer`, and for each of `kinds` (estimate and 95 % ends) METRIC_KIND; NaN without a curve."""
        tables = []
        for subtask in dict.fromkeys(subtask for subtask, _ in self.by_name):
            rows = pd.DataFrame({"subtask": subtask, "layer": self.layers})
            for name, curve in self.by_name.items():
                if name[0] == subtask:
                    known = np.nan if curve is None else np.column_stack([curve.estimate, curve.interval()])
                    rows[[f"{name[1]}_{kind}" for kind in kinds]] = known
            tables.append(rows)
        return pd.concat(tables, ignore_index=True)


EVERY_CURVE = tuple((subtask, metric) for subtask in SUBTASK_ROWS for metric in BOOTSTRAPPED)


def bootstrap_curves(predictions: pd.DataFrame, wanted: Sequence[tuple[str, str]] = EVERY_CURVE) -> ScoreCurves:
    """The curves `wanted`, of a curve's predictions by one protocol; those of sub-tasks without movies are left out."""
    there = {OVERALL, *predictions["subtask"]}
    scores = {
        name: movie_scores(predictions, name) for name in dict.fromkeys(each for each, _ in wanted) if name in there
    }
    draws = {name: own.resamples() for name, own in scores.items() if own.n_scenes >= LEAST_SCENES}
    found = {
        (subtask, metric): scores[subtask].curve(metric, draws[subtask]) if subtask in draws else None
        for subtask, metric in wanted
        if subtask in there
    }
    overall = scores.get(OVERALL) or movie_scores(predictions)
    return ScoreCurves(overall.layers, overall.n_scenes, found)


def mean_of_seeds(seeds: Sequence[ScoreCurves], layers: np.ndarray) -> ScoreCurves:
    """The mean over a control's seeds at `layers`; a control with one layer stands for all of them.

    UserError if it was probed at other layers.
    """
    first = seeds[0]
    one = len(first.layers) == 1
    if not one and not np.array_equal(first.layers, layers):
        raise UserError("a control was probed at other layers than its run: rerun both together")
    found = {}
    for name, curve in first.by_name.items():
        mean = None if curve is None else mean_curve([seed.by_name[name] for seed in seeds])
        found[name] = mean.map(lambda rows: np.repeat(rows, len(layers), axis=1)) if one and mean else mean
    return ScoreCurves(layers, first.n_scenes, found)


def interval_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """`subtask layer`, and METRIC_pooled, METRIC_low and METRIC_high (95 %) of every metric in BOOTSTRAPPED."""
    return bootstrap_curves(predictions).rows(POOLED)
