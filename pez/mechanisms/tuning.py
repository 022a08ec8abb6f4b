"""Which hidden units of the MLPs are tuned to direction or speed (section 7.1, C.7, C.8, Figures 4, 20, 21).

For every unit at every position (place and tubelet), generalised linear models of its response over clips, ridge 1e-3,
held out by grouped folds; with theta the direction, r the speed (standardised), and the ball's place in that tubelet:

    direction     1, cos theta, sin theta             second   cos 2 theta, sin 2 theta beside them
    speed         1, r, r^2                           place    1, x, y, x^2, y^2, xy: what place alone explains
    shuffled      direction, of other groups' clips   given place: direction beside place

delta R^2 is one less the held-out squared error over that of the training mean (given place: over place's). The
design is the same for every unit, so one pass keeps sums over clips and no activations. A unit's position is the one
of highest delta R^2, which is a choice among many: compare with the same choice for shuffled labels and for units that
see place alone (a bump of 0.6 patches round the ball). `pooled` is the mean response over all positions, which knows no
place.

    tuning_RUN.parquet        layer unit delta_r2_max t y x pd_deg gain r2_given_place
                              r2_second_harmonic delta_r2_speed preferred_speed shape shuffled_r2 delta_r2_pooled
                              pd_pooled
    tuning_heat_RUN.parquet   layer unit bin_00 ... bin_23: highest delta R^2 of positions with that preferred direction
    tuning_means_RUN.parquet  layer unit direction_deg n mean sd: pooled responses over the clips of a direction
    tuning_layers_RUN.csv     population statistics: layer statistic value
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from pez.cli import COUNT, Number
from pez.encoder.arguments import encoder_from_arguments
from pez.encoder.attention import mlp_modules
from pez.encoder.protocol import Encoder
from pez.errors import UserError
from pez.files import atomic_path, fingerprint, read_json, run_lock, write_json
from pez.mechanisms.geometry import TokenGrid, token_grid
from pez.mechanisms.passes import (
    ClipPass,
    add_clip_arguments,
    chosen_clips,
    clip_groups,
    clip_source,
    encoder_passes,
)
from pez.mechanisms.runs import add_run_arguments, check_encoder, curve_name, folder_of, write_results, zone_layers
from pez.probes.data.permutations import shuffled_variables
from pez.probes.data.probe_data import Variable, check_layers
from pez.probes.folds import grouped_folds
from pez.progress import progress
from pez.shards import add_shard_arguments, check_shard, own_share

ALPHA, BINS, BUMP = 1e-3, 24, 0.6
COLUMNS = ("one", "cos", "sin", "cos2", "sin2", "r", "r2", "x", "y", "xx", "yy", "xy", "shuffled_cos", "shuffled_sin")
MODELS = {
    "direction": ("one", "cos", "sin"),
    "second": ("one", "cos2", "sin2"),
    "speed": ("one", "r", "r2"),
    "place": ("one", "x", "y", "xx", "yy", "xy"),
    "direction_and_place": ("one", "x", "y", "xx", "yy", "xy", "cos", "sin"),
    "shuffled": ("one", "shuffled_cos", "shuffled_sin"),
    "mean": ("one",),
}
SHARES = (0.05, 0.1, 0.2, 0.5)
TUNED = 0.1  # and above shuffled labels and place-only units


@dataclass
class Sums:
    """Sums over clips by fold: xx [F, T, p, p], xy [F, T, p, K], yy [F, T, K], K responses a tubelet; about `shift`
    [T, K], which is subtracted from every response. They add up."""

    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def zeros(cls, n_folds: int, shift: torch.Tensor) -> "Sums":
        """Sums over no clips; `shift` [T, K] decides shapes, precision and device."""
        (t, k), p = shift.shape, len(COLUMNS)
        return cls(
            shift.new_zeros(n_folds, t, p, p), shift.new_zeros(n_folds, t, p, k), shift.new_zeros(n_folds, t, k), shift
        )

    def add(self, design: torch.Tensor, responses: torch.Tensor, fold: np.ndarray) -> None:
        """Add clips with `design` [B, T, p] and `responses` [B, T, K], each in its `fold` [B]."""
        responses = responses.to(self.shift) - self.shift
        design = design.to(self.shift)
        for number in np.unique(fold):
            own = torch.from_numpy(np.flatnonzero(fold == number)).to(design.device)
            x, y = design[own].transpose(0, 1), responses[own].transpose(0, 1)  # [T, b, .]
            self.xx[number] += x.mT @ x
            self.xy[number] += x.mT @ y
            self.yy[number] += y.square().sum(1)

    def errors(self, model: str) -> torch.Tensor:
        """Held-out squared error of a model, summed over folds, [T, K]."""
        at = torch.tensor([COLUMNS.index(name) for name in MODELS[model]])
        total = self.xx.sum(0), self.xy.sum(0)
        squared_errors = torch.zeros_like(self.yy[0])
        for number in range(len(self.xx)):
            beta = self._fit(total[0] - self.xx[number], total[1] - self.xy[number], at)
            xx, xy = self.xx[number][:, at][:, :, at], self.xy[number][:, at]
            squared_errors += self.yy[number] - 2 * (beta * xy).sum(1) + (beta * (xx @ beta)).sum(1)
        return squared_errors

    def coefficients(self, model: str) -> torch.Tensor:
        """Of all clips, [columns of the model, T, K]."""
        at = torch.tensor([COLUMNS.index(name) for name in MODELS[model]])
        return self._fit(self.xx.sum(0), self.xy.sum(0), at).transpose(0, 1)

    def _fit(self, xx: torch.Tensor, xy: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        penalty = ALPHA * torch.eye(len(at), dtype=torch.float64, device=xx.device)
        penalty[0, 0] = 0  # of the mean
        chosen = xx[:, at][:, :, at].double() + penalty
        return torch.linalg.solve(chosen, xy[:, at].double()).to(xy)

    def delta_r2(self, model: str, against: str = "mean") -> torch.Tensor:
        """[T, K]; 0 where a response does not vary."""
        base = self.errors(against)
        rounding = 1e3 * torch.finfo(self.yy.dtype).eps * self.yy.sum(0)  # of a difference of such sums
        return torch.where(base > rounding.clamp_min(1e-30), 1 - self.errors(model) / base.clamp_min(1e-30), 0.0)


def design_of(clips: pd.DataFrame, frames: pd.DataFrame, group: np.ndarray, n_tubelets: int, seed: int) -> torch.Tensor:
    """[clips, T, columns] of COLUMNS, float64; speeds and places standardised over the set."""
    angle = np.deg2rad(clips["direction_deg"].to_numpy(dtype=np.float64))
    code = np.stack([np.cos(angle), np.sin(angle)], 1)
    (other,) = shuffled_variables([Variable("direction", "velocity", code, "", ("cos", "sin"))], group, seed)
    r = clips["magnitude"].to_numpy(dtype=np.float64)
    r = (r - r.mean()) / r.std()
    wide = frames.pivot_table(index="clip_id", columns="frame", values=["x_px", "y_px"]).reindex(clips["clip_id"])
    place = wide.to_numpy(dtype=np.float64).reshape(len(clips), 2, n_tubelets, -1).mean(3)
    x, y = ((each - each.mean()) / each.std() for each in (place[:, 0], place[:, 1]))
    constant = np.stack([np.ones_like(r), *code.T, np.cos(2 * angle), np.sin(2 * angle), r, r**2], 1)
    moving = np.stack([x, y, x * x, y * y, x * y], -1)
    spread = [np.repeat(each[:, None], n_tubelets, 1) for each in (constant, other.targets)]
    return torch.from_numpy(np.concatenate([spread[0], moving, spread[1]], -1))


def place_units(frames: pd.DataFrame, clips: pd.DataFrame, grid: TokenGrid, size: int) -> torch.Tensor:
    """Responses [clips, T, G] of units that see only the ball's place: a bump around it, averaged over a tubelet."""
    wide = frames.pivot_table(index="clip_id", columns="frame", values=["x_px", "y_px"]).reindex(clips["clip_id"])
    places = wide.to_numpy(dtype=np.float64).reshape(len(clips), 2, grid.tubelets, -1) * grid.height / size
    y, x = np.unravel_index(np.arange(grid.places), (grid.height, grid.width))
    away = (places[:, 0, :, :, None] - x - 0.5) ** 2 + (places[:, 1, :, :, None] - y - 0.5) ** 2
    return torch.from_numpy(np.exp(-away / (2 * BUMP**2)).mean(2))


