"""Edits of stored features that set the direction which probes read (section 7.2, C.12, Figure 24), and what is left of
them once the network runs on.

Clips are split in three, groups whole, and rotated: the basis (probe sequence, class means) is fitted on three fifths,
the judge on one, the last is edited. Nothing that is quoted is judged by a probe that saw the edited clips.

    x* = x + pinv(W) (t - b - W x)     the least edit after which all rows of W, b read t

Arms, each for all 8 directions as targets:

    probes           W: the first N probes of the sequence, each without what lies in earlier ones' span
    covariance_edit  x + S W'(W S W')^-1 (t - b - W x): the first probe alone, along the features' covariance S (the
                     ridge's strength on its diagonal)
    mean_difference  x + mean(target) - mean(own direction): at most 7 dimensions
    plane_rotation   turned, in the plane of the directions' first harmonic, by target less own angle there
    mlp_ring         set, in the plane of the first harmonic of what the layer's MLP adds, to the target's mean there:
                     section 7.1's claim that this does not steer. The plane is that of `tuning --site fc2` of this run
                     (all clips, edited ones too); left out without it
    transplant       another clip: of the target's direction and the same speed, from the nearest start
    held_out_target  `probes`, fitted without clips of the target's direction

Judges: `split` (ridge on the judge's clips: quote this one), `mlp` (64 hidden units, on the same), `paper` (ridge
fitted on the edited clips themselves, as in C.12), `own` (the first probe of the sequence: circular).

`--split paper70` is C.12's own design: 30 % of clips, drawn at random, are edited once, the basis has all others, and
`paper` and `own` judge.

Nulls, `--null-draws` of each, by the `split` judge (with --split by `paper`): `random_sequence` (a sequence of N
probes fitted inside a random subspace of 2N dimensions, and its own least edit: the fair one), `random_probe` (one
probe inside it), and `random_direction` and `random_clip` (edits as long as the probes', in a random direction or
toward a random clip).

    steering_RUN.csv              layer arm n_probes rank judge target ("all" or degrees) mae_target
                                  mae_truth low high radius edit_ratio edit_neighbours off_target_speed wrong_way
                                  null_mean null_p (of random_sequence, where there is one)
    steering_nulls_RUN.csv        layer null n_probes mae_target low high p (of the probes' arm against it)
    steering_downstream_RUN.csv   with --downstream: edit_layer read_layer arm n_probes mae_target retained

These are edits of stored features. Only `--downstream`, which adds them to every token of the state and runs the later
blocks, tests what the network does with them.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.cli import COUNT_OR_NONE, Number
from pez.controls import BALLS, controls_for
from pez.encoder.arguments import encoder_from_arguments
from pez.encoder.attention import run_from
from pez.encoder.capture import captured_states
from pez.errors import UserError
from pez.files import run_lock
from pez.mechanisms.passes import ClipPass, add_clip_arguments, clip_source
from pez.mechanisms.runs import (
    DIRECTION,
    add_feature_arguments,
    add_run_arguments,
    add_split_argument,
    ball_data,
    check_encoder,
    check_same,
    n_scored,
    named,
    of_variable,
    record_path,
    threads_for,
    write_results,
    zone_layers,
)
from pez.mechanisms.sequence import prepared, remove_rounds, ridge_fit, ridge_strengths, small_mlp
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.bootstrap import bootstrap_mean, group_resamples
from pez.probes.scores.circular import angular_error
from pez.probes.solvers.ridge import STRENGTHS, ridge_at
from pez.progress import progress
from pez.records import MechanismRecord, read_record
from pez.store import state_index
from pez.tables import unchecked_parquet

N_PROBES = (1, 2, 3, 5, 8, 10, 15, 20, 25)
TARGETS = tuple(45.0 * step for step in range(8))
PROTOCOLS = {"split": "nested", "mlp": "nested", "paper": "paper", "own": "nested"}  # of the judges
JUDGES = tuple(PROTOCOLS)
QUOTED = {True: "split", False: "paper"}  # whether the judge has clips of its own
DOWNSTREAM_PROBES = (1, 5, 20)
DOWNSTREAM_TARGETS = (0.0, 90.0, 225.0)


def least_edit(x: torch.Tensor, weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The shortest change [n, d] of rows `x` after which x @ weights is `target` [n, k] (weights [d, k], no bias)."""
    return (target - x @ weights) @ torch.linalg.pinv(weights)


