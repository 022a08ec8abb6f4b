"""What is still read once heads may not look near (section 6.3, C.6, Tables 2 and 4).

In the blocks of a band (the zone, and as many early and late ones) every query loses keys, as a condition of
pez/mechanisms/geometry.py says; the rest is renormalised. Blocks before the first masked one run once, each condition
goes on from there. A query left with no key adds nothing (`--empty-rows zero`) or looks as ever (`keep`).

Read at the last masked layer, the last one and those of `--layers`, twice: `refit`, by probes trained on ablated
features (is it gone?); `frozen`, by those of unablated features on the same folds (does the old code still work?).
Direction and speed (R^2) from mean-pooled features, direction at every place (`per_patch`: one probe for all), and
movies (accuracy over all).

Features of a condition are an ordinary store, mechanisms_RUN/ablate/CURVE/BAND/CONDITION/SET, with pooling `mean`, and
beside it, at the last masked layer, `time_mean_patch` in places/.

    ablation_RUN.csv   zone band layers last_masked condition semantics kind s t heads empty_rows removed_keys
                       empty_share removed_mass read_layer probe (refit or frozen) variable score low high delta
                       delta_low delta_high
    table4_ablation_RUN.md, .csv   in the paper's layout, its numbers beside ours
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from constants import REFERENCE_DIR
from pez.cli import COUNT, Number
from pez.encoder.arguments import encoder_from_arguments
from pez.encoder.attention import Plan, attention_modules, attention_plans, run_from
from pez.encoder.capture import captured_states
from pez.encoder.extract import with_content
from pez.encoder.pooling import POOLINGS
from pez.encoder.protocol import Encoder
from pez.errors import UserError
from pez.files import atomic_path, run_lock
from pez.mechanisms.attention import LOCAL, mass_removed
from pez.mechanisms.geometry import Condition, TokenGrid, condition, paper_conditions, token_grid
from pez.mechanisms.passes import (
    ClipPass,
    add_clip_arguments,
    chosen_clips,
    clip_groups,
    clip_source,
    encoder_passes,
)
from pez.mechanisms.patches import nested, read_out_of_fold
from pez.mechanisms.runs import (
    DIRECTION,
    SPEED,
    add_run_arguments,
    bands,
    check_encoder,
    curve_name,
    folder_of,
    movie_data,
    of_variable,
    scored,
    write_results,
    zone_layers,
)
from pez.movies import dataset_at
from pez.probes.data.ball import variables
from pez.probes.data.movies import movie_source
from pez.probes.data.probe_data import POSSIBLE, ProbeData, check_layers
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.bootstrap import BootstrapCurve, bootstrap_accuracy, bootstrap_r2, group_resamples
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate
from pez.progress import progress
from pez.shards import add_shard_arguments, check_shard, holding
from pez.store import SHARD_CLIPS, FeatureStore, tensor_name
from pez.tables import read_csv

NONE = "none"  # the baseline: no mask at all
READOUTS = ("refit", "frozen")
HEADS = ("all", "local", "other", "random")
MASS_CLIPS = 2  # clips on whose attention the removed mass is measured


def masks(dropped: torch.Tensor, empty_rows: str, heads: torch.Tensor | None = None) -> Plan:
    """A Plan for keys lost `dropped` [N, N] by all heads, or those of `heads` bool [H]; a row that would be empty looks
    everywhere, and is silent if `empty_rows` is zero."""
    empty = dropped.all(1)
    keep = ~dropped | empty[:, None]
    if heads is None:
        return Plan(keep=keep[None, None], silent=empty[None] if empty_rows == "zero" and bool(empty.any()) else None)
    keep = torch.where(heads[:, None, None], keep, True)[None]
    silent = heads[:, None] & empty if empty_rows == "zero" and bool(empty.any()) else None
    return Plan(keep=keep, silent=silent)


@dataclass(frozen=True)
class Cell:
    """A condition in a band: the blocks that it masks, their plans, and its description in a store's settings."""

    band: str
    layers: tuple[int, ...]
    condition: Condition | None  # None: the baseline
    plans: dict[int, Plan]
    described: dict

    @property
    def name(self) -> str:
        """Name of the condition."""
        return self.condition.name if self.condition else NONE