# ---------------------------------------------------------------- summaries


def units_table(sums: Sums, grid: TokenGrid, speeds: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """A row per unit at its best position, and the heat map [units, BINS]."""
    t, k = sums.shift.shape
    n_units = k // grid.places

    def by_unit(values: torch.Tensor) -> np.ndarray:  # [T, K] -> [positions, units]
        return values.reshape(t * grid.places, n_units).double().cpu().numpy()

    direction, given = by_unit(sums.delta_r2("direction")), by_unit(sums.delta_r2("direction_and_place", "place"))
    second, speed = by_unit(sums.delta_r2("second")), by_unit(sums.delta_r2("speed"))
    shuffled = by_unit(sums.delta_r2("shuffled"))
    _, cos, sin = (by_unit(each) for each in sums.coefficients("direction"))
    _, slope, curve = (by_unit(each) for each in sums.coefficients("speed"))
    preferred, best = np.rad2deg(np.arctan2(sin, cos)), direction.argmax(0)
    unit = np.arange(n_units)
    place, when = best % grid.places, best // grid.places
    at = speed.argmax(0)
    vertex, shape = speed_shape(slope[at, unit], curve[at, unit], speeds)
    table = pd.DataFrame({
        "unit": unit, "delta_r2_max": direction[best, unit],
        "t": when, "y": place // grid.width, "x": place % grid.width,
        "pd_deg": preferred[best, unit], "gain": np.hypot(cos, sin)[best, unit],
        "r2_given_place": given[best, unit], "r2_second_harmonic": second[best, unit],
        "delta_r2_speed": speed[at, unit], "preferred_speed": vertex, "shape": shape,
        "shuffled_r2": shuffled.max(0),
    })  # fmt: skip
    heat = np.zeros((n_units, BINS))
    bins = np.minimum(((preferred + 180) / 360 * BINS).astype(int), BINS - 1)
    for number in range(BINS):
        heat[:, number] = np.where(bins == number, direction, 0).max(0)
    return table, heat


def speed_shape(slope: np.ndarray, curve: np.ndarray, speeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Preferred speeds in the unit of `speeds` (which were standardised), cut to their range, and shapes: peaked inside
    it, monotone up or down, or trough."""
    mean, spread = speeds.mean(), speeds.std()
    low, high = speeds.min(), speeds.max()
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.where(curve != 0, -slope / (2 * curve), np.inf) * spread + mean
    inside = (vertex > low) & (vertex < high)
    end = np.where(slope > 0, high, low)
    shape = np.where(inside, np.where(curve < 0, "peaked", "trough"), np.where(slope > 0, "up", "down"))
    return np.where(inside & (curve < 0), vertex, end), shape


def pooled_tuning(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """delta R^2 of direction and preferred direction of responses pooled over positions ([1, units] sums)."""
    _, cos, sin = sums.coefficients("direction")
    return sums.delta_r2("direction")[0].double().cpu().numpy(), np.rad2deg(torch.atan2(sin, cos)[0].cpu().numpy())


def population(table: pd.DataFrame, heat: np.ndarray, place_only: float, means: np.ndarray) -> dict[str, float]:
    """Statistics of a layer's units; `means` [8 directions, units] of pooled responses."""
    floor = max(TUNED, place_only, float(table["shuffled_r2"].max()))
    summary = {f"share_above_{share:g}": float((table["delta_r2_max"] >= share).mean()) for share in SHARES}
    tuned = table[table["delta_r2_max"] > floor]
    summary |= {"floor_place_only": place_only, "floor_shuffled": float(table["shuffled_r2"].max())}
    summary |= {
        "share_tuned": len(tuned) / len(table),
        "share_tuned_pooled": float((table["delta_r2_pooled"] > TUNED).mean()),
    }
    unit = np.exp(1j * np.deg2rad(tuned["pd_deg"].to_numpy()))
    if len(unit):
        length = float(np.abs(unit.mean()))
        summary |= {"resultant_length": length, "rayleigh_p": float(np.exp(-len(unit) * length**2))}
    occupied = (heat[tuned["unit"].to_numpy()].max(0) > floor) if len(tuned) else np.zeros(BINS, bool)
    summary["share_of_bins"] = float(occupied.mean())
    summary |= ring(means)
    summary |= {f"speed_{name}": float((table["shape"] == name).mean()) for name in ("up", "down", "peaked", "trough")}
    return summary


def ring(means: np.ndarray) -> dict[str, float]:
    """Of mean responses [8 directions, units]: the second axis of their principal plane over the first, and the shares
    of their variance at the first and second harmonic of direction."""
    centred = means - means.mean(0)
    values = np.square(np.linalg.svd(centred, compute_uv=False))
    angles = 2 * np.pi * np.arange(len(means)) / len(means)
    total = max(float(np.square(centred).sum()), 1e-30)
    shares = {}
    for k in (1, 2):
        basis = np.stack([np.cos(k * angles), np.sin(k * angles)], 1)
        shares[f"harmonic_{k}"] = float(np.square(np.linalg.qr(basis)[0].T @ centred).sum() / total)
    return {"ring_axis_ratio": float(np.sqrt(values[1] / max(values[0], 1e-30))), **shares}


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py tuning`."""
    add_run_arguments(parser)
    parser.add_argument("--layers", nargs="+", type=int, help="blocks (default: 0, the zone's last, the last)")
    parser.add_argument(
        "--site", default="act", choices=["act", "fc1", "fc2"], help="after GELU, before it, or written"
    )
    parser.add_argument("--folds", type=Number(int, least=2), default=5, help="of the grouped cross-validation")
    parser.add_argument("--control", nargs="+", default=[], choices=["random_weights"], help="do the same with these")
    parser.add_argument("--control-seeds", type=COUNT, default=1, help="random encoders")
    add_clip_arguments(parser)
    add_shard_arguments(parser)


def main(args: argparse.Namespace) -> list[Path]:
    """Fit the units; the paths of the tables, none while shards are missing."""
    shard, source = check_shard(args.num_shards, args.shard_index), clip_source(args)
    if source.frames is None or not {"direction_deg", "magnitude"} <= set(source.clips):
        raise UserError(f"{source.name} has no directions and speeds to be tuned to: use --clips velocity")
    encoder = encoder_from_arguments(args)
    check_encoder(args, encoder.description())
    grid = token_grid(encoder, source.n_frames)
    zone = zone_layers(args.zone_layers, encoder.depth)
    layers = check_layers(args.layers or sorted({0, max(zone), encoder.depth - 1}), encoder.depth)
    mlp_modules(encoder, args.site)
    ids = chosen_clips(source, args.max_clips)
    clips = source.clips.set_index("clip_id").loc[ids].reset_index()
    group = clip_groups(clips)
    fold = grouped_folds(group, args.folds, args.seed, clips["direction_deg"])
    frames = source.frames[source.frames["clip_id"].isin(ids)]
    design = design_of(clips, frames, group, grid.tubelets, args.seed)
    bumps = place_units(frames, clips, grid, source.settings["settings"].get("resolution", 256))
    floor = Sums.zeros(args.folds, torch.zeros(grid.tubelets, grid.places, dtype=torch.float64))
    floor.add(design, bumps, fold)
    place_only = float(floor.delta_r2("direction").max())
    encoders = list(encoder_passes(args, encoder))
    tables, heats, means, statistics = [], [], [], []
    for each in encoders:
        folder = folder_of(args, "tuning") / curve_name(each.kind, each.seed)
        clip_pass = ClipPass.of(args, source)
        gathered = gather(each.encoder, clip_pass, ids, design, fold, layers, args, folder, shard)
        if gathered is None:
            continue
        for layer, (sums, pooled) in gathered.items():
            named = {"control": each.kind, "control_seed": each.seed, "layer": layer}
            table, heat = units_table(sums, grid, clips["magnitude"].to_numpy(dtype=np.float64))
            over = Sums.zeros(args.folds, pooled.double().mean(0, keepdim=True))
            over.add(design[:, :1], pooled[:, None].double(), fold)
            table["delta_r2_pooled"], table["pd_pooled"] = pooled_tuning(over)
            degrees = clips["direction_deg"].to_numpy()
            by_direction = {
                degree: pooled[torch.from_numpy(degrees == degree)].double() for degree in np.unique(degrees)
            }
            means.append(pd.concat([
                pd.DataFrame({**named, "unit": table["unit"], "direction_deg": degree, "n": len(own_clips),
                              "mean": own_clips.mean(0).numpy(), "sd": own_clips.std(0, correction=0).numpy()})
                for degree, own_clips in by_direction.items()
            ]))  # fmt: skip
            centres = np.stack([own_clips.mean(0).numpy() for own_clips in by_direction.values()])
            rows = population(table, heat, place_only, centres)
            statistics += [{**named, "statistic": name, "value": value} for name, value in rows.items()]
            tables.append(pd.DataFrame(named, index=table.index).join(table))
            columns = {f"bin_{number:02d}": heat[:, number] for number in range(BINS)}
            heats.append(pd.DataFrame({**named, "unit": table["unit"], **columns}))
    if len(tables) < len(encoders) * len(layers):
        return []
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"):
        parts = {"tuning.parquet": tables, "tuning_heat.parquet": heats, "tuning_means.parquet": means}
        written = {name: pd.concat(own, ignore_index=True) for name, own in parts.items()}
        about = {"layers": list(layers), "zone": zone, "site": args.site, "place_only": place_only}
        about["features"] = ClipPass.of(args, source).settings(encoder)
        written["tuning_layers.csv"] = statistics
        return write_results(args, "tuning", written, about, "fixed", len(ids), len(set(group)))


def gather(encoder: Encoder, clip_pass: ClipPass, ids, design, fold, layers, args, folder: Path, shard):
    """(Sums, pooled responses [clips, units]) by layer of all shards; None while some are missing.

    Each shard writes its sums to one file; a shard that is done only reads its file.
    """
    place = {clip: row for row, clip in enumerate(ids)}
    settings = {
        **clip_pass.settings(encoder),
        "site": args.site,
        "layers": list(layers),
        "folds": args.folds,
        "ids": ids,
    }
    path = folder / f"sums_{shard.index}-of-{shard.count}.safetensors"
    settings_path = folder / "settings.json"
    if settings_path.is_file() and fingerprint(read_json(settings_path)) != fingerprint(settings):
        raise UserError(f"{folder} was made with other settings: choose another --run-name, or remove it")
    if not settings_path.is_file():
        write_json(settings_path, settings)
    if not path.is_file():
        own = own_share(ids, *shard)
        tensors = _pass(encoder, clip_pass, own, place, design, fold, layers, args)
        with atomic_path(path, shard.owner) as temporary:
            save_file(tensors, temporary)
    paths = [folder / f"sums_{index}-of-{shard.count}.safetensors" for index in range(shard.count)]
    if not all(each.is_file() for each in paths):
        print(f"{folder}: sums of other shards are still to come")
        return None
    parts = [load_file(each) for each in paths]
    gathered = {}
    for layer in layers:
        first = parts[0]
        names = ("xx", "xy", "yy")
        sums = Sums(*(sum(part[f"{layer}.{name}"] for part in parts) for name in names), first[f"{layer}.shift"])
        gathered[layer] = (sums, sum(part[f"{layer}.pooled"] for part in parts))
    return gathered


def _pass(encoder: Encoder, clip_pass: ClipPass, ids, place, design, fold, layers, args) -> dict[str, torch.Tensor]:
    """Sums and pooled responses of some clips as tensors by name. The shift is the mean of the set's first two clips,
    the same in every shard: single precision has no digits to spare for what all clips have in common."""
    modules = mlp_modules(encoder, args.site)
    grid = token_grid(encoder, clip_pass.source.n_frames)
    sums: dict[int, Sums] = {}
    pooled: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}

    def hook(layer: int):
        def read(_module, _inputs, output):
            responses = output.float().unflatten(1, (grid.tubelets, grid.places))
            if "rows" not in state:
                sums[layer] = Sums.zeros(args.folds, responses.flatten(2).mean(0))
                pooled[layer] = torch.zeros(len(place), responses.shape[-1])
                return
            sums[layer].add(design[state["rows"]], responses.flatten(2), fold[state["rows"].numpy()])
            pooled[layer][state["rows"]] = responses.mean((1, 2)).cpu()

        return read

    handles = [modules[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        with clip_pass.precision(encoder):
            encoder.forward(torch.cat([frames for _, frames in clip_pass.batches(encoder, list(place)[:2])]))
        with progress(total=len(ids), description=f"tuning: {encoder.weights_label}", unit="clip") as bar:
            for own, frames in clip_pass.batches(encoder, ids):
                state["rows"] = torch.tensor([place[clip] for clip in own])
                with clip_pass.precision(encoder):
                    encoder.forward(frames)
                bar.update(len(own))
    finally:
        for handle in handles:
            handle.remove()
    tensors = {}
    for layer in layers:
        for name in ("xx", "xy", "yy", "shift"):
            tensors[f"{layer}.{name}"] = getattr(sums[layer], name).cpu().contiguous()
        tensors[f"{layer}.pooled"] = pooled[layer]
    return tensors