def covariance_edit(x: torch.Tensor, weights: torch.Tensor, target: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
    """The same, shortest in the metric of `cov` [d, d]: along how the features vary together."""
    along = cov @ weights
    return torch.linalg.solve(weights.T @ along, (target - x @ weights).T).T @ along.T


@dataclass(frozen=True)
class Split:
    """A layer's clips in three parts, normalised by the basis's clips: features [., d] and their labels.

    `judged_apart`: the judge has clips of its own; else they are the edited ones, and the basis has all others. `code`
    maps degrees [n] to standardised (cos, sin) [n, 2]; `angle` maps back, to degrees.
    """

    basis: torch.Tensor
    judge: torch.Tensor
    steered: torch.Tensor
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    y: torch.Tensor
    target_mean: torch.Tensor
    target_scale: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    strength: float
    degrees: np.ndarray  # of all clips
    speed: np.ndarray
    starts: np.ndarray
    judged_apart: bool = True

    def code(self, degrees) -> torch.Tensor:
        """Standardised (cos, sin) of directions."""
        radians = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float64))
        return (torch.stack([radians.cos(), radians.sin()], -1) - self.target_mean) / self.target_scale

    def angle(self, reading: torch.Tensor) -> np.ndarray:
        """Directions in degrees of standardised readings [..., 2]."""
        x, y = (reading * self.target_scale + self.target_mean).unbind(-1)
        return torch.rad2deg(torch.atan2(y, x)).numpy()

    def radius(self, reading: torch.Tensor) -> np.ndarray:
        """Length of readings: near 0 their angle is noise."""
        return (reading * self.target_scale + self.target_mean).norm(dim=-1).numpy()

    def part(self, number: int) -> np.ndarray:
        """Degrees of one part's clips."""
        return self.degrees[self.rows[number]]


def split_clips(
    data: ProbeData, clips: pd.DataFrame, folds: Folds, fold: int, strength: float, judged_apart: bool = True
) -> Split:
    """Fold `fold` is edited; the next one judges, or, unless `judged_apart`, the edited one; the others are the basis.

    `data` of one layer, with direction.
    """
    steered = folds.rows(fold)
    judge = folds.rows((fold + 1) % folds.n_folds) if judged_apart else steered
    basis = np.setdiff1d(np.arange(len(folds.fold)), np.concatenate([steered, judge]))
    ready = prepared(data, basis, np.concatenate([judge, steered]), "zscore")
    starts = clips[["start_x_m", "start_y_m"]].to_numpy(dtype=np.float64)
    return Split(
        ready.x[0],
        ready.held[0, : len(judge)],
        ready.held[0, len(judge) :],
        (basis, judge, steered),
        ready.y,
        ready.target_mean,
        ready.target_scale,
        ready.mean[0],
        ready.scale[0],
        strength,
        clips["direction_deg"].to_numpy(dtype=np.float64),
        clips["magnitude"].to_numpy(dtype=np.float64),
        starts,
        judged_apart,
    )


def probes_of(x: torch.Tensor, y: torch.Tensor, strength: float, most: int) -> list[torch.Tensor]:
    """The first `most` probes of the sequence, weights [d, 2] each."""
    at = torch.tensor([strength], dtype=torch.float64)
    return [each[0] for each in remove_rounds(x[None], x[None, :1], ridge_fit(y, at), most).weights]


# ---------------------------------------------------------------- arms: (split, target in degrees) -> edits [n, d]


