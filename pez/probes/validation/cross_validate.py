"""Cross-validation: data, folds and a solver in; out-of-fold predictions out. No command line in it.

    predictions = cross_validate(data, folds, solver, ("paper", "nested"))      # one Predictions per variable, protocol

paper     every fold is reported by probes trained on all others, at the setting and stopping epoch that did best on
          the fold itself
nested    for each reported fold, folds among the others validate in turn (`Solver.validation_folds`), trained on the
          rest; the setting that did best on them together, for the mean of its best epochs, is trained again on all
          folds but the reported one, which is read once
fixed     one setting, trained for all its epochs

Inner folds are the outer ones without the reported, so groups stay whole inside as well and patch features need their
Gram matrix once per fold. A probe that reports fold a and is validated on b has the training rows of one that reports
b and is validated on a: where both are wanted it is trained once, and each fold validates it for the other.
All protocols share the passes over the features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pez.probes.data.probe_data import Features, ProbeData
from pez.probes.folds import Folds
from pez.probes.predictions import Choice, Predictions
from pez.probes.protocols import FIXED
from pez.probes.scores.kinds import KINDS
from pez.probes.solvers.regression import Setting
from pez.probes.solvers.solver import Fit, Fitted, Solver, Step, Trials

Report = tuple[int, int]  # layer, fold


@dataclass(frozen=True)
class Outcome:
    """One reported fold of one layer: `prediction` [m, k] of its rows, and what was chosen for each variable.

    `weights` [k, d] and [k] of the nested refit, where they were asked for; `rounding` [m] of logistic scores.
    """

    protocol: str
    layer: int
    fold: int
    prediction: torch.Tensor
    choices: tuple[Choice, ...]
    weights: tuple[torch.Tensor, torch.Tensor] | None = None
    rounding: torch.Tensor | None = None


def cross_validate(
    data: ProbeData,
    repeats: Sequence[Folds],
    solver: Solver,
    protocols: Sequence[str],
    *,
    metric: str | None = None,
    step: Step = lambda: None,
    probes: dict[str, torch.Tensor] | None = None,
) -> list[Predictions]:
    """Out-of-fold predictions of every layer and variable, one Predictions per variable and protocol.

    Args:
        repeats: folds of every cross-validation.
        metric: of the variable's kind, by which a setting is chosen, ties by the smaller loss; None: by loss.
        step: called as often as `count_steps` says.
        probes: where given, weights and biases of the nested refits are put into it, by `probe_name`.
    """
    shape = (len(repeats), len(data.layers), *data.targets.shape)
    predicted = {protocol: np.full(shape, np.nan) for protocol in protocols}
    rounding = {protocol: np.full(shape[:3], np.nan) for protocol in protocols}
    choices: dict[str, dict[tuple[int, int, int], tuple[Choice, ...]]] = {protocol: {} for protocol in protocols}
    for repeat, folds in enumerate(repeats):
        reports = [(layer, fold) for layer in data.layers for fold in range(folds.n_folds)]
        options: dict[str, Any] = {"metric": metric, "step": step, "keep": probes is not None}
        for outcome in outcomes(data, folds, solver, protocols, reports, repeat=repeat, **options):
            place = repeat, data.layers.index(outcome.layer), folds.rows(outcome.fold)
            predicted[outcome.protocol][place] = outcome.prediction.numpy()
            if outcome.rounding is not None:
                rounding[outcome.protocol][place] = outcome.rounding.numpy()
            choices[outcome.protocol][repeat, outcome.layer, outcome.fold] = outcome.choices
            if probes is not None and outcome.weights is not None:
                for what, value in zip(("weight", "bias"), outcome.weights):
                    probes[probe_name(data, outcome.layer, repeat, outcome.fold, what)] = value
    predictions, end = [], 0
    for number, variable in enumerate(data.scored):
        start, end = end, end + len(variable.components)
        for protocol in protocols:
            predictions.append(
                Predictions(
                    variable=variable,
                    protocol=protocol,
                    layers=np.array(data.layers),
                    clips=data.clips,
                    group=data.group,
                    fold=np.stack([folds.fold for folds in repeats]),
                    predicted=predicted[protocol][..., start:end],
                    control=data.control,
                    control_seed=data.control_seed,
                    choices={key: own[number] for key, own in choices[protocol].items()},
                    parts=data.parts(data.clips),
                    rounding=rounding[protocol],
                )
            )
    return predictions


def probe_name(data: ProbeData, layer: int, repeat: int, fold: int, what: str) -> str:
    """Name of a tensor in probes_RUN.safetensors: rows of a weight are the components of all variables, in order."""
    return f"{data.name}.layer_{layer:02d}.repeat_{repeat}.fold_{fold}.{what}"


def count_steps(solver: Solver, protocols: Sequence[str], n_layers: int, repeats: Sequence[Folds]) -> int:
    """Steps of `cross_validate`, for a progress bar."""
    total = 0
    for folds in repeats:
        reports = [(0, fold) for fold in range(folds.n_folds)]
        first = _first_fits(solver, protocols, reports, folds.n_folds, 0, reads_other=False)
        refits = 0 if _reads_outer(solver, protocols) or "nested" not in protocols else folds.n_folds
        total += sum(map(solver.steps, first)) + refits * solver.steps(Fit(0, (0,), (), 0, choices=()))
    return n_layers * total


def outcomes(
    data: ProbeData,
    folds: Folds,
    solver: Solver,
    protocols: Sequence[str],
    reports: Sequence[Report],
    *,
    repeat: int = 0,
    metric: str | None = None,
    step: Step = lambda: None,
    keep: bool = False,
) -> Iterator[Outcome]:
    """An Outcome for each of `reports` (layer, fold) and protocol: the published one's as they come, nested's last."""
    reads_other = data.read_features is not None
    fits = _first_fits(solver, protocols, reports, folds.n_folds, repeat, reads_other)
    inner: dict[Report, list[tuple[int, Trials]]] = {}
    outer: dict[Report, Fitted] = {}
    for fit, fitted in zip(fits, solver.solve(data, folds, fits, step), strict=True):
        if len(fit.left_out) > 1:
            for validation_fold in fit.validated_on:
                (reported,) = set(fit.left_out) - {validation_fold}
                inner.setdefault((fit.layer, reported), []).append((validation_fold, fitted.trials(validation_fold)))
            continue
        (fold,) = fit.left_out
        if fit.choices is not None:
            yield Outcome(FIXED, fit.layer, fold, fitted.prediction(fit.choices), fit.choices)
            continue
        choices = choose(data, folds, solver, [(fold, fitted.trials(fold))], metric)
        prediction, rounding = _read(data, fitted, choices)
        yield Outcome("paper", fit.layer, fold, prediction, choices, None, rounding)
        if _reads_outer(solver, protocols):
            outer[fit.layer, fold] = fitted
    if "nested" not in protocols:
        return
    chosen = {report: choose(data, folds, solver, inner[report], metric) for report in reports}
    if outer:
        for report, choices in chosen.items():
            yield Outcome("nested", *report, outer[report].prediction(choices), choices)
        return
    refits = [Fit(layer, (fold,), (), fold, choices, repeat) for (layer, fold), choices in chosen.items()]
    for fit, fitted in zip(refits, solver.solve(data, folds, refits, step, keep), strict=True):
        assert fit.choices is not None
        weights = fitted.weights() if keep else None
        prediction, rounding = _read(data, fitted, fit.choices)
        choices = fitted.with_training_losses(fit.choices) if keep else fit.choices
        yield Outcome("nested", fit.layer, fit.left_out[0], prediction, choices, weights, rounding)


def read_others(
    data: ProbeData, others: Features, solver: Solver, layer: int, choices: tuple[Choice, ...]
) -> torch.Tensor:
    """What probes at `choices`, trained on all clips of `data`, say of clips without labels: [m, k].

    `others`: layer -> their features [m, d] or [m, tokens, d], captured as those of `data`.
    """
    n, m = len(data.clips), len(others(layer))
    unknown = tuple(
        replace(variable, targets=np.concatenate([variable.targets, np.full((m, variable.targets.shape[1]), np.nan)]))
        for variable in data.variables
    )
    joined = replace(
        data,
        clips=data.clips.reindex(range(n + m)),
        group=np.concatenate([data.group, np.full(m, "")]),
        variables=unknown,
        features=lambda number: torch.cat([data.features(number), others(number)]),
    )
    folds = Folds(joined.group, np.repeat([0, 1], [n, m]))  # the fold that is left out is theirs
    fit = Fit(layer, (1,), (), 1, choices)
    (fitted,) = solver.solve(joined, folds, [fit], lambda: None)
    return _read(joined, fitted, choices)[0]


def _read(data: ProbeData, fitted: Fitted, choices: tuple[Choice, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a probe says of the fold it reads; of logistic probes with each row's rounding, where that is known."""
    exact = fitted.exactly(choices) if KINDS[data.variables[0].kind].loss == "logistic" else None
    return (fitted.prediction(choices), None) if exact is None else exact


