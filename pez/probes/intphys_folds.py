"""Cross-validation of IntPhys movies: a scene's four movies share their frames, so they share their fold."""

import numpy as np
import pandas as pd

from pez.errors import UserError


def scene_folds(movies: pd.DataFrame, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """Fold of every movie, [movies]: each block's scenes are shuffled and dealt out in turn.

    So folds hold equally many scenes of every sub-task, to within one, and equally many in all. With fewer
    scenes than `n_folds` there are as many folds as scenes. Raises UserError for fewer than 3 scenes or 2 folds.
    """
    check_n_folds(n_folds)
    scenes = movies[["block", "scene"]].drop_duplicates().sort_values(["block", "scene"])
    if len(scenes) < 3:
        raise UserError(
            f"{len(scenes)} IntPhys scenes are too few for separate training, validation and test folds: "
            "at least 3 are needed (see --max-scenes-per-block)"
        )
    rng = np.random.default_rng(seed)
    dealt = pd.concat([block.sample(frac=1, random_state=rng) for _, block in scenes.groupby("block")])
    fold_of = {key: number % n_folds for number, key in enumerate(dealt.itertuples(index=False, name=None))}
    return np.array([fold_of[key] for key in movies[["block", "scene"]].itertuples(index=False, name=None)])


def repeated_scene_folds(movies: pd.DataFrame, n_folds: int, seed: int, repeats: int) -> list[np.ndarray]:
    """Folds [movies] of `repeats` cross-validations, dealt with seeds `seed`, `seed` + 1, ...: see `scene_folds`.

    Fewer where a later seed deals the same scenes together again, as it may where scenes are few. UserError for
    `repeats` below 1.
    """
    if repeats < 1:
        raise UserError(f"--repeats must be at least 1; got {repeats}")
    different: dict[tuple, np.ndarray] = {}
    for repeat in range(repeats):
        folds = scene_folds(movies, n_folds, seed + repeat)
        different.setdefault(tuple(pd.factorize(folds)[0]), folds)  # equal but for the folds' numbers: the same
    return list(different.values())


def check_n_folds(n_folds: int, chooses: bool = False) -> None:
    """UserError for fewer than 2 folds, or fewer than 3 if a setting `chooses` its validation scenes among them."""
    least = 3 if chooses else 2
    if n_folds < least:
        why = "training, validation and test scenes" if chooses else "training and test scenes"
        raise UserError(f"--folds must be at least {least}, for separate {why}; got {n_folds}")


def inner_split(folds: np.ndarray, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on inside the training folds of `fold`: the next fold validates.

    The reported fold is in neither, so a setting or an epoch chosen on the validation rows has not seen it.
    """
    validation = (fold + 1) % (folds.max() + 1)
    return np.flatnonzero((folds != fold) & (folds != validation)), np.flatnonzero(folds == validation)