def arms_of(
    split: Split, probes: list[torch.Tensor], counts, ring: torch.Tensor | None = None
) -> dict[tuple[str, int, int], Callable]:
    """(arm, number of probes, rank) -> a function from a target in degrees to edits of the steered clips.

    ring [2, d]: cosine and sine components of the MLP's output, in raw features.
    """
    x, own = split.steered, split.part(2)
    means = {value: split.basis[split.part(0) == value].mean(0) for value in np.unique(split.part(0))}
    cov = split.basis.T @ split.basis + split.strength * torch.eye(x.shape[1], dtype=torch.float64)

    def of_probes(n: int) -> Callable:
        weights = torch.cat(probes[:n], 1)
        return lambda target: least_edit(x, weights, split.code(np.full(len(x), target)).repeat(1, n))

    def mean_difference(target: float) -> torch.Tensor:
        if target not in means:
            return torch.full_like(x, float("nan"))
        return torch.stack([means[target] - means.get(value, x.new_full((), float("nan"))) for value in own])

    angles = torch.deg2rad(torch.tensor(sorted(means)))
    centres = torch.stack([means[value] for value in sorted(means)])
    harmonic = torch.stack([angles.cos(), angles.sin()]).double() @ centres / len(means) * 2  # [2, d]
    plane, turn = torch.linalg.qr(harmonic.T)  # harmonic' = plane turn

    def plane_rotation(target: float) -> torch.Tensor:
        inside = x @ plane @ torch.linalg.inv(turn).T  # (cos, sin) as the plane has them
        length = inside.norm(dim=1, keepdim=True)
        wanted = torch.tensor([np.cos(np.deg2rad(target)), np.sin(np.deg2rad(target))]) * length
        return (wanted - inside) @ harmonic

    def transplant(target: float) -> torch.Tensor:
        edits = torch.full_like(x, float("nan"))
        for row, clip in enumerate(split.rows[2]):
            alike = np.flatnonzero((split.part(0) == target) & (split.speed[split.rows[0]] == split.speed[clip]))
            if len(alike):
                away = np.linalg.norm(split.starts[split.rows[0][alike]] - split.starts[clip], axis=1)
                edits[row] = split.basis[alike[away.argmin()]] - x[row]
        return edits

    def held_out_target(n: int) -> Callable:
        def edit(target: float) -> torch.Tensor:
            others = split.part(0) != target
            rows, y = split.basis[torch.from_numpy(others)], split.y[torch.from_numpy(others)]
            centre, y_mean = rows.mean(0), y.mean(0)
            weights = torch.cat(probes_of(rows - centre, y - y_mean, split.strength, n), 1)
            wanted = (split.code(np.full(len(x), target)) - y_mean).repeat(1, n)
            return least_edit(x - centre, weights, wanted)

        return edit

    arms = {("probes", n, 2 * n): of_probes(n) for n in counts}
    middle = [n for n in counts if n in (1, 5, 10)]
    arms |= {("held_out_target", n, 2 * n): held_out_target(n) for n in middle}
    arms["covariance_edit", 1, 2] = lambda target: covariance_edit(
        x, probes[0], split.code(np.full(len(x), target)), cov
    )
    arms["mean_difference", 0, 7] = mean_difference
    arms["plane_rotation", 0, 2] = plane_rotation
    arms["transplant", 0, 0] = transplant
    if ring is not None:
        flat = torch.linalg.qr((ring / split.scale).T)[0]

        def mlp_ring(target: float) -> torch.Tensor:
            wanted = means.get(target, torch.full_like(x[0], float("nan")))
            return (wanted - x) @ flat @ flat.T

        arms["mlp_ring", 0, 2] = mlp_ring
    return arms


