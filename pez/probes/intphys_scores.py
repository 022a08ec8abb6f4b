"""How well a score of possibility separates possible from impossible IntPhys movies.

Tables here have one row a movie: `block`, `scene`, `possible` (bool), `score` (a logit: the higher the more
possible) and, for spreads, `fold`. Chance is 0.5 in every metric, and a constant score gives exactly that.

clip_accuracy       a movie is called possible if its score is above 0; exactly 0 is worth a half
auc                 ROC AUC over movies (1 - IntPhys' absolute error)
relative_accuracy   a scene is right if its two possible movies' scores sum to more than its impossible ones'
                    (1 - IntPhys' relative error); a tie is worth a half
pairwise_accuracy   over the four possible-impossible pairs of each scene, the possible one scores higher; a
                    tie is worth a half. IntPhys labels no pairs: every impossible movie of a scene is made of the
                    frames of both its possible ones, so all four pairs are matched. It is the AUC within scenes.

Ties. Official scoring counts a tied scene as right, other public code as wrong; a score that is blind to the
difference (the mean-pooled patch embedding, a linear map of frames that the pairs share; the last tubelet where
a scene's movies end alike) then yields 1.0, 0.0 or, from rounding noise, anything. So sums that agree to float32's
rounding are ties, worth a half and counted (`n_ties`), and scenes decided by less than 1 % of the scores' spread
are counted too (`n_near_ties`): their share says how much of a relative accuracy hangs on next to nothing.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pez.probes.bootstrap import TIE_TOLERANCE
from pez.stimuli.intphys import SUBTASKS

METRICS = ("clip_accuracy", "auc", "relative_accuracy", "pairwise_accuracy")
COUNTS = ("n_scenes", "n_ties", "n_near_ties", "n_pair_ties")
OVERALL = "overall"
SUBTASK_ROWS = (OVERALL, *SUBTASKS.values())

NEAR_TIE = 0.01  # of the scores' standard deviation


def tolerances(table: pd.DataFrame) -> tuple[float, float]:
    """The largest difference that ties, and the largest that nearly does, on the scale of these movies' scores."""
    scores = table["score"].to_numpy(dtype=np.float64)
    tolerance = TIE_TOLERANCE * float(np.abs(scores).max())
    return tolerance, max(tolerance, NEAR_TIE * float(scores.std()))


def score_movies(table: pd.DataFrame, limits: tuple[float, float] | None = None) -> dict[str, float]:
    """Every metric and count of one set of whole scenes, as a dict with the keys METRICS and COUNTS.

    `limits` are `tolerances` of a larger set on the same scale that these movies are a part of; by default their own.
    """
    scores = table["score"].to_numpy(dtype=np.float64)
    possible = table["possible"].to_numpy(dtype=bool)
    tolerance, near = tolerances(table) if limits is None else limits
    margins = scene_margins(table)["margin"].to_numpy()
    pairs = _pair_differences(table)
    return {
        "clip_accuracy": float(np.where(scores == 0, 0.5, (scores > 0) == possible).mean()),
        "auc": float(roc_auc_score(possible, scores)),
        "relative_accuracy": _half_for_ties(margins, tolerance),
        "pairwise_accuracy": _half_for_ties(pairs, tolerance),
        "n_scenes": len(margins),
        "n_ties": int((np.abs(margins) <= tolerance).sum()),
        "n_near_ties": int((np.abs(margins) <= near).sum()),
        "n_pair_ties": int((np.abs(pairs) <= tolerance).sum()),
    }


def scene_margins(table: pd.DataFrame) -> pd.DataFrame:
    """`block`, `scene` and `margin`: sum of the possible movies' scores minus sum of the impossible ones'."""
    signed = table["score"].astype(np.float64) * np.where(table["possible"], 1.0, -1.0)
    keys = [table["block"], table["scene"]]
    return signed.rename("margin").groupby(keys).sum().reset_index()


def score_rows(table: pd.DataFrame) -> pd.DataFrame:
    """One row a sub-task, the first overall: `subtask`, then `score_movies` of its movies.

    What ties is settled once for all of them, so that the sub-tasks' ties add up to the overall ones.
    """
    limits = tolerances(table)
    parts = {OVERALL: table}
    parts |= {name: table[table["block"] == block] for block, name in SUBTASKS.items()}
    return pd.DataFrame([{"subtask": name, **score_movies(part, limits)} for name, part in parts.items() if len(part)])


def score_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over folds, one row a sub-task.

    Columns `subtask`; METRIC_mean and METRIC_std (over folds, population standard deviation, as the published
    values have it); COUNTS summed over folds; `n_folds` (folds that hold a scene of that sub-task).
    """
    folds = pd.concat([score_rows(part) for _, part in table.groupby("fold")])
    grouped = folds.groupby("subtask", sort=False)
    summary = grouped[list(COUNTS)].sum()
    for metric in METRICS:
        summary[f"{metric}_mean"] = grouped[metric].mean()
        summary[f"{metric}_std"] = grouped[metric].std(ddof=0)
    summary["n_folds"] = grouped.size()
    rows = [name for name in SUBTASK_ROWS if name in summary.index]
    return summary.loc[rows].reset_index()


def _pair_differences(table: pd.DataFrame) -> np.ndarray:
    """Possible minus impossible score of every such pair within a scene."""
    possible = table[table["possible"]]
    impossible = table[~table["possible"]]
    pairs = possible.merge(impossible, on=["block", "scene"], suffixes=("", "_impossible"))
    return pairs["score"].to_numpy(np.float64) - pairs["score_impossible"].to_numpy(np.float64)


def _half_for_ties(differences: np.ndarray, tolerance: float) -> float:
    tied = np.abs(differences) <= tolerance
    return float(np.where(tied, 0.5, differences > 0).mean())