def _reads_outer(solver: Solver, protocols: Sequence[str]) -> bool:
    """Whether nested reads the probes that the published protocol trained on the same folds."""
    return solver.reads_any_epoch and "paper" in protocols


def _first_fits(
    solver: Solver, protocols: Sequence[str], reports: Sequence[Report], n_folds: int, repeat: int, reads_other: bool
) -> list[Fit]:
    """What is trained before anything is chosen, layer by layer: outer probes, then the inner ones."""
    fits = []
    for layer in dict.fromkeys(layer for layer, _ in reports):
        own = [fold for at, fold in reports if at == layer]
        for protocol in protocols:
            if protocol == FIXED:
                choice = Choice(0, solver.last_epoch, solver.settings[0].learning_rate, solver.settings[0].weight_decay)
                fits += [Fit(layer, (fold,), (), fold, (choice,), repeat) for fold in own]
            elif protocol == "paper":
                fits += [Fit(layer, (f,), (f,), f if reads_other else None, None, repeat) for f in own]
            else:
                validated_on: dict[tuple[int, ...], list[int]] = {}
                for fold in own:
                    for other in solver.validation_folds(fold, n_folds):
                        validated_on.setdefault(tuple(sorted((fold, other))), []).append(other)
                fits += [
                    Fit(layer, pair, tuple(sorted(validated_on[pair])), None, None, repeat)
                    for pair in sorted(validated_on)
                ]
    return fits


