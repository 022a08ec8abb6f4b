"""How far the subspaces of two variables lie apart, beside random subspaces of the same sizes (C.4, Table 3).

Reads the probes that `sequence` wrote. The span of the first k probes' weights of each variable, in one scaling of the
axes (`ball`: every feature by its standard deviation over the ball clips; `raw`: as it is), then the principal angles:

    mean_angle             over min(k_a, k_b) dimensions, degrees; grassmann: root of the sum of squares, radians
    overlap_ab, overlap_ba ||Qa' Qb||^2 over the dimension of b, of a: what chance makes dim a / d, dim b / d

Chance, from `--null-draws` draws each: Gaussian subspaces of the same sizes in all of R^d (`space`); in place of a's
the spans of probes for random targets on the same clips (`data`), for features do not fill R^d, and weights lie where
features vary; and the sequences of shuffled labels. Quote z and p, which are against `data`: angles fall far below
those of R^d for probes that read nothing at all. With --control the same of that control's sequences, beside random
targets on its own features; of movies there are none.

    overlap_RUN.csv          layer a b basis scaling k_a k_b mean_angle low high (over folds) overlap_ab overlap_ba
                             grassmann, chance_space_*, chance_data_*, chance_shuffled_* (each mean low high), z p
    overlap_power_RUN.csv    how large an overlap must be to be told from chance, at one layer
    overlap_erasure_RUN.csv  what a's first probes take away from reading b, beside as many random dimensions
    table3_overlap_RUN.md    ours, and the paper's sizes beside what random subspaces of those sizes give
"""

import argparse
import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open

from constants import REFERENCE_DIR
from pez.cli import COUNT_OR_NONE
from pez.errors import UserError
from pez.files import run_lock
from pez.mechanisms.runs import (
    DIRECTION,
    SPEED,
    add_run_arguments,
    ball_data,
    curve_name,
    entry,
    named,
    of_variable,
    threads_for,
    write_results,
)
from pez.mechanisms.sequence import (
    CONTROLS,
    RULES,
    basis_name,
    count,
    movies_as_data,
    orthonormal,
    prepared,
    remove_rounds,
    removed,
    ridge_fit,
    ridge_strengths,
    run_sequences,
)
from pez.probes.data.probe_data import POSSIBLE, ProbeData
from pez.probes.folds import Folds, make_folds
from pez.probes.scores.r2 import r2
from pez.probes.solvers.ridge import ridge_at
from pez.tables import read_csv

PAIRS = ((DIRECTION, POSSIBLE), (SPEED, POSSIBLE), (DIRECTION, SPEED))
FIRST = (1, 2, 5, 10)  # probes of a basis beside all K
SCALINGS = ("ball", "raw")
AGAINST_DATA = ("all", "first_1", "first_5")  # bases, in the scaling `ball`, that are compared with random targets too
PUBLISHED_WIDTH = 1024  # of Large, whose subspaces Table 3 compares
RHOS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)

Strengths = dict[str, dict[tuple[int, int], float]]  # of ridge, by variable, then by layer and fold


def angles(q_a: torch.Tensor, q_b: torch.Tensor) -> torch.Tensor:
    """Principal angles in degrees, ascending, of orthonormal columns [d, k_a] and [d, k_b]: [min(k_a, k_b)]."""
    cosines = torch.linalg.svdvals(q_a.mT @ q_b).clamp(0, 1)
    return torch.rad2deg(torch.arccos(cosines))


def compare(q_a: torch.Tensor, q_b: torch.Tensor) -> dict[str, float]:
    """Columns of the table for two subspaces, given by orthonormal columns."""
    degrees = angles(q_a, q_b)
    shared = float((q_a.mT @ q_b).square().sum())
    return {
        "mean_angle": float(degrees.mean()),
        "overlap_ab": shared / q_b.shape[1],
        "overlap_ba": shared / q_a.shape[1],
        "grassmann": float(torch.deg2rad(degrees).square().sum().sqrt()),
    }


