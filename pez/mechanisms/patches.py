"""Direction read at single places: per patch, across halves of the frame, far from the ball (C.5, Figure 18).

Features are `time_mean_patch`, [clips, places, d]; direction as (cos, sin), ridge probes, scored on held-out clips.
They are centred and not z-scored: where the ball hardly came in training, a feature hardly varied, and would be blown
up by a held-out ball that crosses the place. For the same reason readings of per_place are cut to [-1, 1], which cosine
and sine never leave: uncut, a few clips at the ball's own places make R^2 as low as -100.

    mean_pooled     the mean over places, as in the other experiments
    per_place       a probe for every place, its strength chosen on the next of the training folds
    pooled_patch    one probe for all places, trained on (clip, place) rows, nested
    left_to_right   (and right_to_left, top_to_bottom, bottom_to_top) pooled_patch of one half's places, read on the
                    other's: statistic `raw`, `standardised` (each half by its own mean and scale over training clips),
                    and `within`, the same half
    distance        per_place by how far a place is from the ball's nearest position, in patches
    places_K        the mean over K random places: how redundant they are

    patches_RUN.csv          layer readout statistic value low high
    patches_map_RUN.parquet  layer y x r2 of per_place
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pez.controls import BALLS, controls_for
from pez.errors import UserError
from pez.files import run_lock
from pez.mechanisms.runs import (
    DIRECTION,
    add_feature_arguments,
    add_run_arguments,
    ball_data,
    check_encoder,
    named,
    of_variable,
    scored,
    threads_for,
    write_results,
    zone_layers,
)
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds
from pez.probes.scores.bootstrap import BootstrapCurve, bootstrap_angular_error, bootstrap_r2, group_resamples
from pez.probes.scores.circular import predicted_angle
from pez.probes.scores.r2 import r2
from pez.probes.solvers.linear import linear_solver
from pez.probes.solvers.ridge import STRENGTHS, ridge_at
from pez.probes.validation.cross_validate import cross_validate, probe_name
from pez.progress import progress

CHUNK = 32  # places solved at once
HALVES = {
    "left_to_right": (1, False),
    "right_to_left": (1, True),
    "top_to_bottom": (0, False),
    "bottom_to_top": (0, True),
}
DISTANCES = (1.0, 2.0, 4.0, 8.0)  # patches: ends of the bins
FEW_PLACES = (1, 4, 16, 64)
Probes = dict[str, torch.Tensor]


def nested(data: ProbeData, folds: Folds) -> tuple[np.ndarray, Probes]:
    """Out-of-fold predictions [layers, clips, 2] of nested ridge probes, and their weights by `probe_name`."""
    probes: Probes = {}
    (predictions,) = cross_validate(data, (folds,), linear_solver("ridge"), ("nested",), probes=probes)
    return predictions.predicted[0], probes


def at_places(data: ProbeData, places: np.ndarray, mean: bool = False) -> ProbeData:
    """The data with the features of some places only: each place apart, or their mean."""
    index = torch.from_numpy(np.asarray(places))

    def features(layer: int) -> torch.Tensor:
        kept = data.features(layer)[:, index]
        return kept.float().mean(1) if mean else kept

    return dataclasses.replace(data, features=features)


def per_place(data: ProbeData, folds: Folds, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a ridge probe for every place: out-of-fold predictions [places, clips, 2], strengths [folds, places]."""
    features = data.features(layer)
    n_places = features.shape[1]
    predicted = np.full((n_places, len(features), 2), np.nan)
    strengths = np.zeros((folds.n_folds, n_places))
    for fold, (train, held) in enumerate(folds.splits()):
        judge = folds.rows((fold + 1) % folds.n_folds)
        rest = np.setdiff1d(train, judge)
        for first in range(0, n_places, CHUNK):
            places = slice(first, first + CHUNK)
            x, validation, y, _, _ = _at_places(data.norm_mode, features[:, places], data.targets, rest, judge)
            wanted = _at_places(data.norm_mode, features[:, places], data.targets, judge, judge, like=rest)[2]
            values, vectors = torch.linalg.eigh(x @ x.mT)
            coordinates, across = vectors.mT @ y, validation @ x.mT @ vectors
            error = [
                (across @ (coordinates / (values.clamp_min(0) + at)[..., None]) - wanted).square().sum((1, 2))
                for at in STRENGTHS
            ]
            chosen = torch.tensor(STRENGTHS, dtype=torch.float64)[torch.stack(error).argmin(0)]
            x, kept, y, y_mean, y_scale = _at_places(data.norm_mode, features[:, places], data.targets, train, held)
            weights = ridge_at(x, y.expand(len(x), *y.shape), chosen)
            predicted[places, held] = (kept @ weights * y_scale + y_mean).numpy()
            strengths[fold, places] = chosen
    return predicted, strengths