def cells_of(
    args, encoder: Encoder, grid: TokenGrid, band: str, layers: list[int], asked: list[Condition]
) -> list[Cell]:
    """The baseline and every condition of one band."""
    chosen = head_sets(args, encoder, layers)
    said = {"band": band, "layers": layers, "heads": args.heads, "empty_rows": args.empty_rows}
    cells = [Cell(band, tuple(layers), None, {}, {**said, "condition": NONE})]
    for each in asked:
        dropped = each.dropped(grid).to(encoder.device)
        plans = {layer: masks(dropped, args.empty_rows, chosen[layer] if chosen else None) for layer in layers}
        cells.append(Cell(band, tuple(layers), each, plans, {**said, "condition": each.name}))
    return cells


def head_sets(args, encoder: Encoder, layers: list[int]) -> dict[int, torch.Tensor]:
    """Which heads of each layer are masked, bool [H]; empty for all of them. Local ones look nearer than LOCAL patches,
    by what `attention` of the same run measured; random ones are as many, drawn."""
    if args.heads == "all":
        return {}
    path = args.results_dir / f"attention_{args.run_name}.csv"
    if not path.is_file():
        raise UserError(
            f"--heads {args.heads} needs {path}: run `step4_mechanisms.py attention` of this --run-name first"
        )
    table = read_csv(path, "run `step4_mechanisms.py attention` of this --run-name again")
    table = table[table["control"].isna() & (table["statistic"] == "spatial")]
    means = table.pivot_table(index="layer", columns="head", values="mean")
    if not set(layers) <= set(means.index):
        raise UserError(f"{path} lacks layers that are masked: run `step4_mechanisms.py attention` for all of them")
    rng, masked = np.random.default_rng(args.seed), {}
    for layer in layers:
        local = means.loc[layer].to_numpy() < LOCAL
        if args.heads == "other":
            local = ~local
        elif args.heads == "random":
            local = rng.permutation(local)
        masked[layer] = torch.from_numpy(local).to(encoder.device)
    if not any(bool(each.any()) for each in masked.values()):
        raise UserError(
            f"--heads {args.heads}: no such head in layers {' '.join(map(str, layers))}: choose --heads all"
        )
    return masked


# ---------------------------------------------------------------- features


def extract(
    encoder: Encoder, clip_pass: ClipPass, folder: Path, cells: list[Cell], clip_ids: list[str], shard
) -> dict[str, FeatureStore]:
    """The stores of all conditions of a band, by name. Complete shards are kept; the clips of the others run once."""
    source, first = clip_pass.source, min(cells[0].layers)
    clips = with_content(source)
    clips = clips[clips["clip_id"].isin(clip_ids)]
    frames = None if source.frames is None else source.frames[source.frames["clip_id"].isin(clip_ids)]
    stores = {}
    for cell in cells:
        settings = {
            **clip_pass.settings(encoder),
            "n_tubelets": encoder.layout.n_tubelets(source.n_frames),
            "captures": ["resid_post"],
            "poolings": ["mean"],
            "store_dtype": "float32",
            "shard_clips": SHARD_CLIPS,
            "ablation": cell.described,
        }
        directory = folder / cell.band / cell.name / source.name
        stores[cell.name] = FeatureStore.plan(directory, settings, clips, frames, shard)
    any_store = next(iter(stores.values()))
    lacking = {
        number: [cell for cell in cells if not _is_complete(stores[cell.name], number)]
        for number in any_store.own_shards()
    }
    total = sum(len(any_store.clips_of(number)) for number, own in lacking.items() if own)
    what = f"{cells[0].band}: {source.name}, {encoder.weights_label}"
    with progress(total=total, description=what, unit="clip") as bar:
        for number, own in lacking.items():
            if own:
                ids = any_store.clips_of(number)["clip_id"].tolist()
                _run_shard(encoder, clip_pass, own, stores, number, ids, first, bar)
    return stores


