"""How far attention looks, per head and block (paper: section 6.3, appendix C.6, Figures 3 and 19).

For query i with attention a_ij over all N keys (softmax in at least float32), the mean over queries of

    spatial, temporal, spacetime   sum_j a_ij d(i, j), distances of pez/mechanisms/geometry.py
    spatial_ratio                  the same over what uniform attention gives that query: borders look farther
    self, same_place, same_tubelet attention to the token itself, its place at any time, its tubelet at any place
    within_sS, within_tT           attention to keys within S patches (any time), T tubelets (any place): what a mask
                                   of pez/mechanisms/geometry.py takes away
    entropy                        -sum_j a_ij log a_ij, nats

Maps are never kept: a chunk of queries at a time is reduced to these numbers, in double precision a clip.

    attention_RUN.csv            layer head statistic mean low high relative_to_uniform
    attention_layers_RUN.csv     layer, `fraction` of the last one, and of every one of LAYER_STATISTICS a column, with
                                 NAME_low and NAME_high
    attention_clips_RUN.parquet  a row per curve, clip, layer and head
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pez.cli import COUNT
from pez.encoder.arguments import encoder_from_arguments
from pez.encoder.attention import Plan, attention_modules, attention_plans
from pez.encoder.controls import control_passes
from pez.encoder.protocol import Encoder
from pez.files import write_parquet
from pez.mechanisms.geometry import TokenGrid, token_grid
from pez.mechanisms.passes import (
    ClipPass,
    add_clip_arguments,
    chosen_clips,
    clip_groups,
    clip_source,
    encoder_passes,
    in_parts,
)
from pez.mechanisms.runs import add_run_arguments, check_encoder, curve_name, folder_of, write_results, zone_layers
from pez.probes.data.probe_data import check_layers
from pez.probes.scores.bootstrap import bootstrap, group_resamples
from pez.shards import add_shard_arguments, check_shard
from pez.tables import unchecked_parquet

QUERIES = 256  # a chunk: of Large 16 heads x 256 x 2048 x 4 bytes are 34 MB
WITHIN_S, WITHIN_T = (1, 3, 5, 7), (0, 1, 2)
DISTANCES = ("spatial", "temporal", "spacetime")
STATISTICS = (
    *DISTANCES,
    "spatial_ratio",
    "self",
    "same_place",
    "same_tubelet",
    *(f"within_s{s}" for s in WITHIN_S),
    *(f"within_t{t}" for t in WITHIN_T),
    "entropy",
)
LOCAL = 3.0  # patches: a head with a smaller spatial mean counts as local
LOCAL_SHARE = 0.4  # of uniform attention's, which does not depend on the grid
LAYER_STATISTICS = ("mean", "spread", "spread_ddof1", "n_local", "n_local_relative", "temporal")


class Collector:
    """Reduces attention to STATISTICS: a Plan calls `receive(block)`; `take()` returns the statistics of the last pass.

    grid: of the tokens; queries: how many are reduced at once.
    """

    def __init__(self, grid: TokenGrid, queries: int = QUERIES):
        self.grid, self.queries = grid, queries
        space, time = grid.space, grid.time
        self.by_place = torch.stack([space, *[(space <= s).double() for s in (*WITHIN_S, 0)]])
        self.by_time = torch.stack([time, *[(time <= t).double() for t in WITHIN_T]])
        self.space_time = grid.space_time()
        self.uniform_of_query = space.mean(1)  # of a place
        self._statistics: dict[int, torch.Tensor] = {}

    def receive(self, block: int) -> Callable[[torch.Tensor, torch.Tensor, float], None]:
        """A function that collects the attention of one block."""

        def receive(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            self._statistics[block] = self.statistics(query, key, scaling)

        return receive

    def take(self) -> torch.Tensor:
        """[B, blocks, heads, statistics] of the last pass, float64 on the CPU; clears them here."""
        statistics = torch.stack([self._statistics[block] for block in sorted(self._statistics)], 1)
        self._statistics = {}
        return statistics

    def statistics(self, query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
        """[B, heads, statistics] of queries and keys [B, heads, N, w], float64 on the CPU."""
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        query, key = query.to(dtype), key.to(dtype)  # a lower precision's autocast would round the products
        sums = torch.zeros(*query.shape[:2], len(STATISTICS), dtype=torch.float64)
        grid, tables = self.grid, {}
        for name in ("by_place", "by_time", "space_time", "uniform_of_query"):
            tables[name] = getattr(self, name).to(query.device, dtype)
        with torch.autocast(query.device.type, enabled=False):
            for first in range(0, grid.tokens, self.queries):
                rows = torch.arange(first, min(first + self.queries, grid.tokens), device=query.device)
                sums += self._chunk(query[:, :, rows], key, scaling, rows, tables).cpu()
        return sums / grid.tokens

    def _chunk(self, query, key, scaling: float, rows: torch.Tensor, tables: dict) -> torch.Tensor:
        """Sums over some queries, [B, heads, statistics]."""
        grid = self.grid
        logits = (query @ key.mT).mul_(scaling)
        normaliser = logits.logsumexp(-1, keepdim=True)
        weights = (logits - normaliser).exp_()
        entropy = normaliser[..., 0] - torch.einsum("bhqn,bhqn->bhq", weights, logits)
        spacetime = torch.einsum("bhqn,qn->bhq", weights, tables["space_time"][rows])
        self_share = weights.gather(-1, rows[None, None, :, None].expand(*weights.shape[:3], 1))[..., 0]
        split = weights.unflatten(-1, (grid.tubelets, grid.places))
        places, tubelets = split.sum(-2), split.sum(-1)
        at, when = rows % grid.places, rows // grid.places
        of_place = torch.einsum("bhqg,kqg->bhqk", places, tables["by_place"][:, at])
        of_time = torch.einsum("bhqt,kqt->bhqk", tubelets, tables["by_time"][:, when])
        spatial, same_place = of_place[..., 0], of_place[..., -1]
        ratio = spatial / tables["uniform_of_query"][at]
        statistics = [spatial, of_time[..., 0], spacetime, ratio, self_share, same_place, of_time[..., 1]]
        statistics = [torch.stack(statistics, -1), of_place[..., 1:-1], of_time[..., 1:], entropy[..., None]]
        return torch.cat(statistics, -1).double().sum(2)  # of a query in single precision, over queries in double


def attention_of(
    encoder: Encoder,
    frames: torch.Tensor,
    grid: TokenGrid,
    layers: Sequence[int] | None = None,
    queries: int = QUERIES,
) -> torch.Tensor:
    """Statistics of every head for uint8 frames [B, T, 3, R, R]: [B, layers, heads, statistics], float64, of `layers`
    in ascending order, or all."""
    collector = Collector(grid, queries)
    chosen = range(encoder.depth) if layers is None else layers
    with attention_plans(encoder, {block: Plan(collector.receive(block)) for block in chosen}):
        encoder.forward(frames)
    return collector.take()


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py attention`."""
    add_run_arguments(parser)
    add_clip_arguments(parser)
    parser.add_argument("--layers", nargs="+", type=int, help="only these (default: all)")
    parser.add_argument("--control", nargs="+", default=[], choices=control_passes(), help="measure these too")
    parser.add_argument("--control-seeds", type=COUNT, default=3, help="random encoders of --control random_weights")
    add_shard_arguments(parser)


