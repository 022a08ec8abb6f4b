"""Orthogonal probe sequences: how often a variable can be read, removed and read again (C.9 to C.11, Figures 22, 23).

At a layer: normalise the features X once by their training clips; train a linear probe; take the span of its weights
out of X; train again, until nothing is read. Nothing is standardised again on the way: dividing the axes by other
numbers would bring a removed direction back.

A round has two scores on held-out clips: `refit`, of the new probe on what it was trained for, and `stale`, of the same
probe after its own directions are gone, which can say little but its bias.

Probes: `ridge`, in closed form, its strength chosen once, before anything is removed, by nested cross-validation; and
`adam`, the paper's (Adam, learning rate 1e-3, weight decay 1e-4, 100 epochs for direction, 50 for others, batches of
64). Movies' possibility is read by least squares on 0 and 1 (ridge) or cross-entropy (adam).

A number K of rounds is the number before the first of PATIENCE failures of a rule in a row (RULES); dims = K times the
probe's outputs. It moves with probe, normalisation and rule, so it is not a dimension of anything: docs/mechanisms.md
says what it is for a planted code.

    sequence_RUN.csv            a row per curve, layer, variable, probe, fold and round
    sequence_dims_RUN.csv       ... and rule: K, dims, reached (False: the cap on rounds came first, K is at least
                                that), low and high of the folds
    sequence_sawtooth_RUN.csv   lag-1 autocorrelation of drops, share of power at period 2; of refit and stale curves
    sequence_null_RUN.csv       R^2 at one layer after as many random dimensions are removed (`inside` all of space or
                                the span of the data), and before and after all that is linear is erased at once
                                (`inside` leace, `reader` ridge or mlp: what the latter still reads is not linear)
    bases_RUN.safetensors       weights, biases and normalisation of every round: what `overlap` reads
"""

import argparse
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from pez.cli import COUNT, COUNT_OR_NONE
from pez.controls import BALLS, controls_for
from pez.errors import UserError
from pez.files import atomic_path, run_lock
from pez.mechanisms.runs import (
    DIRECTION,
    SPEED,
    BallData,
    add_feature_arguments,
    add_run_arguments,
    add_split_argument,
    ball_data,
    check_encoder,
    curve_name,
    movie_data,
    n_scored,
    named,
    of_variable,
    threads_for,
    write_results,
    zone_layers,
)
from pez.probes.data.probe_data import POSSIBLE, ProbeData, Variable
from pez.probes.folds import Folds
from pez.probes.scores.circular import angular_error, predicted_angle
from pez.probes.scores.possibility import auc
from pez.probes.scores.r2 import r2
from pez.probes.solvers.linear import linear_solver
from pez.probes.solvers.regression import row_regression
from pez.probes.solvers.ridge import ridge_at
from pez.probes.validation.cross_validate import cross_validate
from pez.progress import progress
from pez.store import FeatureStore, open_stores, state_index, tensor_name

PROBES = ("ridge", "adam")
NORMS = ("zscore", "center", "whiten", "shear")
SHEAR_SEED = 0
HIDDEN = 64
PATIENCE = 3
MAX_ROUNDS = 200
ADAM_EPOCHS = {DIRECTION: 100}  # others 50
ADAM_BATCH = 64
DEPENDENT = 1e-8  # of the largest diagonal entry of R: below it a column adds no direction
EXHAUSTED = 1e-10  # of the features' variance: what is left of a space that was taken out whole is rounding
ROUNDING = 1e-7  # of the largest weights so far: smaller ones point where rounding points, so nothing is removed
WITHIN_DEG = 15.0
CONTROLS = [name for name in controls_for(BALLS) if name not in ("position", "reversed")]
Fit = Callable[[torch.Tensor, int], torch.Tensor]  # features [L, n, d], round -> weights [L, d, o]


# ---------------------------------------------------------------- rounds