def _places_path(store: FeatureStore, number: int) -> Path:
    return store.directory / "places" / f"shard_{number:05d}.safetensors"


def _is_complete(store: FeatureStore, number: int) -> bool:
    return store.shard_path(number).is_file() and _places_path(store, number).is_file()


def _run_shard(
    encoder: Encoder, clip_pass: ClipPass, cells, stores, number: int, clip_ids: list[str], first: int, bar
) -> None:
    """Run some clips to the first masked block once, then on from that state under every condition."""
    layout = encoder.layout
    n_tubelets = layout.n_tubelets(clip_pass.source.n_frames)
    pooled: dict[str, dict[str, list[torch.Tensor]]] = {cell.name: {} for cell in cells}

    def grid(hidden: torch.Tensor) -> torch.Tensor:
        return layout.grid(hidden, n_tubelets).flatten(2, 3).float()

    for _, frames in clip_pass.batches(encoder, clip_ids):
        with clip_pass.precision(encoder):
            before: dict[int, torch.Tensor] = {}

            def keep(state: int, hidden: torch.Tensor, before=before) -> None:
                before[state] = hidden if state == first else POOLINGS["mean"](grid(hidden))

            with captured_states(encoder, list(range(first + 1)), keep):
                encoder.forward(frames)
            for cell in cells:
                means = {
                    state: each if state < first else POOLINGS["mean"](grid(each)) for state, each in before.items()
                }
                last, places = max(cell.layers) + 1, []

                def receive(state: int, hidden: torch.Tensor, means=means, last=last, places=places) -> None:
                    state_grid = grid(hidden)
                    means[state] = POOLINGS["mean"](state_grid)
                    if state == last:
                        places.append(POOLINGS["time_mean_patch"](state_grid))

                with attention_plans(encoder, cell.plans):
                    run_from(encoder, first, before[first], receive)
                own = pooled[cell.name]
                for state in range(1, encoder.depth + 1):
                    own.setdefault(tensor_name("mean", state), []).append(means[state].cpu())
                own.setdefault("places", []).append(places[0].half().cpu())
        bar.update(len(frames))
    for cell in cells:
        store, tensors = stores[cell.name], {name: torch.cat(parts) for name, parts in pooled[cell.name].items()}
        places = tensors.pop("places").contiguous()
        with atomic_path(_places_path(store, number)) as temporary:
            save_file({"time_mean_patch": places}, temporary)
        store.write_shard(number, tensors)


def places_of(store: FeatureStore) -> torch.Tensor:
    """`time_mean_patch` of a condition's last masked layer, [clips, places, d], in the order of its clips."""
    return torch.cat([load_file(_places_path(store, number))["time_mean_patch"] for number in range(store.n_shards)])


# ---------------------------------------------------------------- readouts


def _read_by(readout: str, data: ProbeData, store: FeatureStore) -> ProbeData:
    """Features of `store`, read by probes of their own ("refit") or by those of `data`'s ("frozen")."""

    def ablated(layer: int) -> torch.Tensor:
        return store.layer("resid_post", "mean", layer)

    if readout == "refit":
        return dataclasses.replace(data, features=ablated)
    return dataclasses.replace(data, read_features=ablated, read_variables=data.variables)


