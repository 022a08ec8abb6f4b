"""Permuted labels that a linear map cannot read from the true ones.

Where a variable is constant inside every group, whole groups swap their labels; else clips do. Groups are few (8
directions, 3 speeds), and among few permutations many are the identity, its mirror image or a shift: features that hold
the true labels hold such "shuffled" ones as well, and the control's R^2 is then a copy of the curve's. So a permutation
counts only if a least-squares map from the true labels of all variables of the clip set explains at most MOST_READABLE
of every permuted column. Where no permutation does, one of those that explain least is taken, and a note says so.

Labels of movies are permuted within their scene, and those of pairs within their group: a scene still has two possible
and two impossible movies, so every metric keeps its chance level.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import cast

import numpy as np

from pez.probes.data.probe_data import LEAST_VARIANCE, Variable

# R^2; of the 40,320 orders of 8 directions 0.5 % pass as angle, cosine and sine at once (0.1: two)
MOST_READABLE = 0.15
FEW_TO_SWAP = 6  # groups; with fewer no permutation is free of the truth
_TRIES = 2000  # permutations drawn where there are more than that


def shuffled_within(variable: Variable, group: np.ndarray, seed: int) -> Variable:
    """`variable` with its labels permuted among the clips of each group; `group` [n] names every clip's."""
    rng, targets = np.random.default_rng(seed), variable.targets.copy()
    for name in np.unique(group):
        rows = np.flatnonzero(group == name)
        targets[rows] = rng.permutation(targets[rows])
    return dataclasses.replace(variable, targets=targets)


def shuffled_variables(variables: Sequence[Variable], group: np.ndarray, seed: int) -> list[Variable]:
    """`variables` of one clip set with their labels permuted; `group` [n] names every clip's.

    Variables of one kind (constant in groups, or not) and seed are permuted alike, so that two forms of a direction
    stay two forms of one direction. Deterministic in `seed`.
    """
    group, shuffled = np.asarray(group), list(variables)
    truth = np.concatenate([variable.targets for variable in variables], axis=1)
    whole = [constant_in_groups(variable.targets, group) for variable in variables]
    for kind in set(whole):
        places = [place for place, own in enumerate(whole) if own == kind]
        targets = np.concatenate([variables[place].targets for place in places], axis=1)
        unit = group if kind else np.arange(len(group))
        permuted = _permuted(targets, truth, unit, seed)
        ends = np.cumsum([0, *(len(variables[place].components) for place in places)])
        for place, start, end in zip(places, ends, ends[1:]):
            shuffled[place] = dataclasses.replace(variables[place], targets=permuted[:, start:end])
    return shuffled


def constant_in_groups(targets: np.ndarray, group: np.ndarray) -> bool:
    """Whether `targets` [n, k] hold one value inside every group of `group` [n]."""
    means, index = _group_means(targets, group)
    inside = np.square(targets - means[index]).mean(0)
    return bool((inside <= LEAST_VARIANCE * targets.var(0)).all())


def readable(truth: np.ndarray, permuted: np.ndarray) -> float:
    """The highest R^2, over columns of `permuted` [n, k], of the least-squares map (with intercept) from `truth`
    [n, m]. A column that does not vary counts as 1: swapping equal labels changes nothing."""
    return _highest(_basis(truth), permuted)


def shuffle_note(variables: Sequence[Variable], shuffled: Sequence[Variable], group: np.ndarray) -> str:
    """What a reader must know of permuted labels that still tell of the true ones; empty if there is nothing."""
    swapped = [place for place, one in enumerate(variables) if constant_in_groups(one.targets, group)]
    truth = np.concatenate([variable.targets for variable in variables], axis=1)
    left = max((readable(truth, shuffled[place].targets) for place in swapped), default=0.0)
    n_groups = len(set(group))
    if not swapped or (n_groups >= FEW_TO_SWAP and left <= MOST_READABLE):
        return ""
    names = ", ".join(variables[place].name for place in swapped)
    return (
        f"shuffled_labels of {names} swaps the labels of {n_groups} groups only; a linear map from the true labels "
        f"still explains R² {left:.2f} of them, so this control is no floor to rely on: choose a --grouping with more "
        "groups"
    )


def _permuted(targets: np.ndarray, truth: np.ndarray, unit: np.ndarray, seed: int) -> np.ndarray:
    """`targets` [n, k], constant in every `unit` [n], with the units' values permuted."""
    means, index = _group_means(targets, unit)
    basis, rng = _basis(truth), np.random.default_rng(seed)
    least = np.inf
    best: list[np.ndarray] = []
    for order in _orders(len(means), rng):
        score = _highest(basis, means[order][index])
        if score <= MOST_READABLE:
            return cast(np.ndarray, means[order][index])
        if score < least - 1e-9:
            least, best = score, []
        if score <= least + 1e-9:
            best.append(order)
    return cast(np.ndarray, means[best[rng.integers(len(best))]][index])


def _orders(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Permutations of `n` in random order: each of them once where they are few, else `_TRIES` draws."""
    if math.factorial(min(n, 20)) <= _TRIES:
        every = np.array(list(permutations(range(n))))
        yield from every[rng.permutation(len(every))]
    else:
        for _ in range(_TRIES):
            yield rng.permutation(n)


def _group_means(targets: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of `targets` [n, k] in each group, [G, k], and the group of every clip as a number, [n]."""
    _, index, sizes = np.unique(group, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), targets.shape[1]))
    np.add.at(sums, index, targets)
    return sums / sizes[:, None], index


def _basis(truth: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the centred, scaled columns of `truth`, [n, rank]."""
    centred = truth - truth.mean(0)
    scale = centred.std(0)
    centred = centred[:, scale > 0] / scale[scale > 0]
    vectors, values, _ = np.linalg.svd(centred, full_matrices=False)
    return vectors[:, values > 1e-9 * max(values.max(initial=0.0), 1.0)]


def _highest(basis: np.ndarray, permuted: np.ndarray) -> float:
    centred = permuted - permuted.mean(0)
    total = np.square(centred).sum(0)
    explained = np.square(basis.T @ centred).sum(0)
    return float(np.divide(explained, total, out=np.ones_like(total), where=total > 0).max())