def main(args: argparse.Namespace) -> list[Path]:
    """Measure attention over the clips, and of the controls; the paths of the tables, none while parts are missing."""
    shard, source = check_shard(args.num_shards, args.shard_index), clip_source(args)
    encoder = encoder_from_arguments(args)
    clip_ids, tables = chosen_clips(source, args.max_clips), []
    check_encoder(args, encoder.description())
    attention_modules(encoder)
    grid = token_grid(encoder, source.n_frames)
    zone = zone_layers(args.zone_layers, encoder.depth)
    measured = check_layers(args.layers, encoder.depth)
    passes = list(encoder_passes(args, encoder))
    for each in passes:
        own, order = each.encoder, each.frame_order
        clip_pass = ClipPass.of(args, source, order)
        clip_pass.check_frames(own)
        folder = folder_of(args, "attention") / curve_name(each.kind, each.seed)
        settings = {**clip_pass.settings(own), "grid": [grid.tubelets, grid.height, grid.width]}
        settings["layers"] = list(measured)

        def make(ids: list[str], path: Path, own=own, clip_pass=clip_pass) -> None:
            statistics = []
            for _, frames in clip_pass.batches(own, ids):
                with clip_pass.precision(own):
                    statistics.append(attention_of(own, frames, grid, measured))
            write_parquet(path, _rows(ids, measured, torch.cat(statistics).numpy()))

        what = f"attention: {own.model}, {own.weights_label}" + (f", {order}" if order != "original" else "")
        parts = in_parts(folder, settings, clip_ids, shard, "parquet", make, what)
        if parts:
            table = pd.concat(
                [unchecked_parquet(path, "remove it and rerun the same command") for path in parts], ignore_index=True
            )
            tables.append(table.assign(control=each.kind, control_seed=each.seed))
    if len(tables) < len(passes):
        return []
    clips = pd.concat(tables, ignore_index=True)
    heads, layers = tabulate(clips, grid, source, encoder.depth, args.bootstrap, args.seed)
    n_groups = len(set(clip_groups(source.clips[source.clips["clip_id"].isin(clip_ids)])))
    tables = {"attention.csv": heads, "attention_layers.csv": layers, "attention_clips.parquet": clips}
    about = {"zone": zone, "grid": [grid.tubelets, grid.height, grid.width], "uniform": grid.uniform()}
    about["features"] = ClipPass.of(args, source).settings(encoder)
    return write_results(args, "attention", tables, about, "none", len(clip_ids), n_groups)