def ball_readouts(stores: dict[str, FeatureStore], cells: list[Cell], n_folds: int, args) -> list[dict]:
    """Rows of direction, speed and per-patch direction of every condition; deltas to the baseline are paired."""
    base = stores[NONE]
    probed = tuple(each for each in variables("fig2c", base, "sincos") if each.name in (SPEED, DIRECTION))
    group = clip_groups(base.clips)
    targets = np.concatenate([each.targets for each in probed], axis=1)
    folds = Folds(group, grouped_folds(group, n_folds, args.seed, base.clips.get("direction_deg"), targets=targets))
    depth, last = base.depth, max(cells[0].layers)
    data = ProbeData(
        name=base.name,
        clips=base.clips,
        group=group,
        variables=probed,
        layers=layers_read(args, last, depth),
        depth=depth,
        features=lambda layer: base.layer("resid_post", "mean", layer),
        described=base.settings,
    )
    resamples = group_resamples(group, max(args.bootstrap, 1), args.seed, folds.n_folds)
    unablated = places_of(base)
    one = of_variable(dataclasses.replace(data, layers=(last,), norm_mode="center"), DIRECTION)
    _, frozen_probes = nested(dataclasses.replace(one, features=lambda layer: unablated), folds)
    rows, baselines = [], {}
    for cell in cells:
        for readout in args.readout:
            own = _read_by(readout, data, stores[cell.name])
            for predictions in cross_validate(own, (folds,), linear_solver("ridge"), ("nested",)):
                curve = bootstrap_r2(predictions.variable.targets, predictions.predicted[0], group, resamples)
                for at, layer in enumerate(data.layers):
                    key = (readout, predictions.variable.name, layer)
                    rows.append(_row(cell, *key, _layer_of(curve, at), baselines, args))
            places = places_of(stores[cell.name])
            ablated = dataclasses.replace(one, features=lambda layer, places=places: places)
            probes = frozen_probes if readout == "frozen" else nested(ablated, folds)[1]
            read = read_out_of_fold(ablated, folds, last, probes)
            flat = np.repeat(np.arange(len(group)), read.shape[1])
            curve = bootstrap_r2(one.targets.numpy()[flat], read.reshape(1, -1, 2), group[flat], resamples)
            rows.append(_row(cell, readout, "per_patch", last, curve, baselines, args))
    return [{**row, "n_clips": len(group), "n_groups": folds.n_groups} for row in rows]


def layers_read(args: argparse.Namespace, last_masked: int, depth: int) -> tuple[int, ...]:
    """The last masked layer, the last one, and those asked for."""
    return check_layers({last_masked, depth - 1, *(args.layers or ())}, depth)


def _layer_of(curve: BootstrapCurve, at: int) -> BootstrapCurve:
    return curve.map(lambda rows: rows[:, [at]])


def movie_readouts(stores: dict[str, FeatureStore], cells: list[Cell], n_folds: int, args) -> list[dict]:
    """Rows of movies: accuracy over all of them, out of fold, of least squares on 0 and 1."""
    base = stores[NONE]
    layers = layers_read(args, max(cells[0].layers), base.depth)
    data, folds = movie_data(base, layers, lambda layer: base.layer("resid_post", "mean", layer), n_folds, args.seed)
    group, possible = data.group, base.clips[POSSIBLE].to_numpy(dtype=bool)
    resamples = group_resamples(group, max(args.bootstrap, 1), args.seed, folds.n_folds)
    rows, baselines = [], {}
    for cell in cells:
        for readout in args.readout:
            own = _read_by(readout, data, stores[cell.name])
            (predictions,) = cross_validate(own, (folds,), linear_solver("ridge"), ("nested",))
            curve = bootstrap_accuracy(possible, predictions.predicted[0, :, :, 0], group, resamples, threshold=0.5)
            for at, layer in enumerate(layers):
                rows.append(_row(cell, readout, POSSIBLE, layer, _layer_of(curve, at), baselines, args))
    return [{**row, "n_clips": len(group), "n_groups": folds.n_groups} for row in rows]


def _row(cell: Cell, readout: str, variable: str, layer: int, curve: BootstrapCurve, baselines: dict, args) -> dict:
    key = (readout, variable, layer)
    if cell.condition is None:
        baselines[key] = curve
    row = {"band": cell.band, "layers": f"{min(cell.layers)}-{max(cell.layers)}", "condition": cell.name}
    row["last_masked"] = max(cell.layers)
    row |= {"probe": readout, "variable": variable, "read_layer": layer}
    delta = scored(curve - baselines[key], 0, args.bootstrap)
    row |= {**scored(curve, 0, args.bootstrap, "score"), "delta": delta["value"]}
    return row | {"delta_low": delta["low"], "delta_high": delta["high"]}


