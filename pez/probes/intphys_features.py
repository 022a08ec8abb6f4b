"""IntPhys movies to features: the clip source, the store and the options that both IntPhys scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from constants import FEATURES_DIR, INTPHYS_ROOT, N_FRAMES
from pez.encoder.arguments import add_encoder_arguments, encoder_from_arguments, pass_options
from pez.encoder.controls import control_directory, controls
from pez.encoder.extract import extract_features, store_settings
from pez.encoder.sources import ClipSource
from pez.errors import UserError
from pez.files import fingerprint
from pez.probes.intphys_controls import CONTROL_PASSES, CONTROLS, Curve, movies_of, shuffled_labels
from pez.shards import WHOLE, Shard, refuse_with_shards
from pez.stimuli.intphys import DATA, data_name, frame_paths, read_intphys, sample_frames
from pez.store import CAPTURES, FeatureStore

SET_NAME = "intphys"


def add_intphys_arguments(parser: argparse.ArgumentParser, heads_option: str = "--num-heads") -> None:
    """Add the options that choose movies, frames and features; `heads_option` names the encoder's heads."""
    movies = parser.add_argument_group("movies")
    movies.add_argument("--intphys-root", type=Path, default=INTPHYS_ROOT, help="the dev split: O1, O2, O3 are in it")
    movies.add_argument("--n-frames-sample", type=int, default=N_FRAMES, help="frames taken evenly from a movie")
    movies.add_argument("--max-scenes-per-block", type=int, help="the first scenes of each block (default: all)")
    movies.add_argument("--skip-damaged", action="store_true", help="leave damaged scenes out instead of stopping")
    features = parser.add_argument_group("features")
    features.add_argument("--capture", default="resid_pre", choices=CAPTURES, help="residual states to probe")
    features.add_argument(
        "--feature-root", type=Path, help="folder of the features (default: one named after model and settings)"
    )
    features.add_argument(
        "--reuse-features",
        action="store_true",
        help="use features that are there and made with the same settings; without it they are made again "
        "(what a killed run left is finished either way)",
    )
    features.add_argument("--overwrite", action="store_true", help="replace features made with other settings")
    add_encoder_arguments(parser, heads_option)


def intphys_source(movies: pd.DataFrame, n_frames_sample: int, data: str = DATA) -> ClipSource:
    """Sampled frames of every movie as clips to encode; `data` names what they are.

    What the store records of them changes with the movies, labels, frames taken and sizes of their files.
    """
    paths = {
        row.clip_id: frame_paths(row.directory, sample_frames(row.n_frames, n_frames_sample))
        for row in movies.itertuples()
    }
    clips = movies.drop(columns="directory")
    content = [
        [row.clip_id, row.possible, [(path.name, path.stat().st_size) for path in paths[row.clip_id]]]
        for row in movies.itertuples()
    ]
    chosen = {
        "data": data,
        "n_frames_sample": n_frames_sample,
        "n_movies": len(movies),
        "n_frames": int(movies["n_frames"].max()),
    }
    settings = {"name": SET_NAME, "fingerprint": fingerprint(content), "settings": chosen}
    return ClipSource(SET_NAME, clips, None, paths, settings, n_frames_sample)


def run_curves(args: argparse.Namespace, pooling: str, shard: Shard = WHOLE) -> list[Curve]:
    """The main curve first, then one for every control and seed that the options name, in order of CONTROLS.

    Makes the features that are missing; with a `shard`, beside other shards. UserError as of `intphys_stores`, or
    for --control-seeds or --repeats below 1.
    """
    for flag, value in (("--control-seeds", args.control_seeds), ("--repeats", args.repeats)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1; got {value}")
    wanted = [name for name in CONTROLS if name in args.control]
    store, passes = intphys_stores(args, pooling, [name for name in wanted if name in CONTROL_PASSES], shard)
    movies = movies_of(store)
    found = [Curve(store, movies)]
    if "shuffled_labels" in wanted:
        seeds = range(args.control_seeds)
        found += [Curve(store, shuffled_labels(movies, args.seed + k), "shuffled_labels", k) for k in seeds]
    return found + [Curve(other, movies_of(other), control, seed) for other, control, seed in passes]


def intphys_stores(
    args: argparse.Namespace, pooling: str, passes: Sequence[str] = (), shard: Shard = WHOLE
) -> tuple[FeatureStore, list[tuple[FeatureStore, str, int]]]:
    """Features of the movies that the options name, made or reused, and (features, name, seed) of control `passes`.

    A control's complete store is always reused; beside other shards so is the main one. Raises UserError for a damaged
    tree, an encoder that cannot be had, or a folder with other features, naming the first setting (model, weights,
    frames, transform, capture, ...) that differs.
    """
    refuse_with_shards(shard, overwrite=args.overwrite)
    movies = read_intphys(
        args.intphys_root, skip_damaged=args.skip_damaged, max_scenes_per_block=args.max_scenes_per_block
    )
    data = data_name(args.intphys_root)
    source = intphys_source(movies, args.n_frames_sample, data)
    encoder = encoder_from_arguments(args)
    print(f"{encoder.model} ({encoder.weights_label}): {encoder.spec.depth} layers, width {encoder.spec.width}")
    print(f"{data}: {len(movies)} movies, {args.n_frames_sample} of {movies['n_frames'].max()} frames each")
    root = args.feature_root or default_root(args, encoder, pooling)
    make_again = shard.is_whole and not args.reuse_features
    again = make_again and _is_complete(root / SET_NAME, args, encoder, source, pooling)
    chosen = {"overwrite": args.overwrite or again, "shard": shard}
    main = _store(args, encoder, source, root, pooling, chosen)
    found = []
    for control in controls(encoder, passes, args.frame_order, getattr(args, "control_seeds", 1)):
        print(f"control {control.name}")
        folder = control_directory(root, control.name)
        chosen = {"overwrite": args.overwrite, "shard": shard, "frame_order": control.frame_order}
        store = _store(args, control.encoder, source, folder, pooling, chosen)
        found.append((store, control.kind, control.seed))  # not the control: it holds an encoder
    return main, found


def _store(args, encoder, source: ClipSource, root: Path, pooling: str, chosen: dict) -> FeatureStore:
    """A complete store as the options and, over them, `chosen` say."""
    options = {**pass_options(args), "reuse_existing": args.reuse_features, **chosen}
    return extract_features(
        encoder, source, root / SET_NAME, captures=[args.capture], poolings=[pooling], finish=True, **options
    )


def default_root(args: argparse.Namespace, encoder, pooling: str) -> Path:
    """A feature root of its own for every model, capture, transform, pooling and set of weights."""
    weights = encoder.weights_sha256[:8]
    return FEATURES_DIR / f"intphys_{encoder.model}_{weights}_{args.capture}_{args.transform}_{pooling}"


def _is_complete(directory: Path, args, encoder, source: ClipSource, pooling: str) -> bool:
    """Whether the folder already holds all of exactly these features."""
    options = pass_options(args)
    options = {name: options[name] for name in ("transform", "frame_order", "dtype", "store_dtype")}
    settings = store_settings(encoder, source, [args.capture], [pooling], **options)
    try:
        return FeatureStore.open(directory).settings == settings
    except UserError:  # missing, incomplete or damaged: extract_features makes of it what can be made
        return False
