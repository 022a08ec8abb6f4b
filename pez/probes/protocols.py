"""How a setting and its stopping epoch are chosen: the published protocol and a nested one, for every linear probe.

paper     on the fold that is reported, as "best by validation performance" over 5 folds reads (paper, appendix B).
          Its score is optimistic: the fold helped to choose what is then scored on it.
nested    on the other folds alone. For each reported fold, every one of the others validates once, trained on the
          rest; the setting that did best on them together, for the mean of its best epochs, is trained again on all
          of them, and the reported fold is read once.

The inner folds are the outer ones without the reported, so groups stay whole inside as well and patch features need
their Gram matrix once a fold. A probe that reports fold a and is validated on b has the training rows of one that
reports b and is validated on a: it is trained once, and each fold judges it for the other. Both protocols share the
passes over the features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import pandas as pd
import torch

from pez.errors import UserError, check_choice
from pez.probes.problems import Problem, Setting
from pez.probes.sweep import SweepResult

PROTOCOLS = ("paper", "nested")
CHOICES = (*PROTOCOLS, "both")
FIXED = "fixed setting"  # of a probe with one setting and a fixed number of epochs: nothing is chosen
PREFERRED = ("nested", FIXED, "paper")  # which of several is quoted


@dataclass(frozen=True)
class Choice:
    """What was chosen for one variable: index of the setting, and the epochs it trains."""

    setting: int
    epochs: int


@dataclass(frozen=True)
class FoldResult:
    """One reported fold of one layer: `prediction` [m, k] of its rows, and what was chosen for each variable."""

    protocol: str
    layer: int
    fold: int
    prediction: torch.Tensor
    choices: tuple[Choice, ...]


class ProbeTask(Protocol):
    """What a probe hands over: how its problems are made, solved and judged. Folds are numbered from 0.

    `transfers`: predicted rows have other features than those the probe trains on and is judged by.
    """

    n_folds: int
    transfers: bool
    outputs: tuple[int, ...]
    settings: tuple[Setting, ...]

    def problem(
        self, layer: int, left_out: tuple[int, ...], validation: tuple[int, ...], predict: int | None, **changes
    ) -> Problem:
        """Train on all folds but `left_out`, judge on each of the folds `validation`, predict fold `predict`."""

    def solve(self, problems: Iterable[Problem]) -> Iterator[SweepResult]:
        """Solve problems in order."""

    def choose(self, judged: list[tuple[int, SweepResult]]) -> tuple[Choice, ...]:
        """The best setting of each variable, from (validation fold, result) of all its sweeps together."""


@dataclass(frozen=True)
class _Fit:
    """A sweep over a layer without these folds: one is judged on and reported, or each of two judges for the other."""

    layer: int
    folds: tuple[int, ...]


def chosen_protocols(protocol: str, n_folds: int) -> tuple[str, ...]:
    """The protocols that `protocol` (paper, nested or both) means with so many folds.

    Nested needs three folds. With two, `both` falls back to paper alone and `nested` is a UserError.
    """
    check_choice("--protocol", protocol, CHOICES)
    if protocol == "nested" and n_folds < 3:
        raise UserError(
            f"--protocol nested needs at least 3 folds, here {n_folds}: choose another --grouping or --folds"
        )
    if protocol != "both":
        return (protocol,)
    return PROTOCOLS if n_folds >= 3 else ("paper",)


def main_protocol(names: Iterable[str]) -> str:
    """Of the protocols that a curve was probed by, the one to quote; any where none is known."""
    there = set(names)
    return next((name for name in PREFERRED if name in there), min(there))


def quoted(predictions: pd.DataFrame) -> pd.DataFrame:
    """Of predictions with a column `protocol`, those by the one to quote."""
    return predictions[predictions["protocol"] == main_protocol(predictions["protocol"])]


def n_problems(protocols: Sequence[str], n_layers: int, n_folds: int) -> int:
    """Problems that `out_of_fold` solves, for a progress bar."""
    each = {"paper": n_folds, "nested": n_folds * (n_folds + 1) // 2}  # n (n - 1) / 2 to choose, n to train again
    return n_layers * sum(each[protocol] for protocol in protocols)


def out_of_fold(
    task: ProbeTask, layers: Sequence[int], protocols: Sequence[str], step: Callable[[], object] = lambda: None
) -> Iterator[FoldResult]:
    """Yield every layer's and fold's predictions under each protocol; `step` is called after each problem."""
    fits = [fit for layer in layers for protocol in protocols for fit in _fits(protocol, layer, task.n_folds)]
    problems = (task.problem(fit.layer, fit.folds, fit.folds, _predicted(task, fit)) for fit in fits)
    inner: dict[tuple[int, int], list[tuple[int, SweepResult]]] = {}
    for fit, result in zip(fits, task.solve(problems), strict=True):
        step()
        if len(fit.folds) == 1:
            yield _reported(task, fit, result)
            continue
        for judge, reported, own in zip(fit.folds, reversed(fit.folds), result.by_judge()):
            inner.setdefault((fit.layer, reported), []).append((judge, own))
    keys = [(layer, fold) for layer in layers for fold in range(task.n_folds) if (layer, fold) in inner]
    yield from _refitted(task, {key: task.choose(inner[key]) for key in keys}, step)


def _fits(protocol: str, layer: int, n_folds: int) -> list[_Fit]:
    return [_Fit(layer, folds) for folds in combinations(range(n_folds), 1 if protocol == "paper" else 2)]


def _predicted(task: ProbeTask, fit: _Fit) -> int | None:
    """The paper protocol reports what it judged by, unless the probe is to be read on other features."""
    return fit.folds[0] if task.transfers and len(fit.folds) == 1 else None


def _reported(task: ProbeTask, fit: _Fit, result: SweepResult) -> FoldResult:
    (fold,) = fit.folds
    choices = task.choose([(fold, result)])
    rows = result.prediction if task.transfers else result.validation_prediction
    prediction = result.chosen(rows, [choice.setting for choice in choices])
    return FoldResult("paper", fit.layer, fold, prediction, choices)


def _refitted(task: ProbeTask, chosen: dict, step: Callable[[], object]) -> Iterator[FoldResult]:
    problems = (_refit_problem(task, *key, choices) for key, choices in chosen.items())
    for ((layer, fold), choices), result in zip(chosen.items(), task.solve(problems), strict=True):
        step()
        prediction = result.chosen(result.prediction, list(range(len(choices))))
        yield FoldResult("nested", layer, fold, prediction, choices)


def _refit_problem(task: ProbeTask, layer: int, fold: int, choices: tuple[Choice, ...]) -> Problem:
    """Variable v at setting v, for its own number of epochs; other pairs train one epoch and are not read."""
    epochs = torch.ones(len(choices), len(choices), dtype=torch.int64)
    for variable, choice in enumerate(choices):
        epochs[variable, variable] = choice.epochs
    settings = tuple(task.settings[choice.setting] for choice in choices)
    return task.problem(layer, (fold,), (), fold, settings=settings, stop_epochs=epochs)


def choose_by_loss(judged: list[tuple[int, SweepResult]]) -> tuple[Choice, ...]:
    """Lowest mean validation loss over the folds, each at its own best epoch; of equals the first setting."""
    loss = torch.stack([result.validation_loss.nan_to_num(nan=float("inf")) for _, result in judged]).mean(0)
    epochs = torch.stack([result.best_epoch for _, result in judged]).double().mean(0)
    best = loss.argmin(0).tolist()
    return tuple(Choice(s, max(1, round(float(epochs[s, variable])))) for variable, s in enumerate(best))