@dataclass
class Rounds:
    """The results of a sequence, in lists by round; L layers, d features, o outputs, m held-out clips.

    weights [L, d, o]; refit, stale [L, m, o] predictions; train [L, n, o]; leakage, variance_removed, rank [L]; beside
    [L, m, p]: of probes for other targets on the same features, where asked for.
    """

    weights: list[torch.Tensor] = dataclasses.field(default_factory=list)
    refit: list[torch.Tensor] = dataclasses.field(default_factory=list)
    stale: list[torch.Tensor] = dataclasses.field(default_factory=list)
    train: list[torch.Tensor] = dataclasses.field(default_factory=list)
    leakage: list[torch.Tensor] = dataclasses.field(default_factory=list)
    variance_removed: list[torch.Tensor] = dataclasses.field(default_factory=list)
    rank: list[torch.Tensor] = dataclasses.field(default_factory=list)
    beside: list[torch.Tensor] = dataclasses.field(default_factory=list)


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span `columns` [..., d, k]; a column that depends on those before it becomes zero."""
    q, r = torch.linalg.qr(columns)
    size = r.diagonal(dim1=-2, dim2=-1).abs()
    return q * (size > DEPENDENT * size.amax(-1, keepdim=True).clamp_min(1e-300))[..., None, :]


def removed(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Features [..., n, d] without the span of orthonormal columns [..., d, k]."""
    return x - (x @ q) @ q.mT


def remove_rounds(
    x: torch.Tensor,
    held: torch.Tensor,
    fit: Fit,
    max_rounds: int,
    finished: Callable[[Rounds], bool] = lambda rounds: False,
    beside: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Rounds:
    """The sequence of `fit` on `x` [L, n, d], read on `held` [L, m, d]; both centred by the means of `x`.

    finished: called after every round, ends the sequence. beside: features -> weights [L, d, p] of further probes.
    """
    rounds, total = Rounds(), x.square().sum((1, 2))
    largest = torch.zeros_like(total)
    basis = x.new_zeros(*x.shape[::2], 0)
    for number in range(max_rounds):
        alive = x.square().sum((1, 2)) > EXHAUSTED * total
        x, held = (torch.where(alive[:, None, None], each, 0.0) for each in (x, held))
        weights = fit(x, number)
        size = _norm(weights)
        largest = torch.maximum(largest, size)
        weights = torch.where((size > ROUNDING * largest)[:, None, None], weights, 0.0)
        rounds.train.append(x @ weights)
        rounds.refit.append(held @ weights)
        if beside is not None:
            rounds.beside.append(held @ beside(x))
        inside = basis.mT @ weights
        rounds.leakage.append(_norm(inside) / size.clamp_min(1e-300))
        clean = weights - basis @ inside
        clean = clean - basis @ (basis.mT @ clean)  # twice is enough (Parlett)
        own = orthonormal(clean)
        rounds.rank.append(own.square().sum((1, 2)).round())
        before = x.square().sum((1, 2))
        x, held = removed(x, own), removed(held, own)
        rounds.stale.append(held @ weights)
        rounds.variance_removed.append((before - x.square().sum((1, 2))) / total)
        rounds.weights.append(clean)
        basis = torch.cat([basis, own], -1)
        if finished(rounds):
            break
    return rounds


def leace(x: torch.Tensor, y: torch.Tensor, strength: float) -> torch.Tensor:
    """The map [d, d] that leaves features x @ map without covariance with `y`, and changes them least (LEACE).

    x [n, d] and y [n, k] are centred. Of all linear maps it has the smallest mean squared change; its rank falls short
    of d by that of the covariance, k. `strength` is added to the diagonal of x'x, which need not be invertible: the
    erasure is exact with any, the change the smallest with 0.
    """
    shared = x.T @ y
    moment = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    read = torch.linalg.solve(moment, shared)  # ridge's weights
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - read @ torch.linalg.pinv(shared.T @ read) @ shared.T


def shear(d: int) -> torch.Tensor:
    """An invertible map [d, d] that shears: ones on the diagonal, normal numbers of variance 1 / d above it."""
    generator = torch.Generator().manual_seed(SHEAR_SEED)
    return (
        torch.eye(d, dtype=torch.float64) + torch.randn(d, d, generator=generator, dtype=torch.float64).triu(1) / d**0.5
    )


def _norm(columns: torch.Tensor) -> torch.Tensor:
    return columns.square().sum((1, 2)).sqrt()


def ridge_fit(y: torch.Tensor, strength: torch.Tensor) -> Fit:
    """Ridge for centred targets [n, o], of strength [L]."""
    return lambda x, _number: ridge_at(x, y.expand(len(x), *y.shape), strength)


def adam_fit(y: torch.Tensor, epochs: int, seed: int, logistic: bool = False) -> Fit:
    """C.11's probe for targets [n, o]: Adam, PyTorch's initialisation; seeded by `seed` and the round.

    The layers are trained side by side, each on its own; its bias is trained with it and dropped with the centring.
    """

    def fit(x: torch.Tensor, number: int) -> torch.Tensor:
        layers, n, d = x.shape
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        bound = d**-0.5  # of torch.nn.Linear
        weight = ((torch.rand(layers, d, y.shape[1], generator=generator) * 2 - 1) * bound).to(x.device)
        bias = ((torch.rand(layers, 1, y.shape[1], generator=generator) * 2 - 1) * bound).to(x.device)
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimiser = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4)
        rows, targets = x.float(), y.float()
        for _ in range(epochs):
            order = torch.randperm(n, generator=generator).to(x.device)
            for batch in order.split(ADAM_BATCH):
                predicted = rows[:, batch] @ weight + bias
                wanted = targets[batch].expand_as(predicted)
                if logistic:
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(predicted, wanted, reduction="none")
                else:
                    loss = (predicted - wanted).square()
                optimiser.zero_grad()
                loss.mean((1, 2)).sum().backward()
                optimiser.step()
        return weight.detach().to(x.dtype)

    return fit