def ring_of(args: argparse.Namespace, layer: int) -> torch.Tensor | None:
    """Cosine and sine over directions of what the layer's MLP adds, averaged over tokens, [2, d], as `tuning` of this
    run measured it; None where it did not."""
    path = record_path(args.results_dir, args.run_name)
    tuning = read_record(path, MechanismRecord)["commands"].get("tuning", {}) if path.is_file() else {}
    if tuning.get("site") != "fc2" or layer not in tuning["layers"] or args.pooling != "mean":
        return None
    means = unchecked_parquet(args.results_dir / f"tuning_means_{args.run_name}.parquet", MechanismRecord.mend)
    means = means[(means["control"] == "") & (means["layer"] == layer)]
    wide = means.pivot_table(index="direction_deg", columns="unit", values="mean")
    radians = np.deg2rad(wide.index.to_numpy())
    return torch.from_numpy(np.stack([np.cos(radians), np.sin(radians)]) @ wide.to_numpy() * 2 / len(wide))


# ---------------------------------------------------------------- judges


def judge_strength(x: torch.Tensor, y: torch.Tensor, group: np.ndarray) -> float:
    """The ridge strength that reads held-out groups of these clips best."""
    fold = grouped_folds(group, min(4, len(set(group))))
    error = torch.zeros(len(STRENGTHS))
    for number in np.unique(fold):
        train, held = (torch.from_numpy(np.flatnonzero(each)) for each in (fold != number, fold == number))
        mean, y_mean = x[train].mean(0), y[train].mean(0)
        for place, strength in enumerate(STRENGTHS):
            at = torch.tensor(strength, dtype=torch.float64)
            weights = ridge_at(x[train] - mean, y[train] - y_mean, at)
            error[place] += ((x[held] - mean) @ weights + y_mean - y[held]).square().sum()
    return STRENGTHS[int(error.argmin())]


