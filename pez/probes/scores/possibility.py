"""How well a score of possibility separates possible from impossible IntPhys movies.

Tables here have one row per movie: `block`, `subtask`, `scene`, `possible` (bool), `score` (a logit: the higher the
more possible). Chance is 0.5 in every metric, and a constant score gives exactly that.

clip_accuracy       a movie is called possible if its score is above 0; exactly 0 is worth a half
auc                 ROC AUC over movies (1 - IntPhys' absolute error)
relative_accuracy   a scene is right if its two possible movies' scores sum to more than its impossible ones'
                    (1 - IntPhys' relative error); a tie is worth a half
pairwise_accuracy   over the four possible-impossible pairs of each scene, the possible one scores higher; a
                    tie is worth a half. IntPhys labels no pairs: every impossible movie of a scene is made of the
                    frames of both its possible ones, so all four pairs are matched. It is the AUC within scenes.
                    Where a benchmark numbers its matched pairs (column `pair`), over those alone

Ties. Official scoring counts a tied scene as right, other public code as wrong; a score that is blind to the
difference (the mean-pooled patch embedding, a linear map of frames that the pairs share; the last tubelet where
a scene's movies end alike) then yields 1.0, 0.0 or, from rounding noise, anything. So sums that agree to rounding are
ties, worth a half and counted (`n_ties`), and scenes decided by less than 1 % of the scores' spread are counted too
(`n_near_ties`): their share says how much of a relative accuracy hangs on next to nothing.

How large rounding is follows from the precision of the features and from the probe: a score sums w x over channels, so
its error goes with the root of the sum of squares of w x, whatever the score is (column `rounding`, from
pez/probes/solvers/linear.py). Sums within ROUNDINGS of that, over the movies of a scene together, tie. Where it is not
known (attentive probes, tables of earlier versions), sums within TIE_TOLERANCE of the largest score do.

By the published recipe (`strictly`) scores are probabilities, summed as they are, and a tie is wrong; of a
single movie a half counts as possible.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata

from pez.probes.scores.bootstrap import ROUNDINGS, TIE_TOLERANCE

METRICS = ("clip_accuracy", "auc", "relative_accuracy", "pairwise_accuracy")
SELECTION_METRICS = ("accuracy", "relative_accuracy")  # names of --selection-metric
METRIC_OF = {"accuracy": "clip_accuracy", "relative_accuracy": "relative_accuracy"}
COUNTS = ("n_scenes", "n_ties", "n_near_ties", "n_pair_ties")
OVERALL = "overall"
PAIR = "pair"  # column that numbers the matched pairs of a scene, of benchmarks that have them

NEAR_TIE = 0.01  # of the scores' standard deviation


def tolerances(table: pd.DataFrame) -> tuple[float, float]:
    """The largest difference that ties where rounding is not known, and the largest that nearly does, on the scale of
    these movies' scores."""
    scores = table["score"].to_numpy(dtype=np.float64)
    tolerance = 0.0 if "rounding" in table else TIE_TOLERANCE * float(np.abs(scores).max())
    return tolerance, max(tolerance, NEAR_TIE * float(scores.std()))


def score_movies(
    table: pd.DataFrame, limits: tuple[float, float] | None = None, strictly: bool = False
) -> dict[str, float]:
    """Every metric and count of one set of whole scenes, as a dict with the keys METRICS and COUNTS.

    `limits` are `tolerances` of a larger set on the same scale that these movies are a part of; by default their own.
    `strictly`: by the published recipe, whose `score` is a probability; counted ties are exact ones.
    """
    scores = table["score"].to_numpy(dtype=np.float64)
    possible = table["possible"].to_numpy(dtype=bool)
    scene, n_scenes = _scene_numbers(table)
    tolerance, near = tolerances(table) if limits is None else limits
    tolerance, tie = (0.0, 0.0) if strictly else (tolerance, 0.5)
    margins = np.bincount(scene, np.where(possible, scores, -scores), n_scenes)
    mates = scene[possible][:, None] == scene[~possible]  # [possible, impossible]
    if PAIR in table:
        pair = table[PAIR].to_numpy()
        mates &= pair[possible][:, None] == pair[~possible]
    pairs = (scores[possible][:, None] - scores[~possible])[mates]
    tied_scene, tied_pair = np.full(n_scenes, tolerance), np.full(len(pairs), tolerance)
    if "rounding" in table:
        squares = np.square(table["rounding"].to_numpy(dtype=np.float64))
        tied_scene = ROUNDINGS * np.sqrt(np.bincount(scene, squares))
        tied_pair = ROUNDINGS * np.sqrt((squares[possible][:, None] + squares[~possible])[mates])
    right = (scores >= 0.5) == possible if strictly else np.where(scores == 0, 0.5, (scores > 0) == possible)
    return {
        "clip_accuracy": float(right.mean()),
        "auc": auc(scores, possible),
        "relative_accuracy": float(np.where(np.abs(margins) <= tied_scene, tie, margins > 0).mean()),
        "pairwise_accuracy": float(np.where(np.abs(pairs) <= tied_pair, tie, pairs > 0).mean()),
        "n_scenes": n_scenes,
        "n_ties": int((np.abs(margins) <= tied_scene).sum()),
        "n_near_ties": int((np.abs(margins) <= np.maximum(near, tied_scene)).sum()),
        "n_pair_ties": int((np.abs(pairs) <= tied_pair).sum()),
    }


def probability(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, in single precision as the public reproduction has them, float64."""
    return cast(np.ndarray, expit(np.asarray(logits, dtype=np.float32)).astype(np.float64))


def score_rows(table: pd.DataFrame, parts: Mapping[str, np.ndarray], strictly: bool = False) -> pd.DataFrame:
    """One row per sub-task, the first overall: `subtask`, then `score_movies` of its own.

    `parts`: which rows of `table` belong to each sub-task; one without rows is left out. What ties is settled once for
    all of them, so that the sub-tasks' ties add up to the overall ones.
    """
    limits = tolerances(table)
    tables = {OVERALL: table} | {name: table.iloc[rows] for name, rows in parts.items() if len(rows)}
    return pd.DataFrame([{"subtask": name, **score_movies(part, limits, strictly)} for name, part in tables.items()])


def _scene_numbers(table: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Scene of every movie as a number from 0, [movies], and how many there are."""
    block, _ = pd.factorize(table["block"])
    scene, names = pd.factorize(table["scene"])
    numbers = np.unique(block * len(names) + scene, return_inverse=True)[1]
    return numbers, int(numbers.max()) + 1


def auc(scores: np.ndarray, possible: np.ndarray) -> float:
    """ROC AUC as the Mann-Whitney statistic: the share of pairs in which the possible (positive) one ranks higher."""
    n_possible = int(possible.sum())
    won = rankdata(scores)[possible].sum() - n_possible * (n_possible + 1) / 2
    return float(won / (n_possible * (len(scores) - n_possible)))