# ---------------------------------------------------------------- the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py ablate`."""
    add_run_arguments(parser)
    parser.add_argument(
        "--conditions", nargs="+", metavar="NAME", help="such as union_s3_t1 (default: those of Table 4)"
    )
    parser.add_argument(
        "--semantics", default="union", choices=["union", "intersection"], help="of Table 4's combined conditions"
    )
    parser.add_argument("--bands", nargs="+", default=["zone"], choices=["zone", "early", "late"], help="blocks masked")
    parser.add_argument(
        "--heads", default="all", choices=HEADS, help="masked; local: nearer than 3 patches in `attention`"
    )
    parser.add_argument("--empty-rows", default="zero", choices=["zero", "keep"], help="queries left without a key")
    parser.add_argument("--readout", nargs="+", default=list(READOUTS), choices=READOUTS, help="probes")
    parser.add_argument("--layers", nargs="+", type=int, help="read too, beside the last masked and the last one")
    parser.add_argument("--folds", type=Number(int, least=2), default=5, help="of the grouped cross-validation")
    parser.add_argument("--benchmark-root", type=Path, help="movies to read as well, such as artifacts/intphys/dev")
    parser.add_argument("--max-scenes-per-block", type=COUNT, help="of the movies (default: all)")
    parser.add_argument("--control", nargs="+", default=[], choices=["random_weights"], help="do the same with these")
    parser.add_argument("--control-seeds", type=COUNT, default=1, help="random encoders")
    add_clip_arguments(parser)
    add_shard_arguments(parser)


def main(args: argparse.Namespace) -> list[Path]:
    """Ablate, extract and read; the paths of the tables, none while shards are missing."""
    shard, source = check_shard(args.num_shards, args.shard_index), clip_source(args)
    if args.clips not in ("velocity",) and "direction_deg" not in source.clips:
        raise UserError(f"{source.name} has no directions to read: use --clips velocity")
    named = [condition(name) for name in args.conditions] if args.conditions else paper_conditions()
    if args.semantics == "intersection":
        named = [dataclasses.replace(each, kind="intersection") if each.kind == "union" else each for each in named]
    encoder = encoder_from_arguments(args)
    attention_modules(encoder)
    check_encoder(args, encoder.description())
    grid = token_grid(encoder, source.n_frames)
    check_layers(args.layers, encoder.depth)
    chosen = bands(zone_layers(args.zone_layers, encoder.depth), encoder.depth)
    sources = [(source, chosen_clips(source, args.max_clips))]
    if args.benchmark_root is not None:
        dataset = dataset_at(args.benchmark_root)
        movies = dataset.movies(args.benchmark_root, max_scenes=args.max_scenes_per_block)
        films = movie_source(dataset, movies, source.n_frames)
        sources.append((films, sorted(films.clips["clip_id"])))
    rows, complete, folder = [], True, folder_of(args, "ablate")
    with holding(folder, shard):
        for curve in encoder_passes(args, encoder):
            place, own = folder / curve_name(curve.kind, curve.seed), curve.encoder
            for band in args.bands:
                cells = cells_of(args, own, grid, band, chosen[band], named)
                masses = _masses(own, cells, ClipPass.of(args, source), sources[0][1], grid)
                for each, ids in sources:
                    stores = extract(own, ClipPass.of(args, each), place, cells, ids, shard)
                    if any(store.missing_shards() for store in stores.values()):
                        complete = False
                        continue
                    stores = {name: FeatureStore.open(store.directory) for name, store in stores.items()}
                    read = ball_readouts if each is source else movie_readouts
                    for row in read(stores, cells, args.folds, args):
                        of_curve = {"control": curve.kind, "control_seed": curve.seed}
                        rows.append({**of_curve, **row, **masses[row["condition"]]})
    if not complete:
        print(f"{folder}: shards are still to come")
        return []
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"):
        zone = f"{min(chosen['zone'])}-{max(chosen['zone'])}"
        named_by = {"zone": zone, "semantics": args.semantics, "heads": args.heads, "empty_rows": args.empty_rows}
        sizes = len(sources[0][1]), len(set(clip_groups(source.clips[source.clips["clip_id"].isin(sources[0][1])])))
        table = pd.DataFrame(rows).assign(**named_by)
        ours = table4(table)
        text = table4_text(ours, encoder.description(), args)
        tables = {"ablation.csv": table, "table4_ablation.csv": ours, "table4_ablation.md": text}
        about = {"bands": {band: chosen[band] for band in args.bands}, "zone": chosen["zone"]}
        about["features"] = ClipPass.of(args, source).settings(encoder)
        return write_results(args, "ablate", tables, about, "nested", *sizes)