# ---------------------------------------------------------------- scores and rules


def metrics(variable: Variable, target: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Scores of a round on held-out clips, targets and predictions [m, o] in the variable's unit."""
    scores = {"r2": r2(target, prediction)}
    if variable.name == DIRECTION:
        errors = angular_error(predicted_angle(prediction, "sincos"), predicted_angle(target, "sincos"))
        return {**scores, "angle_mae": float(errors.mean()), "within_15": float((errors <= WITHIN_DEG).mean())}
    if variable.name == POSSIBLE:
        label = target[:, 0] > 0.5
        right = (prediction[:, 0] > 0.5) == label
        return {**scores, "accuracy": float(right.mean()), "auc": auc(prediction[:, 0], label)}
    return {**scores, "mae": float(np.abs(prediction - target).mean())}


def _c11(name: str, row: dict) -> bool:
    if name == DIRECTION:
        return row["r2"] < 0.1 or row["angle_mae"] > 80
    if name == POSSIBLE:
        return row["accuracy"] < 0.55 or row["auc"] < 0.55
    return row["r2"] < 0.05 or row["mae"] > 0.9 * row["baseline_mae"]


def _fig22(name: str, row: dict) -> bool:
    if name == POSSIBLE:
        return row["accuracy"] < 0.55
    return row["r2"] < (0.3 if name == DIRECTION else 0.1)


RULES: dict[str, Callable[[str, dict], bool]] = {  # (variable, a round's scores) -> whether it failed
    "c11": _c11,  # the paper's text
    "fig22": _fig22,  # the caption of its Figure 22
    "one_rule": lambda name, row: row["r2"] < 0.1,  # the same for every variable
    "half": lambda name, row: row["r2"] < max(row["first_r2"] / 2, 0.0),  # a first R^2 below 0 has no half
}


def count(failed: Sequence[bool]) -> tuple[int, bool]:
    """Rounds before the first of PATIENCE failures in a row, and whether there was one."""
    for first in range(len(failed) - PATIENCE + 1):
        if all(failed[first : first + PATIENCE]):
            return first, True
    return len(failed), False


def sawtooth(values: Sequence[float]) -> tuple[float, float]:
    """Lag-1 autocorrelation of the drops of a curve, and the share of their power at period 2. NaN under 4 rounds.

    Drops that alternate have the first at -1 and the second at 1; noise of independent levels has -1/2.
    """
    drops = -np.diff(np.asarray(values, dtype=np.float64))
    drops = drops - drops.mean() if len(drops) else drops
    power = float(np.square(drops).sum())
    if len(drops) < PATIENCE or power == 0:
        return float("nan"), float("nan")
    signs = np.where(np.arange(len(drops)) % 2, -1.0, 1.0)
    return float((drops[1:] * drops[:-1]).sum() / power), float((signs @ drops) ** 2 / len(drops) / power)


# ---------------------------------------------------------------- one fold of a ProbeData


@dataclass(frozen=True)
class Prepared:
    """A fold's features of some layers, normalised by training clips, and standardised targets.

    x [L, n, d], held [L, m, d]; y [n, o]; target_mean, target_scale [o]; mean, scale [L, d]; rows: (train, held out).
    """

    x: torch.Tensor
    held: torch.Tensor
    y: torch.Tensor
    target_mean: torch.Tensor
    target_scale: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    rows: tuple[np.ndarray, np.ndarray]

    def read(self, prediction: torch.Tensor) -> np.ndarray:
        """Standardised predictions in the variable's unit."""
        return (prediction * self.target_scale + self.target_mean).cpu().numpy()


def scaling_of(norm: str) -> str:
    """How features are scaled; `whiten` and `shear` turn them after that."""
    return "zscore" if norm in ("whiten", "shear") else norm


def prepared(data: ProbeData, train: np.ndarray, held: np.ndarray, norm: str, device: str = "cpu") -> Prepared:
    """Features of every layer of `data`, with one variable, for training on rows `train` and reading on `held`."""
    regressions = []
    for layer in data.layers:
        features = data.features(layer).double().to(device)
        if features.ndim != 2:
            raise UserError(f"{data.name}: patches are kept apart: choose a --pooling with one vector a clip")
        normalise = scaling_of(norm)
        regressions.append(
            row_regression(features, data.targets, train, held, normalise=normalise, gram=False, dtype=torch.float64)
        )
    x, kept = (torch.stack([getattr(each, name) for each in regressions]) for name in ("rows", "evaluation"))
    first = regressions[0]
    if norm == "whiten":
        _, values, vectors = torch.linalg.svd(x, full_matrices=False)
        used = values > 1e-6 * values.amax(-1, keepdim=True)
        turn = vectors.mT * torch.where(used, x.shape[1] ** 0.5 / values, 0.0)[..., None, :]
        x, kept = x @ turn, kept @ turn
    if norm == "shear":
        turn = shear(x.shape[-1]).to(x.device)
        x, kept = x @ turn, kept @ turn
    mean, scale = (
        torch.stack([getattr(each, name) for each in regressions]) for name in ("feature_mean", "feature_scale")
    )
    return Prepared(x, kept, first.y.T.double(), first.target_mean, first.target_scale, mean, scale, (train, held))


def ridge_strengths(data: ProbeData, folds: Folds) -> dict[tuple[int, int], float]:
    """By layer and fold: the strength that nested cross-validation chooses, of the first variable."""
    plain = dataclasses.replace(data, norm_mode=scaling_of(data.norm_mode))
    predictions = cross_validate(plain, (folds,), linear_solver("ridge"), ("nested",))[0]
    return {(layer, fold): choice.weight_decay for (_, layer, fold), choice in predictions.choices.items()}


@dataclass(frozen=True)
class Sequenced:
    """A sequence of one ProbeData, fold and probe: rows of the table, and tensors for the bases file, by name."""

    rows: list[dict]
    tensors: dict[str, torch.Tensor]


def sequence_fold(
    data: ProbeData,
    fold_number: int,
    train: np.ndarray,
    held: np.ndarray,
    strengths: dict[tuple[int, int], float],
    *,
    probe: str,
    norm: str,
    max_rounds: int,
    seed: int = 0,
    beside: Variable | None = None,
    device: str = "cpu",
) -> Sequenced:
    """One variable's sequence over all layers of a fold; `beside`: read too, on the same features, each round."""
    (variable,) = data.variables
    ready = prepared(data, train, held, norm, device)
    strength = torch.tensor([strengths[layer, fold_number] for layer in data.layers], dtype=torch.float64)
    strength = strength.to(ready.x.device)
    logistic = variable.name == POSSIBLE and probe == "adam"
    if probe == "ridge":
        fit = ridge_fit(ready.y, strength)
    else:
        labels = torch.from_numpy(variable.targets[train]).to(ready.x.device)
        fit = adam_fit(labels if logistic else ready.y, ADAM_EPOCHS.get(variable.name, 50), seed, logistic)
    target, baseline = variable.targets[held], variable.targets[train].mean(0)
    baseline_mae = float(np.abs(target - baseline).mean())
    read = ready.read if not logistic else lambda logits: logits.sigmoid().cpu().numpy()
    scores: list[list[dict]] = []  # by round, layer
    failures: dict[str, list[list[bool]]] = {rule: [] for rule in RULES}

    def finished(rounds: Rounds) -> bool:
        by_layer = [metrics(variable, target, each) for each in read(rounds.refit[-1])]
        for layer, row in enumerate(by_layer):
            row |= {"baseline_mae": baseline_mae, "first_r2": scores[0][layer]["r2"] if scores else row["r2"]}
        scores.append(by_layer)
        for rule, failed in RULES.items():
            failures[rule].append([failed(variable.name, row) for row in by_layer])
        return all(
            count([each[layer] for each in failures[rule]])[1] for rule in RULES for layer in range(len(data.layers))
        )

    extra = None
    if beside is not None:
        other = torch.from_numpy(beside.targets[train]).to(ready.x.device)
        mean, scale = other.mean(0), other.std(0, correction=0)
        extra = ridge_fit((other - mean) / scale, strength)
    most = min(max_rounds, ready.x.shape[-1] // ready.y.shape[1], len(train) - 1)
    rounds = remove_rounds(ready.x, ready.held, fit, most, finished, None if extra is None else lambda x: extra(x, 0))
    rows, named = [], {"variable": variable.name, "probe": probe, "norm": norm, "fold": fold_number}
    dims = torch.stack(rounds.rank).cumsum(0)
    training = variable.targets[train]
    for number, (stale, fitted) in enumerate(zip(rounds.stale, rounds.train)):
        stale, fitted = read(stale), read(fitted)
        for at, layer in enumerate(data.layers):
            row = {"layer": layer, **named, "round": number, "dims_removed": int(dims[number, at])}
            row |= {"rank": int(rounds.rank[number][at]), **scores[number][at]}
            row |= {f"stale_{key}": value for key, value in metrics(variable, target, stale[at]).items()}
            row["train_r2"] = r2(training, fitted[at])
            row["leakage"] = float(rounds.leakage[number][at])
            row["variance_removed"] = float(rounds.variance_removed[number][at])
            if extra is not None:
                guess = (rounds.beside[number][at] * scale + mean).cpu().numpy()
                row["collateral_r2"] = r2(beside.targets[held], guess)
            rows.append(row)
    tensors = {"weight": torch.stack(rounds.weights, 1).mT, "mean": ready.mean, "scale": ready.scale}
    tensors |= {"target_mean": ready.target_mean, "target_scale": ready.target_scale}
    return Sequenced(rows, tensors)


def basis_name(curve: str, variable: str, probe: str, layer: int, fold: int, what: str) -> str:
    """Name of a tensor in bases_RUN.safetensors; `curve` as `curve_name` names it.

    weight [rounds, outputs, d], each round's without what lies in earlier rounds, for features less `mean` over `scale`
    [d], giving targets less `target_mean` over `target_scale` [outputs].
    """
    return f"{curve}.{variable}.{probe}.layer_{layer:02d}.fold_{fold}.{what}"


# ---------------------------------------------------------------- tables


KEYS = ["control", "control_seed", "layer", "variable", "probe", "norm", "n_clips", "n_groups", "protocol"]


def dims_table(rounds: pd.DataFrame) -> pd.DataFrame:
    """K under every rule: the mean over folds, `low` and `high` the smallest and largest of them."""
    rows = []
    for key, own in rounds.groupby(KEYS, sort=False):
        outputs = 2 if own["variable"].iloc[0] == DIRECTION else 1
        for rule, failed in RULES.items():
            counts = []
            for _, fold in own.groupby("fold"):
                ordered = fold.sort_values("round").to_dict("records")
                counts.append(count([failed(own["variable"].iloc[0], row) for row in ordered]))
            rounds_of, reached = zip(*counts)
            k = float(np.mean(rounds_of))
            row = {"rule": rule, "K": k, "dims": outputs * k, "reached": all(reached)}
            rows.append(
                {**dict(zip(KEYS, key)), **row, "low": min(rounds_of), "high": max(rounds_of), "n_folds": len(counts)}
            )
    return pd.DataFrame(rows)


def sawtooth_table(rounds: pd.DataFrame) -> pd.DataFrame:
    """`sawtooth` of R^2, the mean over folds, of the refit, the stale and the interleaved curve."""
    rows = []
    for key, own in rounds.groupby(KEYS, sort=False):
        for curve in ("refit", "stale", "interleaved"):
            by_fold = []
            for _, fold in own.groupby("fold"):
                refit, stale = (fold.sort_values("round")[name].to_numpy() for name in ("r2", "stale_r2"))
                both = np.stack([refit, stale], 1).ravel()
                by_fold.append(sawtooth({"refit": refit, "stale": stale, "interleaved": both}[curve]))
            lag, power = (
                np.nanmean(np.asarray(by_fold + [(np.nan, np.nan)]), axis=0)
                if np.isfinite(by_fold).any()
                else (np.nan,) * 2
            )
            rows.append({**dict(zip(KEYS, key)), "curve": curve, "lag1_of_drops": lag, "power_at_period_2": power})
    return pd.DataFrame(rows)


def random_removal(
    ready: Prepared, variable: Variable, strength: float, dims: Sequence[int], n_draws: int, seed: int
) -> list[dict]:
    """R^2 of a refit after random dimensions are removed, in all of space and inside the span of the training clips.

    `ready` of one layer.
    """
    generator = torch.Generator().manual_seed(seed)
    x, held, y = ready.x[0], ready.held[0], ready.y
    span = torch.linalg.svd(x, full_matrices=False)[2]  # [r, d]
    span, target, rows = span[: torch.linalg.matrix_rank(x)], variable.targets[ready.rows[1]], []
    at = torch.tensor(strength, dtype=torch.float64)
    for kind, frame in (("space", None), ("data", span)):
        for n_dims in dims:
            width = x.shape[1] if frame is None else len(frame)
            if n_dims >= width:
                continue
            scores = []
            for _ in range(n_draws):
                drawn = torch.randn(width, n_dims, generator=generator, dtype=torch.float64).to(x.device)
                q = torch.linalg.qr(drawn if frame is None else frame.T @ drawn)[0]
                weights = ridge_at(removed(x, q), y, at)
                scores.append(r2(target, ready.read(removed(held, q) @ weights)))
            low, high = np.quantile(scores, [0.025, 0.975])
            named = {"inside": kind, "reader": "ridge", "dims_removed": n_dims, "n_draws": n_draws}
            rows.append({**named, "r2": float(np.mean(scores)), "low": float(low), "high": float(high)})
    return rows


def erased(ready: Prepared, variable: Variable, strength: float, seed: int) -> list[dict]:
    """R^2 of a ridge probe and of an MLP (64 hidden units) before and after `leace`, each fitted anew; one layer."""
    x, held, target = ready.x[0], ready.held[0], variable.targets[ready.rows[1]]
    at, rows = torch.tensor(strength, dtype=torch.float64), []
    erase = leace(x, ready.y, strength)
    for dims, turn in ((0, torch.eye(len(erase), dtype=x.dtype, device=x.device)), (ready.y.shape[1], erase)):
        own, kept = x @ turn, held @ turn
        network = small_mlp(own.cpu(), ready.y.cpu(), seed)
        for reader, guess in (("ridge", kept @ ridge_at(own, ready.y, at)), ("mlp", network(kept.cpu()).to(x.device))):
            score = r2(target, ready.read(guess))
            named = {"inside": "leace", "reader": reader, "dims_removed": dims, "n_draws": 1}
            rows.append({**named, "r2": score, "low": np.nan, "high": np.nan})
    return rows


def small_mlp(x: torch.Tensor, y: torch.Tensor, seed: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """A network of HIDDEN hidden units fitted on x [n, d], y [n, k]: features [m, d] -> readings [m, k]."""
    network = MLPRegressor(hidden_layer_sizes=(HIDDEN,), alpha=1.0, solver="lbfgs", max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(x.numpy(), y.numpy() if y.shape[1] > 1 else y[:, 0].numpy())
    return lambda rows: torch.from_numpy(network.predict(rows.numpy()).reshape(len(rows), -1).astype(np.float64))


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py sequence`."""
    add_run_arguments(parser)
    add_feature_arguments(parser, "mean", CONTROLS)
    add_split_argument(parser)
    parser.set_defaults(norm_mode="zscore")
    parser.add_argument("--norms", nargs="+", default=["zscore"], choices=NORMS, help="normalisations, each on its own")
    parser.add_argument("--probe", nargs="+", default=["ridge"], choices=PROBES, help="probes, each on its own")
    parser.add_argument("--max-rounds", type=COUNT, default=MAX_ROUNDS, help="cap on rounds")
    parser.add_argument(
        "--null-draws", type=COUNT_OR_NONE, default=200, help="random removals at the zone's last layer; 0: none"
    )
    parser.add_argument(
        "--intphys-root", type=Path, help="features of movies: possible or impossible as a third variable"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")


def movies_as_data(root: Path, balls: BallData, args: argparse.Namespace) -> tuple[ProbeData, Folds]:
    """A movie store's data whose layers are those of the ball features' capture, and folds as the options say.

    Either capture of a state serves: layer i of resid_post is layer i + 1 of resid_pre. UserError if the features come
    from another encoder.
    """
    stores = {name: store for name, store in open_stores(root).items() if POSSIBLE in store.clips}
    if not stores:
        raise UserError(
            f"{root} has no features of possible and impossible movies: make them with step_intphys_probe.py"
        )
    store = next(iter(stores.values()))
    for name in ("weights_sha256", "resolution"):
        movie_value, ball_value = store.settings.get(name), balls.store.settings.get(name)
        if movie_value != ball_value:
            raise UserError(
                f"{store.directory} is of {name} {movie_value}, the ball features of {ball_value}: "
                "give features of one encoder"
            )
    pooling = store.check(store.settings["captures"][0], args.pooling)
    asked = args.layers or range(store.depth)
    stored_names = {layer: _other_name(store, state_index(args.residual_capture, layer)) for layer in asked}
    stored_names = {layer: named for layer, named in stored_names.items() if named is not None}
    return movie_data(
        store,
        tuple(stored_names),
        lambda layer: store.layer(stored_names[layer][0], pooling, stored_names[layer][1]),
        args.folds,
        args.seed,
        args.split,
    )


def _other_name(store: FeatureStore, state: int) -> tuple[str, int] | None:
    """(capture, layer) under which a store has a state; None if it lacks it."""
    for capture in store.settings["captures"]:
        layer = state - state_index(capture, 0)
        if 0 <= layer < store.depth and tensor_name("", state) == tensor_name("", state_index(capture, layer)):
            return capture, layer
    return None


def main(args: argparse.Namespace) -> list[Path]:
    """Run the sequences; the paths of the tables."""
    if args.max_rounds < PATIENCE + 1:
        raise UserError(f"--max-rounds must be at least {PATIENCE + 1}; got {args.max_rounds}: give more")
    balls = ball_data(args)
    check_encoder(args, balls.store.settings)
    zone = zone_layers(args.zone_layers, balls.store.depth)
    jobs = []
    for data in balls.all:
        for name in (SPEED, DIRECTION):
            other = of_variable(data, DIRECTION if name == SPEED else SPEED).variables[0]
            jobs.append((of_variable(data, name), balls.folds, other))
    if args.intphys_root is not None:
        jobs.append((*movies_as_data(args.intphys_root, balls, args), None))
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"), threads_for(balls.store):
        rows, tensors = run_sequences(args, jobs)
        null = _null(args, balls, zone)
        rounds = pd.DataFrame(rows)
        tables = {"sequence.csv": rounds}
        tables |= {"sequence_dims.csv": dims_table(rounds), "sequence_sawtooth.csv": sawtooth_table(rounds)}
        tables |= {"sequence_null.csv": null} if len(null) else {}
        bases = args.results_dir / f"bases_{args.run_name}.safetensors"
        with atomic_path(bases) as temporary:
            save_file({key: value.float().contiguous() for key, value in tensors.items()}, temporary)
        about = {"zone": zone, **balls.about}
        return [bases, *write_results(args, "sequence", tables, about, "nested", *balls.sizes)]


def run_sequences(args, jobs) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Rows and tensors of the sequences of all jobs (ProbeData of one variable, Folds, a variable to read beside)."""
    rows: list[dict] = []
    tensors: dict[str, torch.Tensor] = {}
    kinds = [(probe, norm) for probe in args.probe for norm in args.norms]
    total = sum(n_scored(folds, args.split) for _, folds, _ in jobs) * len(kinds)
    with progress(total=total, description="probe sequences", unit="fold") as bar:
        for data, folds, beside in jobs:
            curve = curve_name(data.control, data.control_seed)
            of_curve = named(data, n_clips=len(data.clips), n_groups=folds.n_groups)
            for probe, norm in kinds:
                own = dataclasses.replace(data, norm_mode=norm)
                strengths = ridge_strengths(own, folds)
                scored_folds = itertools.islice(folds.splits(), n_scored(folds, args.split))
                for fold, (train, held) in enumerate(scored_folds):
                    options = {"probe": probe, "norm": norm, "max_rounds": args.max_rounds, "seed": args.seed}
                    sequenced = sequence_fold(
                        own, fold, train, held, strengths, beside=beside, device=args.device, **options
                    )
                    protocol = "nested" if probe == "ridge" else "fixed"
                    rows += [{**of_curve, "protocol": protocol, **row} for row in sequenced.rows]
                    if norm == args.norms[0] == scaling_of(norm):  # weights of turned features are of other axes
                        for at, layer in enumerate(data.layers):
                            for what, value in sequenced.tensors.items():
                                value = value if what.startswith("target") else value[at]
                                tensors[basis_name(curve, data.variables[0].name, probe, layer, fold, what)] = value
                    bar.update(1)
    return rows, tensors


def _null(args, balls, zone: Sequence[int]) -> pd.DataFrame:
    """Random removals and the linear erasure, at the zone's last layer or the layer probed that is nearest to it."""
    if args.null_draws == 0:
        return pd.DataFrame()
    layer = min(balls.main.layers, key=lambda layer: abs(layer - max(zone)))
    rows = []
    for name in (SPEED, DIRECTION):
        data = dataclasses.replace(of_variable(balls.main, name), layers=(layer,), norm_mode=args.norms[0])
        strengths = ridge_strengths(data, balls.folds)
        train, held = next(balls.folds.splits())
        ready = prepared(data, train, held, args.norms[0], args.device)
        dims = [each for each in (2, 5, 10, 20, 40, 80, 160, 320) if each < min(ready.x.shape[1:])]
        scores = random_removal(ready, data.variables[0], strengths[layer, 0], dims, args.null_draws, args.seed)
        scores += erased(ready, data.variables[0], strengths[layer, 0], args.seed)
        rows += [{"layer": layer, "variable": name, "norm": args.norms[0], "fold": 0, **row} for row in scores]
    return pd.DataFrame(rows)