def linear_judge(x: torch.Tensor, y: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [d, k] and bias [k]."""
    at = torch.tensor(strength, dtype=torch.float64)
    weights = ridge_at(x - x.mean(0), y - y.mean(0), at)
    return weights, y.mean(0) - x.mean(0) @ weights


def judges_of(
    split: Split, group: np.ndarray, asked: Sequence[str] = JUDGES
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Judges by name: features [n, d] -> standardised (cos, sin) [n, 2]; `speed` -> m/s [n, 1]. `mlp` if asked for.

    `quoted` is the judge of the nulls: `split`, or `paper` where no clips are kept for a judge.
    """
    x, y = split.judge, split.code(split.part(1))
    strength = judge_strength(x, y, group[split.rows[1]])
    weights, bias = linear_judge(x, y, strength)
    seen, seen_bias = linear_judge(split.steered, split.code(split.part(2)), STRENGTHS[0])
    speed = torch.from_numpy(split.speed[split.rows[1]])[:, None]
    speed_weights, speed_bias = linear_judge(x, speed, judge_strength(x, speed, group[split.rows[1]]))
    judges = {
        "split": lambda rows: rows @ weights + bias,
        "paper": lambda rows: rows @ seen + seen_bias,
        "speed": lambda rows: rows @ speed_weights + speed_bias,
    }
    if "mlp" in asked:
        judges["mlp"] = small_mlp(x, y)
    judges["quoted"] = judges[QUOTED[split.judged_apart]]
    return judges


def judged(split: Split, judges: dict, arms: dict, probes: list[torch.Tensor]) -> pd.DataFrame:
    """A row per arm, judge, target and edited clip."""
    x, own, rows = split.steered, split.part(2), []
    neighbours = _neighbour_distance(split)
    speed_before = judges["speed"](x)
    speed_error = float((speed_before[:, 0] - torch.from_numpy(split.speed[split.rows[2]])).abs().mean())
    names = [name for name in JUDGES if name == "own" or name in judges]
    before = {name: x @ probes[0] if name == "own" else judges[name](x) for name in names}
    every = {("none", 0, 0): lambda target: torch.zeros_like(x), **arms}
    for (arm, n_probes, rank), edit_to in every.items():
        for target in TARGETS:
            edit = edit_to(target)
            known = edit.isfinite().all(1).numpy()
            edit = edit.nan_to_num()
            length = edit.norm(dim=1)
            moved = (judges["speed"](x + edit) - speed_before)[:, 0].abs() / max(speed_error, 1e-12)
            for judge in names:
                reading = (x + edit) @ probes[0] if judge == "own" else judges[judge](x + edit)
                error = angular_error(split.angle(reading), target)
                before_error = angular_error(split.angle(before[judge]), target)
                row = {
                    "row": split.rows[2],
                    "mae_target": error,
                    "mae_truth": angular_error(split.angle(reading), own),
                    "radius": split.radius(reading),
                    "edit_ratio": (length / x.norm(dim=1)).numpy(),
                    "edit_neighbours": length.numpy() / neighbours,
                    "off_target_speed": moved.numpy(),
                    "wrong_way": (error > before_error + 1e-9) * 1.0,
                }
                named = {"arm": arm, "n_probes": n_probes, "rank": rank, "judge": judge, "target": target}
                rows.append({name: np.broadcast_to(value, len(x))[known] for name, value in {**named, **row}.items()})
    return pd.DataFrame({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def _neighbour_distance(split: Split) -> float:
    """Median distance between basis clips whose directions are neighbours."""
    away = angular_error(split.part(0)[:, None], split.part(0)[None])
    near = np.argwhere((away > 0) & (away <= away[away > 0].min() + 1e-9))
    return float(np.median((split.basis[near[:, 0]] - split.basis[near[:, 1]]).norm(dim=1)))


def nulls_of(
    split: Split, judges: dict, probes: list, counts, n_draws: int, seed: int
) -> dict[tuple[str, int], np.ndarray]:
    """Mean error to the target by the quoted judge, over targets and clips, of every draw: (null, N) -> [n_draws]."""
    generator = torch.Generator().manual_seed(seed)
    x, d = split.steered, split.steered.shape[1]
    read = judges["quoted"]
    slope = read(torch.eye(d, dtype=torch.float64)) - read(torch.zeros(1, d, dtype=torch.float64))  # it is affine
    before, wanted = read(x), [split.code(np.full(len(x), target)) for target in TARGETS]

    def errors(changes: list[torch.Tensor]) -> np.ndarray:  # changes of the reading [draws, n, 2], by target
        by_target = [angular_error(split.angle(before + each), at) for each, at in zip(changes, TARGETS)]
        return np.mean(by_target, axis=(0, 2))

    frames = torch.randn(n_draws, d, min(2 * max(counts), d), generator=generator, dtype=torch.float64)
    frames = torch.linalg.qr(frames)[0]
    toward = {
        "random_direction": torch.randn(n_draws, len(x), d, generator=generator, dtype=torch.float64),
        "random_clip": split.basis[torch.randint(len(split.basis), (n_draws, len(x)), generator=generator)] - x,
    }
    steps = {name: each / each.norm(dim=-1, keepdim=True).clamp_min(1e-12) @ slope for name, each in toward.items()}
    strengths = torch.full((n_draws,), split.strength, dtype=torch.float64)
    nulls = {}
    for n in counts:
        lengths = [least_edit(x, torch.cat(probes[:n], 1), each.repeat(1, n)).norm(dim=1) for each in wanted]
        for name, step in steps.items():
            nulls[name, n] = errors([each[:, None] * step for each in lengths])
        inside = frames[..., : 2 * n]
        coordinates = split.basis @ inside
        rounds = remove_rounds(coordinates, coordinates[:, :1], ridge_fit(split.y, strengths), n)
        for name, used in (("random_sequence", n), ("random_probe", 1)):
            weights = inside @ torch.cat(rounds.weights[:used], -1)  # [draws, d, 2 used]
            pulled = torch.linalg.pinv(weights) @ slope
            nulls[name, n] = errors([(each.repeat(1, used) - x @ weights) @ pulled for each in wanted])
    return nulls


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py steer`."""
    add_run_arguments(parser)
    allowed = [name for name in controls_for(BALLS) if name not in ("position", "reversed", "pixels")]
    add_feature_arguments(parser, "mean", allowed)
    add_split_argument(parser)
    parser.add_argument("--layer", type=Number(int, least=0), help="edited (default: the zone's last)")
    parser.add_argument("--judge", nargs="+", choices=JUDGES, help="which of them judge (default: all; with --split "
                        "paper and own, which need no clips of their own)")  # fmt: skip
    parser.add_argument("--null-draws", type=COUNT_OR_NONE, default=200, help="draws of each null")
    parser.add_argument("--downstream", action="store_true", help="run the later blocks on edited states")
    parser.add_argument("--downstream-clips", type=COUNT_OR_NONE, default=24, help="edited clips that are run on")
    add_clip_arguments(parser)


def main(args: argparse.Namespace) -> list[Path]:
    """Steer; the paths of the tables."""
    balls = ball_data(args)
    check_encoder(args, balls.store.settings)
    layer = max(zone_layers(args.zone_layers, balls.store.depth)) if args.layer is None else args.layer
    if layer not in balls.main.layers:
        raise UserError(
            f"--layer {layer} is not among the layers of {balls.store.directory} that were asked for: name one of them"
        )
    if balls.folds.n_folds < 3:
        raise UserError(f"--folds {balls.folds.n_folds}: basis, judge and edited clips need three at least: give more")
    encoder, source = None, None
    args.judge = args.judge or (list(JUDGES) if args.split is None else ["paper", "own"])
    if args.split is not None and (args.downstream or set(args.judge) & {"split", "mlp"}):
        raise UserError(
            f"--split {args.split} keeps no clips for a judge: leave out --downstream and the judges split and mlp, or "
            "leave out --split"
        )
    if args.downstream:
        encoder, source = encoder_from_arguments(args), clip_source(args)
        check_same(encoder.description(), balls.store.settings)
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"):
        rows, nulls, splits = [], [], []
        total = len(balls.all) * n_scored(balls.folds, args.split)
        with progress(total=total, description="steering", unit="fold") as bar, threads_for(balls.store):
            for data in balls.all:
                edits, drawn = _steer(args, data, balls, layer, splits, bar)
                table = _summary(edits, balls.main.group, args)
                rows.append(pd.DataFrame(named(data, layer=layer), index=table.index).join(table))
                if not data.control:
                    nulls = _against_nulls(edits, drawn, layer, QUOTED[args.split is None])
        table = pd.concat(rows, ignore_index=True)
        table = table[table["judge"].isin(args.judge)].assign(protocol=lambda own: own["judge"].map(PROTOCOLS))
        if len(nulls):
            fair = nulls[nulls["null"] == "random_sequence"].rename(columns={"mae_target": "null_mean", "p": "null_p"})
            fair = fair[["n_probes", "null_mean", "null_p"]].assign(
                control="", arm="probes", judge=QUOTED[args.split is None], target="all"
            )
            table = table.merge(fair, how="left", on=["control", "arm", "judge", "target", "n_probes"])
        tables = {"steering.csv": table, "steering_nulls.csv": nulls}
        if encoder is not None:
            tables["steering_downstream.csv"] = downstream(args, encoder, source, balls, layer, splits[0])
        return write_results(args, "steer", tables, {"layer": layer, **balls.about}, "nested", *balls.sizes)


def _steer(args, data: ProbeData, balls, layer: int, splits: list, bar) -> tuple[pd.DataFrame, dict]:
    own = dataclasses.replace(of_variable(data, DIRECTION), layers=(layer,), norm_mode="zscore")
    clips = _labelled(data, balls)
    strengths = ridge_strengths(own, balls.folds)
    edits, drawn = [], {}
    for fold in range(n_scored(balls.folds, args.split)):
        split = split_clips(own, clips, balls.folds, fold, strengths[layer, fold], args.split is None)
        most = min(max(N_PROBES), split.basis.shape[1] // 2, (len(split.basis) - 1) // 2)
        probes = probes_of(split.basis, split.y, split.strength, most)
        counts = [n for n in N_PROBES if n <= most]
        judges = judges_of(split, balls.main.group, args.judge)
        ring = None if data.control else ring_of(args, layer)
        edits.append(judged(split, judges, arms_of(split, probes, counts, ring), probes))
        if not data.control:
            for key, values in nulls_of(split, judges, probes, counts, args.null_draws, args.seed + fold).items():
                drawn.setdefault(key, []).append(values)
            splits.append((split, probes))
        bar.update(1)
    return pd.concat(edits, ignore_index=True), {key: np.mean(values, 0) for key, values in drawn.items()}


def _labelled(data: ProbeData, balls) -> pd.DataFrame:
    """The clip table with the directions of `data`: the shuffled ones if its labels are shuffled."""
    targets = of_variable(data, DIRECTION).variables[0].targets
    degrees = np.mod(np.rad2deg(np.arctan2(targets[:, 1], targets[:, 0])).round(6), 360.0)
    return balls.store.clips.assign(direction_deg=degrees)


def _summary(edits: pd.DataFrame, group: np.ndarray, args) -> pd.DataFrame:
    """Means over clips and folds, of all targets and of each, with an interval over groups of the error to target."""
    keys = ["arm", "n_probes", "rank", "judge"]
    rows = []
    values = ["mae_target", "mae_truth", "radius", "edit_ratio", "edit_neighbours", "off_target_speed", "wrong_way"]
    for key, own in edits.groupby(keys, sort=False):
        named = dict(zip(keys, key))
        of_clip = own.groupby("row")["mae_target"].mean()
        row = {**named, "target": "all", **own[values].mean(), "n": len(own)}
        groups = group[of_clip.index.to_numpy()]
        if args.bootstrap and len(set(groups)) > 1:
            resamples = group_resamples(groups, args.bootstrap, args.seed)
            row["low"], row["high"] = bootstrap_mean(of_clip.to_numpy()[None], groups, resamples, 0, 180).interval()[0]
        rows.append(row)
        for target, part in own.groupby("target"):
            rows.append({**named, "target": f"{target:g}", **part[values].mean(), "n": len(part)})
    return pd.DataFrame(rows)


def _against_nulls(edits: pd.DataFrame, drawn: dict, layer: int, judge: str) -> pd.DataFrame:
    own = edits[(edits["arm"] == "probes") & (edits["judge"] == judge)].groupby("n_probes")["mae_target"].mean()
    rows = []
    for (null, n), values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        p = (1 + (values <= own[n]).sum()) / (1 + len(values))
        row = {"layer": layer, "null": null, "n_probes": n, "mae_target": values.mean(), "low": low, "high": high}
        rows.append({**row, "n_draws": len(values), "probes_mae_target": own[n], "p": p})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- downstream


def downstream(args, encoder, source, balls, layer: int, prepared_split) -> pd.DataFrame:
    """Add edits to every token of a state, run the later blocks, and read each with judges of its unedited features.

    The judges are fitted on the judge's clips of the first fold; the clips that run on are its edited ones.
    """
    split, probes = prepared_split
    chosen = np.linspace(0, len(split.rows[2]) - 1, min(args.downstream_clips, len(split.rows[2]))).round().astype(int)
    every = arms_of(split, probes, [n for n in DOWNSTREAM_PROBES if n <= len(probes)])
    arms = {key: edit for key, edit in every.items() if key[0] in ("probes", "mean_difference", "transplant")}
    generator = torch.Generator().manual_seed(args.seed)
    unit = torch.randn(split.steered.shape, generator=generator, dtype=torch.float64)
    unit = unit / (unit * split.scale).norm(dim=1, keepdim=True)
    many = max(key[1] for key in arms)

    def random_edit(target: float) -> torch.Tensor:  # as long, in raw features, as that of the most probes
        return unit * (arms["probes", many, 2 * many](target) * split.scale).norm(dim=1, keepdim=True)

    arms["random_direction", many, 0] = random_edit
    arms["none", 0, 0] = lambda target: torch.zeros_like(split.steered)
    first = state_index(balls.capture, layer)
    clip_pass = ClipPass.of(args, source)
    clip_pass.check_frames(encoder)
    judges = {state: _judge_of_state(balls, split, state) for state in range(first, encoder.depth + 1)}
    judges = {state: judge for state, judge in judges.items() if judge is not None}
    ids = balls.store.clips["clip_id"].iloc[split.rows[2][chosen]].tolist()
    rows, place = [], 0
    with progress(total=len(ids), description="downstream", unit="clip") as bar:
        for own, frames in clip_pass.batches(encoder, ids):
            at = chosen[place : place + len(own)]
            place += len(own)
            with clip_pass.precision(encoder):
                hidden: dict[int, torch.Tensor] = {}
                with captured_states(encoder, [first, encoder.depth], hidden.__setitem__):
                    encoder.forward(frames)
                _check_continues(encoder, first, hidden)
                for (arm, n_probes, _), edit_to in arms.items():
                    for target in DOWNSTREAM_TARGETS:
                        edit = edit_to(target)[at]
                        known = edit.isfinite().all(1)
                        change = (edit.nan_to_num() * split.scale).to(hidden[first].device, hidden[first].dtype)
                        means = {first: (hidden[first] + change[:, None]).float().mean(1)}
                        run_from(encoder, first, hidden[first] + change[:, None],
                                 lambda state, h, means=means: means.__setitem__(state, h.float().mean(1)))  # fmt: skip
                        for state, judge in judges.items():
                            error = angular_error(split.angle(judge(means[state].double().cpu())), target)
                            named = {
                                "arm": arm,
                                "n_probes": n_probes,
                                "target": target,
                                "read_layer": layer + state - first,
                            }
                            rows += [{**named, "clip": clip, "error": e} for clip, e, k in zip(own, error, known) if k]
            bar.update(len(own))
    table = pd.DataFrame(rows).groupby(["arm", "n_probes", "read_layer"], sort=False)["error"].agg(["mean", "size"])
    table = table.reset_index().rename(columns={"mean": "mae_target", "size": "n"})
    none = table[table["arm"] == "none"].set_index("read_layer")["mae_target"]
    table["effect"] = none[table["read_layer"]].to_numpy() - table["mae_target"]
    at_edit = table[table["read_layer"] == layer].set_index(["arm", "n_probes"])["effect"]
    start = at_edit.loc[list(zip(table["arm"], table["n_probes"]))].to_numpy()
    table["retained"] = np.where(np.abs(start) > 5, table["effect"] / np.where(start == 0, 1, start), np.nan)
    table.insert(0, "edit_layer", layer)
    return table.assign(n_clips=len(ids), n_groups=len(set(balls.main.group[split.rows[2][chosen]])))


def _judge_of_state(balls, split: Split, state: int):
    """A reading of raw mean-pooled features of a state, fitted on the judge's clips; None for a state not stored."""
    layer = state - state_index(balls.capture, 0)
    if not 0 <= layer < balls.store.depth:
        return None
    features = balls.store.layer(balls.capture, balls.pooling, layer).double()
    rows = features[torch.from_numpy(split.rows[1])]
    mean, scale = rows.mean(0), rows.std(0, correction=0).clamp_min(1e-9)
    x, y = (rows - mean) / scale, split.code(split.part(1))
    weights, bias = linear_judge(x, y, judge_strength(x, y, balls.main.group[split.rows[1]]))
    return lambda raw: (raw - mean) / scale @ weights + bias


def _check_continues(encoder, first: int, hidden: dict[int, torch.Tensor]) -> None:
    last = run_from(encoder, first, hidden[first], lambda state, h: None)
    if not torch.allclose(last, hidden[encoder.depth], atol=1e-3, rtol=1e-2):
        raise UserError(
            f"the blocks of {encoder.title} need more than the state to go on: "
            "leave out --downstream, which is for V-JEPA 2 encoders"
        )
