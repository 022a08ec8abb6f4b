"""Folds of a cross-validation that never tear a group apart."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from pez.errors import UserError, check_number
from pez.probes.data.groupings import HELD_OUT, groups, published_groups, torn_orbit
from pez.probes.data.labels import Labels
from pez.probes.data.probe_data import NEVER, Clips, scene_names

_DIVISIONS = 32  # drawn, of which the most even is taken
_GROUPS_DEALT = 20_000  # at most, in all of them: dealing takes time


@dataclass(frozen=True)
class Folds:
    """The group (name) and fold (number) of every clip, [n], in the order of the store's clips; NEVER: in no fold."""

    group: np.ndarray
    fold: np.ndarray

    @property
    def n_groups(self) -> int:
        """Number of different groups."""
        return len(set(self.group))

    @property
    def n_folds(self) -> int:
        """Number of folds: as many as asked for, or as there are groups if that is fewer."""
        return int(self.fold.max()) + 1

    @property
    def tested(self) -> np.ndarray:
        """Rows that some fold holds out, in order."""
        return np.flatnonzero(self.fold != NEVER)

    def rows(self, fold: int) -> np.ndarray:
        """Rows that a fold holds out."""
        return np.flatnonzero(self.fold == fold)

    def splits(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(training rows, held-out rows) of each fold in turn."""
        for fold in range(self.n_folds):
            yield np.flatnonzero(self.fold != fold), self.rows(fold)


def make_folds(store: Clips, grouping: str, n_folds: int, seed: int = 0, targets: np.ndarray | None = None) -> Folds:
    """Folds of a store's clips; UserError if the grouping leaves a single group or the clips lack what it needs.

    As far as the groups allow, every fold has its share of every direction, and the mean of what is probed (`targets`
    [n, k]): where a fold's mean target lies far from the training mean, R^2 falls below what is readable.
    """
    return repeated_folds(store, grouping, n_folds, seed, 1, targets)[0]


def repeated_folds(
    store: Clips,
    grouping: str,
    n_folds: int,
    seed: int,
    repeats: int,
    targets: np.ndarray | None = None,
    tear_orbits: bool = False,
) -> tuple[Folds, ...]:
    """Folds of `repeats` cross-validations, split with seeds `seed`, `seed` + 1, ...; the groups are those of `seed`.

    Fewer where seeds give the same folds again: of few groups of unlike sizes one division is the most even. One
    where the grouping leaves no choice (HELD_OUT).
    """
    check_number("--seed", seed, least=0, most=2**32 - 1)
    group = groups(store, grouping, seed)
    if not tear_orbits and grouping != "axis":
        _check_orbits(store.clips, group, grouping)
    if grouping in HELD_OUT:
        return (Folds(group, _one_fold_a_value(store.clips, group, grouping)),)
    what, strata = f"--grouping {grouping} of the {store.name} set", store.clips.get("direction_deg")
    return different_folds(group, lambda own: grouped_folds(group, n_folds, own, strata, what, targets), seed, repeats)


def swapped_folds(clips: pd.DataFrame, group: np.ndarray, factor: str) -> Folds:
    """A fold per level of `factor`, a column of the clip table: its clips are read, those of other levels train.

    UserError for a factor that does not vary, or a group whose clips have several levels.
    """
    if factor not in clips or clips[factor].nunique() < 2:
        raise UserError(
            f"--swap {factor}: the clips do not vary in it: make some with step1_generate.py --vary {factor}"
        )
    levels, fold = np.unique(clips[factor].to_numpy(), return_inverse=True)
    torn = pd.Series(fold).groupby(group).nunique()
    if (torn > 1).any():
        raise UserError(
            f"--swap {factor} parts the clips of {torn.idxmax()}, which --grouping keeps together: use --grouping "
            "video, or a set drawn in orbits, where an orbit has one level"
        )
    return Folds(group, fold.astype(np.int64))


def _check_orbits(clips: pd.DataFrame, group: np.ndarray, grouping: str) -> None:
    if torn := torn_orbit(clips, group):
        raise UserError(
            f"--grouping {grouping} parts {torn[0]} and {torn[1]}, which are of one orbit, so that what is missing "
            "from training tells the answer: use --grouping position, or --tear-orbits if that is what you want to see"
        )


def published_folds(store: Clips, grouping: str, n_folds: int, tear_orbits: bool = False) -> tuple[Folds, ...]:
    """The folds of the published recipe: nothing is drawn, and nothing but the groups' sizes and order has a say."""
    group, number = published_groups(store, grouping)
    if not tear_orbits:
        _check_orbits(store.clips, group, grouping)
    return (Folds(group, unshuffled_folds(number, n_folds, f"--grouping {grouping} of the {store.name} set")),)


def unshuffled_folds(group: np.ndarray, n_folds: int, what: str) -> np.ndarray:
    """Fold of every clip, [n]: groups, the largest first, each to the fold that is smallest so far (GroupKFold)."""
    n_groups = len(np.unique(group))
    if n_groups < 2:
        raise UserError(f"{what} has one group, which cannot be split: choose another --grouping")
    fold = np.zeros(len(group), dtype=np.int64)
    for index, (_, held_out) in enumerate(GroupKFold(min(n_folds, n_groups)).split(group, groups=group)):
        fold[held_out] = index
    return fold


def label_folds(labels: Labels, named: str | None, n_folds: int, seed: int, repeats: int) -> tuple[Folds, ...]:
    """Folds of clips with labels of one's own: `named` is the column that groups them, None for equal labels. Folds are
    even in the first label of kind class, and in the means of numbers."""
    strata = next((v.targets.argmax(1) for v in labels.variables if v.kind == "class"), None)
    numbers = [v.targets for v in labels.variables if v.kind != "class"]
    targets = np.concatenate(numbers, axis=1) if numbers else None
    what = f"--group {named}" if named else "equal labels"

    def deal(own: int) -> np.ndarray:
        return grouped_folds(labels.group, n_folds, own, strata, what, targets)

    return different_folds(labels.group, deal, seed, repeats)


def _one_fold_a_value(clips: pd.DataFrame, group: np.ndarray, grouping: str) -> np.ndarray:
    """Fold of every clip, [n]: values in order; the extremes of a magnitude are NEVER held out."""
    column = "magnitude" if grouping == "held_out_speed" else "direction_deg"
    value, fold = np.unique(clips[column], return_inverse=True)
    if column == "magnitude":
        fold = np.where(fold == len(value) - 1, 0, fold) - 1
    if len(value) < 3:
        raise UserError(
            f"--grouping {grouping} needs at least 3 different values to leave one between others out; "
            f"there are {len(value)} ({', '.join(sorted(set(group)))}): choose another"
        )
    return fold.astype(np.int64)


def different_folds(group: np.ndarray, deal: Callable[[int], np.ndarray], seed: int, repeats: int) -> tuple[Folds, ...]:
    """Folds of `repeats` cross-validations: `deal` makes those [n] of seeds `seed`, `seed` + 1, ...

    Fewer where seeds give the same folds again: few groups can be dealt in few ways. UserError for `repeats` below 1.
    """
    check_number("--repeats", repeats, least=1)
    different: dict[tuple[int, ...], np.ndarray] = {}
    for repeat in range(repeats):
        fold = deal(seed + repeat)
        different.setdefault(tuple(pd.factorize(fold)[0]), fold)  # equal but for the folds' numbers: the same
    return tuple(Folds(group, fold) for fold in different.values())


def grouped_folds(
    group: npt.ArrayLike,
    n_folds: int,
    seed: int = 0,
    strata: np.ndarray | None = None,
    what: str = "the grouping",
    targets: np.ndarray | None = None,
) -> np.ndarray:
    """Fold number of every clip, [n]: groups whole; folds even in size, and in `strata` [n] if given.

    With `targets` [n, k] several such divisions are drawn, and the one whose `unevenness` is least is taken.

    With fewer groups than `n_folds` there are as many folds as groups. Where every stratum has fewer clips than there
    are folds, none can be spread and `strata` has no say. UserError for a single group.
    """
    check_number("--seed", seed, least=0, most=2**32 - 1)
    group = np.asarray(group)
    names = np.unique(group)
    check_number("--folds", n_folds, least=2)
    if len(names) < 2:
        raise UserError(f"{what} has one group ({names[0]}), which cannot be split: choose another")
    strata = np.zeros(len(group), dtype=int) if strata is None else np.unique(strata, return_inverse=True)[1]
    n_splits = min(n_folds, len(names))
    if np.bincount(strata).max() < n_splits:  # StratifiedGroupKFold refuses these; one stratum is plain folds
        strata = np.zeros_like(strata)
    n_drawn = 1 if targets is None else max(1, min(_DIVISIONS, _GROUPS_DEALT // len(names)))
    draws = [seed, *np.random.default_rng(seed).integers(2**32, size=n_drawn - 1).tolist()]
    divisions = []
    for draw in draws:
        fold = np.zeros(len(group), dtype=np.int64)
        splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=draw)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")  # then it is spread thinly
            for index, (_, held_out) in enumerate(splitter.split(group, strata, group)):
                fold[held_out] = index
        divisions.append(np.unique(fold, return_inverse=True)[1])  # a fold that got no group is not a fold
    return divisions[0] if targets is None else min(divisions, key=lambda fold: unevenness(fold, targets))


def unevenness(fold: np.ndarray, targets: np.ndarray) -> float:
    """How far the mean of a fold lies from that of all clips, in standard deviations: the largest over folds and
    columns of `targets` [n, k]."""
    targets = targets[:, targets.std(0) > 0]
    scaled = (targets - targets.mean(0)) / targets.std(0)
    means = [np.abs(scaled[fold == number].mean(0)).max(initial=0.0) for number in np.unique(fold)]
    return float(max(means))


def scene_folds(movies: pd.DataFrame, n_folds: int = 5, seed: int = 0, least: int = 3) -> np.ndarray:
    """Fold of every movie, [n]: a scene's movies share their frames, so they share their fold.

    Each block's scenes are shuffled and dealt out in turn, so folds hold equally many scenes of every block, to within
    one, and equally many in all. With fewer scenes than `n_folds` there are as many folds as scenes. Raises UserError
    for fewer than `least` scenes (the nested protocol needs 3) or 2 folds.
    """
    if n_folds < 2:
        raise UserError(f"--folds must be at least 2, for separate training and test scenes; got {n_folds}: give more")
    scenes = movies[["block", "scene"]].drop_duplicates().sort_values(["block", "scene"])
    if len(scenes) < least:
        raise UserError(
            f"{len(scenes)} IntPhys scenes are too few for separate training, validation and test folds: "
            f"give at least {least} (see --max-scenes-per-block)"
        )
    rng = np.random.default_rng(seed)
    dealt = pd.concat([block.sample(frac=1, random_state=rng) for _, block in scenes.groupby("block")])
    fold_of = {key: number % n_folds for number, key in enumerate(dealt.itertuples(index=False, name=None))}
    return np.array([fold_of[key] for key in movies[["block", "scene"]].itertuples(index=False, name=None)])


def repeated_scene_folds(movies: pd.DataFrame, n_folds: int, seed: int, repeats: int) -> tuple[Folds, ...]:
    """Folds of `repeats` cross-validations of movies, with seeds `seed`, `seed` + 1, ...: see `scene_folds`.

    Two scenes make two folds, of which `chosen_protocols` leaves out the nested one.
    """
    return different_folds(scene_names(movies), lambda own: scene_folds(movies, n_folds, own, 2), seed, repeats)


def published_scene_folds(movies: pd.DataFrame, n_folds: int) -> tuple[Folds, ...]:
    """Folds of movies by the published recipe: whole scenes, in their order, unshuffled."""
    names = scene_names(movies)
    return (Folds(names, unshuffled_folds(names, n_folds, "the set of movies")),)