@lru_cache(maxsize=4096)
def chance_angles(k_a: int, k_b: int, d: int, n_draws: int, seed: int = 0) -> np.ndarray:
    """Mean angles of `n_draws` pairs of Gaussian subspaces of R^d, [n_draws].

    Only their relative position counts, so the larger one is always spanned by the first coordinates.
    """
    few, many = sorted((min(k_a, d), min(k_b, d)))
    generator = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(n_draws):
        q = torch.linalg.qr(torch.randn(d, few, generator=generator, dtype=torch.float64))[0]
        cosines = torch.linalg.svdvals(q[:many]).clamp(0, 1)
        means.append(float(torch.rad2deg(torch.arccos(cosines)).mean()))
    return np.array(means)


def span(weights: torch.Tensor, k: int, scaling: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns [d, up to k * outputs] of the first `k` probes' weights [rounds, outputs, d], each axis
    multiplied by `scaling` [d]; dependent ones dropped."""
    columns = (weights[:k].flatten(0, 1) * scaling).T
    columns = columns[:, columns.norm(dim=0) > 0]
    q = orthonormal(columns[None] / columns.norm(dim=0))[0]
    return q[:, q.norm(dim=0) > 0.5]


def random_target_angles(
    maps: list[torch.Tensor], rows: list, spans: list[torch.Tensor], n: int, ks: list[int], n_draws: int, seed: int
) -> np.ndarray:
    """Mean angles between other subspaces and those of probes for random targets, the mean over folds: [n_draws].

    By fold: `maps` [d, n_train], from centred targets of its training clips to weights (ridge's, axes scaled); `rows`
    of these clips among `n`; `spans` [d, k_b] to compare with; the size `ks`. A draw has the same targets in every
    fold, as real ones would.
    """
    targets = torch.randn(n_draws, n, max(ks), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean_angles = []
    for weights_of, train, other, k in zip(maps, rows, spans, ks):
        own = targets[:, torch.as_tensor(train), :k]
        own = own - own.mean(1, keepdim=True)
        gram = own.mT @ (weights_of.T @ weights_of) @ own  # of the weights, [draws, k, k]
        gram.diagonal(dim1=-2, dim2=-1).add_(1e-12 * gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True))
        against = own.mT @ (weights_of.T @ other)  # [draws, k, k_b]
        factor = torch.linalg.cholesky(gram)
        cosines = torch.linalg.svdvals(torch.linalg.solve_triangular(factor, against, upper=False)).clamp(0, 1)
        mean_angles.append(torch.rad2deg(torch.arccos(cosines)).mean(-1))
    return torch.stack(mean_angles).mean(0).numpy()


def power(k_a: int, k_b: int, d: int, rho: float, n_draws: int, seed: int = 0) -> float:
    """Share of pairs with a planted overlap whose mean angle is below the lowest 2.5 % of chance.

    Of each column of b the share `rho` of its squared length lies in a, the rest at random outside a.
    """
    threshold = np.quantile(chance_angles(k_a, k_b, d, n_draws, seed + 1), 0.025)
    generator, hits = torch.Generator().manual_seed(seed), 0
    for _ in range(n_draws):
        drawn = torch.randn(d, k_b, generator=generator, dtype=torch.float64)
        inside, outside = drawn.clone(), drawn.clone()
        inside[k_a:], outside[:k_a] = 0, 0  # a is the first coordinates
        columns = rho**0.5 * inside / inside.norm(dim=0) + (1 - rho) ** 0.5 * outside / outside.norm(dim=0)
        q = torch.linalg.qr(columns)[0]
        a = torch.eye(d, k_a, dtype=torch.float64)
        hits += float(angles(a, q).mean()) < threshold
    return hits / n_draws


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py overlap`; everything else is what `sequence` was asked for."""
    add_run_arguments(parser)
    parser.add_argument("--intphys-root", type=Path, help="features of movies (default: those of `sequence`)")
    parser.add_argument("--layers", nargs="+", type=int, help="only these (default: those of `sequence`)")
    parser.add_argument("--control", nargs="+", default=[], choices=CONTROLS, help="compare these curves' too")
    parser.add_argument("--null-draws", type=COUNT_OR_NONE, default=200, help="random subspaces of each size")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")


class Bases:
    """Probes of bases_RUN.safetensors, and of movies where `sequence` had none: by curve, variable, layer and fold."""

    def __init__(self, path: Path, probe: str, extra: dict[str, torch.Tensor]):
        if not path.is_file():
            raise UserError(f"{path} is missing: run `step4_mechanisms.py sequence` of this --run-name first")
        self.path, self.probe, self.extra = path, probe, extra
        self._file = safe_open(path, framework="pt")
        self.names = {*self._file.keys(), *extra}

    def get(self, curve: str, variable: str, layer: int, fold: int, what: str) -> torch.Tensor:
        """One tensor, float64."""
        name = basis_name(curve, variable, self.probe, layer, fold, what)
        return (self.extra[name] if name in self.extra else self._file.get_tensor(name)).double()

    def check(self, data: ProbeData) -> None:
        """UserError for a curve or a layer that `sequence` was not run on."""
        for layer in data.layers:
            if not self.has(curve_name(data.control, data.control_seed), DIRECTION, layer):
                lacking = f"--control {data.control}" if data.control else f"--layers {layer}"
                raise UserError(
                    f"{self.path} has no probes of {lacking}: run `step4_mechanisms.py sequence` with it first"
                )

    def has(self, curve: str, variable: str, layer: int, fold: int = 0) -> bool:
        """Whether the files hold probes of this curve, variable, layer and fold."""
        return basis_name(curve, variable, self.probe, layer, fold, "weight") in self.names


def rounds_needed(table: pd.DataFrame) -> dict[tuple[str, int, int], int]:
    """By variable, layer and fold: K of C.11's rule, at least 1, of the main curve's rounds."""
    needed = {}
    for (variable, layer, fold), own in table.groupby(["variable", "layer", "fold"]):
        ordered = own.sort_values("round").to_dict("records")
        needed[variable, layer, fold] = max(1, count([RULES["c11"](variable, row) for row in ordered])[0])
    return needed


def main(args: argparse.Namespace) -> list[Path]:
    """Compare the subspaces; the paths of the tables."""
    recorded = entry(args.results_dir, args.run_name, "sequence")
    options = argparse.Namespace(**{**recorded["options"], "results_dir": args.results_dir, "run_name": args.run_name})
    if recorded["options"].get("split"):
        raise UserError(
            f"run {args.run_name} has the sequences of one division, --split {options.split}: bases are "
            "compared over folds, run `step4_mechanisms.py sequence` without it first"
        )
    options.split = None
    options.feature_root, options.control = Path(options.feature_root), args.control
    options.layers = args.layers or options.layers
    options.device, options.probe, options.norms = args.device, options.probe[:1], options.norms[:1]
    balls = ball_data(options)
    root = args.intphys_root or (Path(options.intphys_root) if options.intphys_root else None)
    rounds = read_csv(args.results_dir / f"sequence_{args.run_name}.csv", "run step4_mechanisms.py sequence again")
    rounds = rounds[(rounds["probe"] == options.probe[0]) & (rounds["norm"] == options.norms[0])]
    rounds["control"] = rounds["control"].fillna("")
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"), threads_for(balls.store):
        extra: dict[str, torch.Tensor] = {}
        if root is not None and POSSIBLE not in set(rounds["variable"]):
            rows, extra = run_sequences(options, [(*movies_as_data(root, balls, options), None)])
            rounds = pd.concat([rounds, pd.DataFrame(rows)], ignore_index=True)
        bases = Bases(args.results_dir / f"bases_{args.run_name}.safetensors", options.probe[0], extra)
        layer = min(balls.main.layers, key=lambda layer: abs(layer - max(recorded["zone"])))
        halves = make_folds(balls.store, options.grouping, 2, args.seed, balls.main.targets.numpy())
        parts, erased = [], []
        for data in balls.all:
            bases.check(data)
            own = rounds[(rounds["control"] == data.control) & (rounds["control_seed"] == data.control_seed)]
            shuffled = rounds.loc[rounds["control"] == "shuffled_labels", "control_seed"].unique()
            beside, drawn = [] if data.control else shuffled, (args.null_draws, args.seed)
            strengths = {name: ridge_strengths(standardised(data, name), balls.folds) for name in (DIRECTION, SPEED)}
            of_curve, needed = named(data), rounds_needed(own)
            parts.append(overlaps(bases, data, balls.folds, strengths, needed, beside, *drawn).assign(**of_curve))
            parts.append(split_halves(data, strengths, halves, *drawn).assign(**of_curve))
            erased.append(erasure(bases, data, balls.folds, strengths, layer, *drawn).assign(**of_curve))
        table = pd.concat(parts, ignore_index=True)
        tables = {
            "overlap.csv": table,
            "overlap_power.csv": power_table(table, layer, args).assign(protocol="none"),
            "overlap_erasure.csv": pd.concat(erased, ignore_index=True),
            "table3_overlap.md": table3(table, args.null_draws, args.seed, balls.store.settings),
        }
        about = {"zone": recorded["zone"], "focus_layer": layer, "features": balls.store.settings}
        return write_results(args, "overlap", tables, about, "nested", *balls.sizes)


def standardised(data: ProbeData, name: str) -> ProbeData:
    """One variable of a curve; features are divided by their standard deviation over the training clips."""
    return dataclasses.replace(of_variable(data, name), norm_mode="zscore")


def overlaps(
    bases: Bases,
    data: ProbeData,
    folds: Folds,
    strengths: Strengths,
    needed: dict,
    shuffled: Sequence[int],
    n_draws: int,
    seed: int,
) -> pd.DataFrame:
    """Every pair of variables of a curve at every layer, with every basis and scaling."""
    rows, curve = [], curve_name(data.control, data.control_seed)
    for layer in data.layers:
        features = data.features(layer).double()
        spread = features.std(0, correction=0)
        for a, b in PAIRS:
            if not (bases.has(curve, a, layer) and bases.has(curve, b, layer)):
                continue
            for scaling in SCALINGS:
                unit = spread if scaling == "ball" else torch.ones_like(spread)
                for basis in ("all", "matched", *(f"first_{k}" for k in FIRST)):
                    pairs = _pairs(bases, curve, folds.n_folds, layer, a, b, basis, unit, needed)
                    if not pairs:
                        continue
                    row = _row(pairs, bases, a, layer, unit, shuffled)
                    dims = (row["k_a"], row["k_b"], features.shape[1])
                    row |= _beside_chance(row["mean_angle"], "space", chance_angles(*dims, n_draws, seed))
                    if scaling == "ball" and basis in AGAINST_DATA:
                        drawn = _random_targets(folds, features, layer, strengths[a], unit, pairs, n_draws, seed)
                        row |= _beside_chance(row["mean_angle"], "data", drawn)
                    named = {"layer": layer, "a": a, "b": b, "basis": basis, "scaling": scaling}
                    rows.append({**named, "d": features.shape[1], **row})
    return pd.DataFrame(rows)


def _pairs(
    bases, curve: str, n_folds: int, layer, a, b, basis, unit, needed
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """The two spans of every fold and how many of a's probes they use; empty if a sequence has too few probes."""
    pairs = []
    for fold in range(n_folds):
        k = {name: int(basis.partition("_")[2]) if basis.startswith("first") else needed.get((name, layer, fold), 0)
             for name in (a, b)}  # fmt: skip
        if basis == "matched":
            k = dict.fromkeys(k, min(k.values()))
        spans = [_span(bases, curve, name, layer, fold, k[name], unit) for name in (a, b)]
        if any(each is None for each in spans):
            return []
        pairs.append((*spans, k[a]))
    return pairs


def _row(pairs, bases, a, layer, unit, shuffled) -> dict:
    """Means over folds, and the mean angle if probes of shuffled labels take the place of a's."""
    table = pd.DataFrame([{"k_a": p.shape[1], "k_b": q.shape[1], **compare(p, q)} for p, q, _ in pairs])
    others = []
    for fold, (_, q, k) in enumerate(pairs):
        for number in shuffled:
            other = _span(bases, f"shuffled_labels_{number}", a, layer, fold, k, unit)
            others += [] if other is None else [compare(other, q)["mean_angle"]]
    row = table.mean().to_dict()
    row |= {"k_a": round(row["k_a"]), "k_b": round(row["k_b"]), "n_folds": len(table)}
    row |= {"low": table["mean_angle"].min(), "high": table["mean_angle"].max()}
    if others:
        row |= {"chance_shuffled_mean": np.mean(others), "chance_shuffled_low": min(others)}
        row["chance_shuffled_high"] = max(others)
    return row


def _span(bases: Bases, curve: str, name: str, layer: int, fold: int, k: int, unit: torch.Tensor):
    if not bases.has(curve, name, layer, fold):
        return None
    weights = bases.get(curve, name, layer, fold, "weight")
    if not 0 < k <= len(weights):
        return None
    return span(weights, k, unit / bases.get(curve, name, layer, fold, "scale"))


def _random_targets(
    folds: Folds, features, layer: int, strengths: dict, unit, pairs, n_draws: int, seed: int
) -> np.ndarray:
    maps, rows = [], []
    for fold, (train, _) in enumerate(folds.splits()):
        x = features[torch.from_numpy(train)]
        scale = x.std(0, correction=0).clamp_min(1e-12)
        x = (x - x.mean(0)) / scale
        strength = torch.tensor(strengths[layer, fold], dtype=torch.float64)
        maps.append(ridge_at(x, torch.eye(len(x), dtype=torch.float64), strength) * (unit / scale)[:, None])
        rows.append(train)
    spans, sizes = [q for _, q, _ in pairs], [p.shape[1] for p, _, _ in pairs]
    return random_target_angles(maps, rows, spans, len(features), sizes, n_draws, seed)


def _beside_chance(angle: float, name: str, drawn: np.ndarray) -> dict:
    low, high = np.quantile(drawn, [0.025, 0.975])
    row = {f"chance_{name}_mean": drawn.mean(), f"chance_{name}_low": low, f"chance_{name}_high": high}
    if name == "data":
        away = np.abs(drawn - drawn.mean()) >= abs(angle - drawn.mean())
        row |= {"z": (angle - drawn.mean()) / drawn.std(), "p": (1 + away.sum()) / (1 + len(drawn))}
    return row


def split_halves(curve: ProbeData, strengths: Strengths, halves: Folds, n_draws: int, seed: int) -> pd.DataFrame:
    """Each variable's own two subspaces, from halves of the clips: how near the same thing comes to itself. Strengths
    are those of the curve's first fold: two halves have no inner folds to choose by."""
    rows = []
    for name in (DIRECTION, SPEED):
        data, spans = standardised(curve, name), []
        for train, held in halves.splits():
            ready = prepared(data, train, held, "zscore")
            strength = torch.tensor([strengths[name][layer, 0] for layer in data.layers], dtype=torch.float64)
            rounds = remove_rounds(ready.x, ready.held, ridge_fit(ready.y, strength), max(FIRST))
            spans.append((rounds.weights, ready.scale))
        for at, layer in enumerate(data.layers):
            unit = data.features(layer).double().std(0, correction=0)
            for k in FIRST:
                own = [
                    span(torch.stack([each[at].T for each in weights]), k, unit / scale[at]) for weights, scale in spans
                ]
                row = {"layer": layer, "a": name, "b": f"{name}_other_half", "basis": f"first_{k}", "scaling": "ball"}
                row |= {"d": len(unit), "k_a": own[0].shape[1], "k_b": own[1].shape[1], **compare(*own), "n_folds": 1}
                drawn = chance_angles(row["k_a"], row["k_b"], len(unit), n_draws, seed)
                row |= _beside_chance(row["mean_angle"], "space", drawn)
                rows.append(row)
    return pd.DataFrame(rows)


def power_table(table: pd.DataFrame, layer: int, args) -> pd.DataFrame:
    """How often each planted overlap is detected, at one layer and for the sizes that are compared at it."""
    own = table[(table["layer"] == layer) & (table["basis"] == "all") & (table["scaling"] == "ball")]
    rows, own = [], own[own["control"] == ""]
    for row in own.itertuples():
        for rho in RHOS if row.k_a < row.d else ():
            seen = power(row.k_a, row.k_b, row.d, rho, args.null_draws, args.seed)
            sizes = {"k_a": row.k_a, "k_b": row.k_b, "chance_overlap": row.k_a / row.d}
            rows.append({"layer": layer, "a": row.a, "b": row.b, **sizes, "rho": rho, "seen": seen})
    return pd.DataFrame(rows)


def erasure(
    bases: Bases, curve: ProbeData, folds: Folds, strengths: Strengths, layer: int, n_draws: int, seed: int
) -> pd.DataFrame:
    """R^2 of b after a's first k probes are removed from the features, and after as many random dimensions are.

    Unlike angles, this does not depend on how the axes are scaled. Random removals are spread over the folds.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    name = curve_name(curve.control, curve.control_seed)
    per_fold = -(-n_draws // folds.n_folds)
    for a, b in ((DIRECTION, SPEED), (SPEED, DIRECTION)):
        data = dataclasses.replace(standardised(curve, b), layers=(layer,))
        scores: dict[int, list[float]] = {}
        drawn: dict[int, list[float]] = {}
        for fold, (train, held) in enumerate(folds.splits()):
            ready = prepared(data, train, held, "zscore")
            x, kept, target = ready.x[0], ready.held[0], data.variables[0].targets[held]
            at = torch.tensor(strengths[b][layer, fold], dtype=torch.float64)

            def score(q, x=x, kept=kept, ready=ready, at=at, target=target) -> float:
                return r2(target, ready.read(removed(kept, q) @ ridge_at(removed(x, q), ready.y, at)))

            frame = torch.linalg.svd(x, full_matrices=False)[2]
            weights, scale = (bases.get(name, a, layer, fold, what) for what in ("weight", "scale"))
            unit = ready.scale[0] / scale
            for k in (0, *FIRST):
                q = span(weights, k, unit) if k else x.new_zeros(x.shape[1], 0)
                scores.setdefault(k, []).append(score(q))
                if k and q.shape[1] < len(frame):
                    for _ in range(per_fold):
                        coordinates = torch.randn(len(frame), q.shape[1], generator=generator, dtype=torch.float64)
                        drawn.setdefault(k, []).append(score(torch.linalg.qr(frame.T @ coordinates)[0]))
        for k, values in scores.items():
            random = drawn.get(k, [np.nan])
            low, high = np.quantile(random, [0.025, 0.975])
            row = {"layer": layer, "removed": a, "read": b, "probes_removed": k, "r2": np.mean(values)}
            row |= {"low": min(values), "high": max(values), "random_mean": np.mean(random)}
            rows.append({**row, "random_low": low, "random_high": high})
    return pd.DataFrame(rows)


def published_table(n_draws: int, seed: int = 0) -> pd.DataFrame:
    """The paper's sizes of Table 3 with the mean angles of random subspaces of those sizes in R^1024, a row a layer."""
    sizes = pd.read_csv(REFERENCE_DIR / "paper_table3_dimensions.csv")
    for name in ("direction", "speed"):
        pairs = zip(sizes[name], sizes["intphys"])
        sizes[f"{name}_chance"] = [chance_angles(a, b, PUBLISHED_WIDTH, n_draws, seed).mean() for a, b in pairs]
    return sizes


def table3(table: pd.DataFrame, n_draws: int, seed: int, described: dict) -> str:
    """Markdown: ours by layer and pair, then the paper's sizes beside chance."""
    lines = [f"# Table 3: subspaces of two variables, {described['model']} ({described['weights_label']})", ""]
    lines += [
        "All probes of a sequence (C.11's rule), axes in units of the ball clips' spread; degrees, mean over folds.",
        "",
    ]
    lines += [
        "| layer | a, b | dims a, b | mean angle [folds] | random, R^d | random targets, same clips | p | overlap a←b |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    own = table[(table["basis"] == "all") & (table["scaling"] == "ball") & (table["control"] == "")]
    for row in own.itertuples():
        lines.append(
            f"| {row.layer} | {row.a}, {row.b} | {row.k_a}, {row.k_b} | {row.mean_angle:.1f} [{row.low:.1f}, "
            f"{row.high:.1f}] | {row.chance_space_mean:.1f} | {row.chance_data_mean:.1f} | {row.p:.3f} | "
            f"{row.overlap_ab:.3f} |"
        )
    lines += ["", "## Published, Large", ""]
    lines += [
        "Sizes as printed in Table 3; the angles are of random subspaces of R^1024 of those sizes, not the paper's. It"
    ]
    lines += ["prints 68.9 to 81.7° for direction and IntPhys (51.5° at layers 20 to 23), 79.6 to 83.5° for speed.", ""]
    lines += [
        "| layer | direction | speed | IntPhys | random: direction, IntPhys | random: speed, IntPhys |",
        "|---|---|---|---|---|---|",
    ]
    for row in published_table(n_draws, seed).itertuples():
        lines.append(
            f"| {row.layer} | {row.direction} | {row.speed} | {row.intphys} | {row.direction_chance:.1f}° | "
            f"{row.speed_chance:.1f}° |"
        )
    return "\n".join([*lines, ""])