def _rows(clip_ids: Sequence[str], layers: Sequence[int], values: np.ndarray) -> pd.DataFrame:
    """[clips, layers, heads, statistics] as a table, a row per clip, layer and head."""
    index = pd.MultiIndex.from_product([clip_ids, layers, range(values.shape[2])], names=["clip_id", "layer", "head"])
    return pd.DataFrame(values.reshape(-1, len(STATISTICS)), index=index, columns=STATISTICS).reset_index()


def tabulate(
    clips: pd.DataFrame, grid: TokenGrid, source, depth: int, n_resamples: int, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of heads and of layers, with 95 % intervals over groups of clips; `clips` as the parquet has them."""
    uniform, heads, layers = grid.uniform(), [], []
    for (control, control_seed), own in clips.groupby(["control", "control_seed"], sort=False):
        measured, n_heads = sorted(own["layer"].unique()), own["head"].max() + 1
        ids = own["clip_id"].drop_duplicates()
        values = own.sort_values(["clip_id", "layer", "head"])[list(STATISTICS)].to_numpy()
        values = values.reshape(len(ids), len(measured), n_heads, len(STATISTICS))
        table = source.clips.set_index("clip_id").loc[sorted(ids)].reset_index()
        resamples = group_resamples(clip_groups(table), max(n_resamples, 1), seed, n_folds=None)
        index, n_groups = resamples.index(clip_groups(table)), len(resamples.names)
        sums = np.zeros((n_groups, *values.shape[1:]))
        np.add.at(sums, index, values)
        sizes = np.bincount(index, minlength=n_groups)

        def mean(counts, sums=sums, sizes=sizes) -> np.ndarray:  # [rows, layers, heads, statistics]
            return np.tensordot(counts, sums, 1) / (counts @ sizes)[:, None, None, None]

        named = {"control": control, "control_seed": control_seed}
        curve = bootstrap(lambda counts, mean=mean: mean(counts).reshape(len(counts), -1), resamples)
        low, high = (ends.reshape(values.shape[1:]) for ends in curve.interval().T)
        estimate = curve.estimate.reshape(values.shape[1:])
        for layer, head, number in np.ndindex(estimate.shape):
            name, value = STATISTICS[number], estimate[layer, head, number]
            own_ends = {"low": low[layer, head, number], "high": high[layer, head, number]}
            relative = value / uniform[name] if name in uniform else np.nan
            at = {"layer": measured[layer], "head": head, "statistic": name, "mean": value}
            heads.append({**named, **at, **own_ends, "relative_to_uniform": relative})
        of_layers = pd.DataFrame({"layer": measured, "fraction": np.array(measured) / max(depth - 1, 1)}).assign(
            **named
        )
        for name in LAYER_STATISTICS:
            of_layer = _layer_statistic(name, uniform)
            summed = bootstrap(lambda counts, mean=mean, of=of_layer: of(mean(counts)), resamples)
            of_layers[name] = summed.estimate
            of_layers[[f"{name}_low", f"{name}_high"]] = summed.interval()
        layers.append(of_layers)
    heads, layers = pd.DataFrame(heads), pd.concat(layers, ignore_index=True)
    if n_resamples == 0:
        for table in (heads, layers):
            table[[name for name in table if name.endswith(("low", "high"))]] = np.nan
    return heads, layers


def _layer_statistic(name: str, uniform: dict[str, float]) -> Callable[[np.ndarray], np.ndarray]:
    """[rows, layers, heads, statistics] -> [rows, layers]."""
    if name == "temporal":
        return lambda values: values[..., STATISTICS.index("temporal")].mean(2)
    spatial = STATISTICS.index("spatial")
    return {
        "mean": lambda values: values[..., spatial].mean(2),
        "spread": lambda values: values[..., spatial].std(2),
        "spread_ddof1": lambda values: values[..., spatial].std(2, ddof=1),
        "n_local": lambda values: (values[..., spatial] < LOCAL).sum(2) * 1.0,
        "n_local_relative": lambda values: (values[..., spatial] < LOCAL_SHARE * uniform["spatial"]).sum(2) * 1.0,
    }[name]


def mass_removed(encoder: Encoder, frames: torch.Tensor, blocks: Sequence[int], dropped: torch.Tensor) -> float:
    """Share of attention, before renormalising, that a mask takes away: the mean over clips, heads, queries, `blocks`.

    `dropped` bool [N, N]. The blocks see the state that no mask has changed.
    """
    shares = []

    def receive(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        for first in range(0, query.shape[2], QUERIES):
            rows = slice(first, first + QUERIES)
            weights = ((query[:, :, rows].float() @ key.float().mT) * scaling).softmax(-1)
            shares.append((weights * dropped[rows].to(weights.device)).sum(-1).double().flatten().cpu())

    with attention_plans(encoder, {block: Plan(receive) for block in blocks}):
        encoder.forward(frames)
    return float(torch.cat(shares).mean())