def choose(
    data: ProbeData, folds: Folds, solver: Solver, fold_trials: Sequence[tuple[int, Trials]], metric: str | None
) -> tuple[Choice, ...]:
    """The setting of each variable that did best over these validation folds, for the mean of its best epochs there.

    By the mean loss; by `metric` of all their rows together where one is given, equal ones by loss. Of equals the
    first. A metric takes few values on few clips.
    """
    loss = torch.stack([trials.loss.nan_to_num(nan=float("inf")) for _, trials in fold_trials]).mean(0)
    every = torch.stack([trials.epoch for _, trials in fold_trials])
    best = loss.argmin(0).tolist() if metric is None else _best_by(metric, data, folds, fold_trials, loss)
    choices = []
    for variable, setting in enumerate(best):
        epochs, values = every[:, setting, variable], solver.settings[setting]
        choices.append(
            Choice(
                setting,
                max(1, round(float(epochs.double().mean()))),
                values.learning_rate,
                values.weight_decay,
                inner_probes=len(fold_trials),
                late=int((epochs > solver.last_epoch - solver.patience).sum()),
                loss=float(loss[setting, variable]),
                at_edge=_at_edge(values, solver.settings),
            )
        )
    return tuple(choices)


def _at_edge(chosen: Setting, settings: Sequence[Setting]) -> bool:
    """Whether a setting has the smallest or largest learning rate or weight decay of several that were tried."""
    for name in ("learning_rate", "weight_decay"):
        tried = sorted({getattr(setting, name) for setting in settings})
        if len(tried) > 1 and getattr(chosen, name) in (tried[0], tried[-1]):
            return True
    return False


def _best_by(
    metric: str, data: ProbeData, folds: Folds, fold_trials: Sequence[tuple[int, Trials]], loss: torch.Tensor
) -> list[int]:
    rows = np.concatenate([folds.rows(fold) for fold, _ in fold_trials])
    predictions = torch.cat([trials.prediction for _, trials in fold_trials], dim=1).double().numpy()
    clips, best, end = data.clips.iloc[rows], [], 0
    for number, variable in enumerate(data.variables):
        start, end = end, end + len(variable.components)
        value = KINDS[variable.kind].value
        assert value is not None, f"settings of {variable.kind} are chosen by loss alone"
        scores = [value(metric, clips, variable.targets[rows], own[:, start:end]) for own in predictions]
        best.append(max(range(len(scores)), key=lambda s: (scores[s], -float(loss[s, number]))))  # noqa: B023
    return best
