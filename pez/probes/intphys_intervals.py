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

from pez.probes.bootstrap import (
    BootstrapCurve,
    Resamples,
    bootstrap_accuracy,
    bootstrap_auc,
    bootstrap_relative_accuracy,
    group_resamples,
)
from pez.probes.intphys_scores import OVERALL, SUBTASK_ROWS

BOOTSTRAPPED = ("clip_accuracy", "auc", "relative_accuracy")
LEAST_SCENES = 3  # as of groups of balls (pez.probes.layer_scores)


@dataclass(frozen=True)
class MovieScores:
    """Scores of the same movies at every layer: `layers` [L], `possible` [n] bool, `scene` [n], `score` [L, n]."""

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
        """`metric`, one of BOOTSTRAPPED, at every layer."""
        arguments = self.possible, self.score, self.scene, resamples
        if metric == "relative_accuracy":
            return bootstrap_relative_accuracy(*arguments, largest=1.0)
        return {"clip_accuracy": bootstrap_accuracy, "auc": bootstrap_auc}[metric](*arguments)


def movie_scores(predictions: pd.DataFrame, subtask: str = OVERALL) -> MovieScores:
    """Arrays of one run's predictions by one protocol, a row a movie and layer, of the movies of `subtask`."""
    largest = predictions.groupby(["layer", "fold"])["score"].transform(lambda own: own.abs().max())
    table = predictions.assign(score=predictions["score"] / largest.where(largest > 0, 1.0))
    if subtask != OVERALL:
        table = table[table["subtask"] == subtask]
    wide = table.pivot_table(index="clip_id", columns="layer", values="score").sort_index(axis=1)
    movies = table.drop_duplicates("clip_id").set_index("clip_id").loc[wide.index]
    scene = (movies["block"] + "/" + movies["scene"]).to_numpy(dtype=str)
    n_folds = max(2, int(predictions["fold"].max()) + 1)
    possible = movies["possible"].to_numpy(dtype=bool)
    return MovieScores(wide.columns.to_numpy(), possible, scene, wide.to_numpy(dtype=np.float64).T, n_folds)


def interval_rows(predictions: pd.DataFrame, subtasks: Sequence[str] = SUBTASK_ROWS) -> pd.DataFrame:
    """`subtask layer`, and METRIC_pooled, METRIC_low and METRIC_high (95 %) of every metric in BOOTSTRAPPED.

    NaN ends with fewer than LEAST_SCENES scenes; sub-tasks without movies are left out.
    """
    there = {OVERALL, *predictions["subtask"]}
    return pd.concat([_rows(predictions, name) for name in subtasks if name in there], ignore_index=True)


def _rows(predictions: pd.DataFrame, subtask: str) -> pd.DataFrame:
    scores = movie_scores(predictions, subtask)
    rows = pd.DataFrame({"subtask": subtask, "layer": scores.layers})
    if scores.n_scenes < LEAST_SCENES:
        names = [f"{metric}_{kind}" for metric in BOOTSTRAPPED for kind in ("pooled", "low", "high")]
        return rows.assign(**dict.fromkeys(names, np.nan))
    resamples = scores.resamples()
    for metric in BOOTSTRAPPED:
        curve = scores.curve(metric, resamples)
        ends = curve.interval()
        rows[f"{metric}_pooled"], rows[f"{metric}_low"], rows[f"{metric}_high"] = curve.estimate, ends[:, 0], ends[:, 1]
    return rows