def _at_places(norm: str, features, targets: torch.Tensor, train, held, like=None):
    """Features [places, n, d] of training and held-out clips, normalised by training clips, and standardised targets
    with their mean and scale, as step 3 does it; `like`: clips to standardise targets by, if not the training's."""
    x, kept = (features[torch.from_numpy(rows)].double().transpose(0, 1) for rows in (train, held))
    mean, scale = x.mean(1, keepdim=True), 1.0
    if norm == "zscore":
        spread = (x - mean).square().mean(1, keepdim=True).sqrt()  # torch's own std takes ten times as long
        scale = torch.where(spread > 1e-9 * mean.abs().clamp_min(1e-12), spread, 1.0)
    reference = targets[torch.from_numpy(train if like is None else like)]
    y_mean, y_scale = reference.mean(0), reference.std(0, correction=0)
    y = (targets[torch.from_numpy(train)] - y_mean) / y_scale
    return (x - mean) / scale, (kept - mean) / scale, y, y_mean, y_scale


def read_places(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One probe's reading of every place, [clips, places, k], of raw features [clips, places, d], weight [k, d]."""
    return features.double() @ weight.double().T + bias.double()


def read_out_of_fold(data: ProbeData, folds: Folds, layer: int, probes: Probes) -> np.ndarray:
    """Every held-out clip's readings at every place, [clips, places, 2], by the probes of `nested`."""
    features = data.features(layer)
    read = np.full((*features.shape[:2], 2), np.nan)
    for fold, (_, held) in enumerate(folds.splits()):
        weight, bias = (probes[probe_name(data, layer, 0, fold, what)] for what in ("weight", "bias"))
        read[held] = read_places(features[torch.from_numpy(held)], weight, bias)
    return read


def transfer(data: ProbeData, folds: Folds, layer: int, source: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Readings of the pooled probe of places `source`, at them (`within`) and at `other`: [clips, places, 2] each."""
    one = dataclasses.replace(at_places(data, source), layers=(layer,))
    _, probes = nested(one, folds)
    features = data.features(layer).double()
    at_source, at_other = features[:, torch.from_numpy(source)], features[:, torch.from_numpy(other)]
    predicted = {name: np.full((len(features), n, 2), np.nan) for name, n in
             (("within", len(source)), ("raw", len(other)), ("standardised", len(other)))}  # fmt: skip
    for fold, (train, held) in enumerate(folds.splits()):
        weight, bias = (probes[probe_name(one, layer, 0, fold, what)] for what in ("weight", "bias"))
        held_source, held_other = at_source[torch.from_numpy(held)], at_other[torch.from_numpy(held)]
        predicted["within"][held] = read_places(held_source, weight, bias)
        predicted["raw"][held] = read_places(held_other, weight, bias)
        (m, s), (m2, s2) = (_moments(each[torch.from_numpy(train)]) for each in (at_source, at_other))
        predicted["standardised"][held] = read_places((held_other - m2) / s2 * s + m, weight, bias)
    return predicted


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = features.flatten(0, 1)
    mean = rows.mean(0)
    return mean, (rows - mean).square().mean(0).sqrt().clamp_min(1e-9)


def ball_distance(store, n_places: int) -> np.ndarray:
    """Distance of every place's centre from the ball's nearest position, in patches, [clips, places]."""
    side = round(n_places**0.5)
    size = store.settings["clip_set"]["settings"].get("resolution", 256)
    frames = store.frames
    centres = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)[:, ::-1] + 0.5
    distances = []
    for clip in store.clips["clip_id"]:
        path = frames.loc[frames["clip_id"] == clip, ["x_px", "y_px"]].to_numpy() * side / size
        distances.append(np.linalg.norm(path[:, None] - centres[None], axis=-1).min(0))
    return np.stack(distances)


# ---------------------------------------------------------------- scores


@dataclasses.dataclass
class Table:
    """Rows of patches_RUN.csv: scores with intervals over groups, of one curve."""

    named: dict
    targets: np.ndarray
    group: np.ndarray
    n_folds: int
    n_resamples: int
    seed: int
    rows: list[dict] = dataclasses.field(default_factory=list)

    def add(self, layer: int, readout: str, statistic: str, curve: BootstrapCurve | float) -> None:
        """A score of a layer; the first value of a curve."""
        row = {**self.named, "layer": layer, "readout": readout, "statistic": statistic}
        values = scored(curve, 0, self.n_resamples) if isinstance(curve, BootstrapCurve) else {"value": float(curve)}
        self.rows.append(row | values)

    def r2(self, predicted: np.ndarray, rows: np.ndarray | None = None) -> BootstrapCurve:
        """R^2 of predictions [layers, n, 2], for the clips or, with `rows` [n], for clips by number."""
        rows = np.arange(len(self.targets)) if rows is None else rows
        resamples = group_resamples(self.group[rows], max(self.n_resamples, 1), self.seed, self.n_folds)
        return bootstrap_r2(self.targets[rows], predicted, self.group[rows], resamples)

    def pooled(self, layer: int, readout: str, statistic: str, predicted: np.ndarray) -> None:
        """R^2 and mean angular error over (clip, place) rows of predictions [clips, places, 2]."""
        rows = np.repeat(np.arange(predicted.shape[0]), predicted.shape[1])
        flat = predicted.reshape(1, -1, 2)
        self.add(layer, readout, statistic, self.r2(flat, rows))
        angles = predicted_angle(self.targets[rows], "sincos"), predicted_angle(flat, "sincos")
        resamples = group_resamples(self.group[rows], max(self.n_resamples, 1), self.seed, self.n_folds)
        error = bootstrap_angular_error(*angles, self.group[rows], resamples)
        self.add(layer, readout, f"{statistic}_angle_mae", error)


def measure(
    data: ProbeData, folds: Folds, table: Table, maps: list[dict], distance: np.ndarray, focus: set[int], bar
) -> None:
    """All readouts of one curve; `distance` from the ball [clips, places], `focus` layers that are read with fewer
    places too."""
    pooled, _ = nested(at_places(data, np.arange(data.features(data.layers[0]).shape[1]), mean=True), folds)
    _, probes = nested(data, folds)
    for at, layer in enumerate(data.layers):
        features = data.features(layer)
        n_places, side = features.shape[1], round(features.shape[1] ** 0.5)
        table.add(layer, "mean_pooled", "r2", table.r2(pooled[[at]]))
        each = per_place(data, folds, layer)[0].clip(-1, 1)
        curve = table.r2(each)
        table.add(layer, "per_place", "r2_mean", curve.map(lambda rows: rows.mean(1, keepdims=True)))
        table.add(layer, "per_place", "r2_median", curve.map(lambda rows: np.median(rows, 1, keepdims=True)))
        table.add(layer, "per_place", "share_above_half", float((curve.estimate >= 0.5).mean()))
        for place, value in enumerate(curve.estimate):
            maps.append({**table.named, "layer": layer, "y": place // side, "x": place % side, "r2": value})
        table.pooled(layer, "pooled_patch", "r2", read_out_of_fold(data, folds, layer, probes))
        where = np.stack(np.unravel_index(np.arange(n_places), (side, side)))
        for name, (axis, backwards) in HALVES.items():
            near = np.flatnonzero((where[axis] < side / 2) != backwards)
            far = np.setdiff1d(np.arange(n_places), near)
            for statistic, read in transfer(data, folds, layer, near, far).items():
                table.pooled(layer, name, statistic, read)
        _by_distance(table, layer, each, distance)
        if layer in focus and not data.control:
            _few_places(table, data, folds, layer, table.seed)
        bar.update(1)


def _by_distance(table: Table, layer: int, each: np.ndarray, distance: np.ndarray) -> None:
    for low, high in zip((0.0, *DISTANCES), (*DISTANCES, np.inf)):
        clips, places = np.nonzero((distance >= low) & (distance < high))
        if len(set(table.group[clips])) > 2:
            name = f"{low:g}_to_{high:g}"
            table.add(layer, "distance", name, table.r2(each[places, clips][None], clips))


def _few_places(table: Table, data: ProbeData, folds: Folds, layer: int, seed: int) -> None:
    rng, n_places = np.random.default_rng(seed), data.features(layer).shape[1]
    one = dataclasses.replace(data, layers=(layer,))
    for k in [k for k in FEW_PLACES if k < n_places] + [n_places]:
        scores = []
        for _ in range(3 if k < n_places else 1):
            places = rng.choice(n_places, k, replace=False)
            scores.append(r2(table.targets, nested(at_places(one, places, mean=True), folds)[0][0]))
        table.add(layer, f"places_{k}", "r2_mean", float(np.mean(scores)))


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py patches`."""
    add_run_arguments(parser)
    allowed = [name for name in controls_for(BALLS) if name not in ("position", "reversed", "pixels")]
    add_feature_arguments(parser, "time_mean_patch", allowed)
    parser.set_defaults(norm_mode="center")


def main(args: argparse.Namespace) -> list[Path]:
    """Read direction at single places; the paths of the tables."""
    balls = ball_data(args)
    check_encoder(args, balls.store.settings)
    features = balls.main.features(balls.main.layers[0])
    if features.ndim != 3 or round(features.shape[1] ** 0.5) ** 2 != features.shape[1]:
        raise UserError(
            f"{balls.store.directory}, pooling {balls.pooling}: no square of places: extract with --pooling "
            "time_mean_patch"
        )
    zone = zone_layers(args.zone_layers, balls.store.depth)
    layers: Sequence[int] = balls.main.layers
    focus = {min(layers, key=lambda layer: abs(layer - wanted)) for wanted in (0, max(zone), balls.store.depth - 1)}
    distance = ball_distance(balls.store, features.shape[1])
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"), threads_for(balls.store):
        rows, maps = [], []
        with progress(total=sum(len(data.layers) for data in balls.all), description="patches", unit="layer") as bar:
            for data in balls.all:
                own = of_variable(data, DIRECTION)
                targets, n_folds = own.targets.numpy(), balls.folds.n_folds
                table = Table(named(data), targets, own.group, n_folds, args.bootstrap, args.seed)
                measure(own, balls.folds, table, maps, distance, focus, bar)
                rows += table.rows
        tables = {"patches.csv": rows, "patches_map.parquet": maps}
        return write_results(args, "patches", tables, {"zone": zone, **balls.about}, "nested", *balls.sizes)