def _masses(encoder: Encoder, cells: list[Cell], clip_pass: ClipPass, clip_ids: list[str], grid: TokenGrid) -> dict:
    """For each condition: the shares of keys and of attention that it removes, and of queries left with no key."""
    ids = clip_ids[:: max(1, len(clip_ids) // MASS_CLIPS)][:MASS_CLIPS]
    frames = torch.cat([each for _, each in clip_pass.batches(encoder, ids)])
    masses = {
        NONE: {"kind": NONE, "s": np.nan, "t": np.nan, "removed_keys": 0.0, "empty_share": 0.0, "removed_mass": 0.0}
    }
    for cell in cells:
        if cell.condition is not None:
            dropped = cell.condition.dropped(grid)
            with clip_pass.precision(encoder):
                mass = mass_removed(encoder, frames, cell.layers, dropped)
            s, t = (value if value >= 0 else np.nan for value in (cell.condition.s, cell.condition.t))
            shares = {
                "removed_keys": float(dropped.double().mean()),
                "empty_share": float(dropped.all(1).double().mean()),
            }
            masses[cell.name] = {"kind": cell.condition.kind, "s": s, "t": t, **shares, "removed_mass": mass}
    return masses


def published_table4() -> pd.DataFrame:
    """The paper's Table 4 with names of conditions as here; "<0" as it is printed."""
    table = pd.read_csv(REFERENCE_DIR / "paper_table4_attention_ablation.csv", dtype=str)
    kinds = {"spatiotemporal": "union", "baseline": NONE}

    def name(row) -> str:
        kind = kinds.get(row["condition"], row["condition"])
        if kind == NONE:
            return NONE
        s, t = (-1 if pd.isna(row[key]) else int(row[key]) for key in ("spatial", "temporal"))
        return Condition(kind, s, t).name

    return table.assign(condition=table.apply(name, axis=1)).drop(columns=["spatial", "temporal"])


def table4(table: pd.DataFrame) -> pd.DataFrame:
    """A row per condition of the zone, at the last masked layer: our refit and frozen scores, then the paper's."""
    main = table[(table["control"] == "") & (table["band"] == "zone")]
    if not len(main):
        return pd.DataFrame(columns=["condition"])
    main = main[main["read_layer"] == main["last_masked"]]
    wide = main.assign(column=main["variable"] + "_" + main["probe"])
    shares = main.groupby("condition", sort=False)[["removed_keys", "empty_share", "removed_mass"]].first()
    scores = wide.pivot_table(index="condition", columns="column", values="score", sort=False)
    theirs = published_table4().set_index("condition").add_prefix("published_")
    return shares.join(scores).join(theirs).reset_index()


def table4_text(ours: pd.DataFrame, described: dict, args) -> str:
    """Markdown of `table4`."""
    columns = [name for name in ours if name != "condition"]
    lines = [f"# Table 4: near attention taken away, {described['model']} ({described['weights_label']})", ""]
    lines.append(f"Zone's layers, {args.heads} heads, combined: {args.semantics}, empty rows: {args.empty_rows}.")
    lines.append(
        "R² of direction and speed, accuracy of movies; read at the last masked layer. Columns published_...: the"
    )
    lines += ["paper's numbers for Large, other clips. It also has ImageNet, which is not run here.", ""]
    lines += ["| condition | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in ours.to_dict("records"):
        cells = [f"{row[name]:.3f}" if isinstance(row[name], float) and np.isfinite(row[name]) else
                 ("" if isinstance(row[name], float) else str(row[name])) for name in columns]  # fmt: skip
        lines.append(f"| {row['condition']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
