"""Possible and impossible movies to probe: the clip source, the features of the main curve and of its controls.

The main curve reads the movies as they are. Its controls (pez/controls.py) but shuffled_labels take an encoder pass and
a feature store of their own, as large as the main one but for pixels, under FEATURE_ROOT/controls; a complete one is
always used again.
"""

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from constants import ARTIFACTS_DIR, FEATURES_DIR, N_FRAMES
from pez.cli import COUNT
from pez.controls import CONTROLS, MOVIES, controls_for
from pez.encoder.arguments import add_encoder_arguments, encoder_from_arguments, pass_options
from pez.encoder.controls import control_directory, controls
from pez.encoder.extract import extract_features, store_settings
from pez.encoder.pooling import POOLINGS
from pez.encoder.protocol import Encoder
from pez.encoder.sources import ClipSource, Sampling
from pez.encoder.windows import WINDOW_POOLINGS, pool_windows
from pez.errors import UserError
from pez.files import fingerprint
from pez.movies import MOVIE_DATASETS, dataset_at
from pez.movies.dataset import MovieDataset
from pez.movies.intphys2 import HELD_OUT, INTPHYS2, check_leaderboard
from pez.probes.data.probe_data import (
    POSSIBLE,
    ProbeData,
    check_layers,
    feature_precision,
    possible_variable,
    scene_names,
    store_features,
)
from pez.shards import WHOLE, Shard, refuse_with_shards
from pez.store import CAPTURES, FeatureStore

EVENLY = Sampling()
_OF_WINDOWS = ("n_windows", "video_start_s", "video_end_s")
# columns of a store's clips that say nothing of the movie
_OF_STORE = ("n_frames", "content", "shard", "row", *_OF_WINDOWS)


def add_movie_arguments(parser: argparse.ArgumentParser, heads_option: str = "--num-heads") -> None:
    """Add the options that choose movies, frames and features; `heads_option` names the encoder's heads."""
    movies = parser.add_argument_group("movies")
    movies.add_argument("--benchmark", choices=list(MOVIE_DATASETS), help="default: what the folder is found to be")
    movies.add_argument(
        "--intphys-root", "--benchmark-root", type=Path, help="folder of the movies (default: the benchmark's)"
    )
    movies.add_argument("--n-frames-sample", type=COUNT, default=N_FRAMES, help="frames taken evenly from a movie")
    movies.add_argument(
        "--window",
        type=COUNT,
        help="of films: encode every window of so many frames by itself, --n-frames-sample evenly from each, and make "
        "one row of a film's windows (pez/encoder/windows.py)",
    )
    movies.add_argument("--window-stride", type=COUNT, help="frames from window to window (default: all of one)")
    poolings = [name for name in WINDOW_POOLINGS if name != "none"]
    movies.add_argument("--window-pooling", default="mean", choices=poolings, help="of a film's windows")
    movies.add_argument("--max-scenes-per-block", type=COUNT, help="the first scenes of each block (default: all)")
    movies.add_argument("--skip-damaged", action="store_true", help="leave damaged scenes out instead of stopping")
    movies.add_argument(
        "--accept-licence", action="store_true", help="a benchmark's, where that forbids training; asked for once"
    )
    movies.add_argument(
        "--leaderboard",
        type=Path,
        metavar="FILE",
        help="write answers as IntPhys 2's leaderboard wants: out of fold, or those for --held-out",
    )
    movies.add_argument(
        "--held-out", type=Path, metavar="DIR", help="IntPhys 2's split without labels, to be answered: --leaderboard"
    )
    features = parser.add_argument_group("features")
    features.add_argument("--capture", default="resid_pre", choices=CAPTURES, help="residual states to probe")
    features.add_argument(
        "--feature-root", type=Path, help="folder of the features (default: one named after model and settings)"
    )
    features.add_argument(
        "--store-pooling",
        nargs="+",
        default=[],
        choices=list(POOLINGS),
        help="store these of the same pass as well, for the other script: give both one --feature-root",
    )
    features.add_argument(
        "--reuse-features",
        action="store_true",
        help="use features that are there and made with the same settings; without it they are made again "
        "(what a killed run left is finished either way)",
    )
    features.add_argument("--overwrite", action="store_true", help="replace features made with other settings")
    add_encoder_arguments(parser, heads_option)


def movie_source(
    dataset: MovieDataset, movies: pd.DataFrame, n_frames_sample: int, sampling: Sampling = EVENLY
) -> ClipSource:
    """Sampled frames of every movie as clips to encode; where `sampling` has a window (of films), of each window.

    What the store records of them changes with the movies, their labels, the frames taken and the sizes of files.
    """
    paths = {row.clip_id: dataset.frames(row, n_frames_sample) for row in movies.itertuples()}
    content = [
        [row.clip_id, getattr(row, "possible", None), [(path.name, path.stat().st_size) for path in paths[row.clip_id]]]
        for row in movies.itertuples()
    ]
    chosen = {
        "data": dataset.title,
        "n_frames_sample": n_frames_sample,
        "n_movies": len(movies),
        "n_frames": int(movies["n_frames"].max()),
    }
    clips = movies.drop(columns="directory")
    indices: dict[str, list[int]] = {}
    if sampling.window is not None:
        clips, paths, indices = _windows(dataset, clips, paths, n_frames_sample, sampling)
        chosen |= sampling.described()
    settings = {"name": dataset.set_name, "fingerprint": fingerprint(content), "settings": chosen}
    option, name = "--n-frames-sample", dataset.set_name
    return ClipSource(name, clips, None, paths, settings, n_frames_sample, frames_option=option, indices=indices)


def _windows(
    dataset: MovieDataset, movies: pd.DataFrame, paths: dict[str, list[Path]], n_frames: int, sampling: Sampling
) -> tuple[pd.DataFrame, dict[str, list[Path]], dict[str, list[int]]]:
    """A row for every window of every film, as pez.encoder.windows pools them, its file, and the frames taken."""
    window = sampling.window or 0
    if not dataset.films:
        raise UserError(f"--window is for films, movies of {dataset.title} are pictures: leave it out")
    if window < n_frames:
        raise UserError(f"--window {window} has not --n-frames-sample {n_frames} in it: enlarge it, or read fewer")
    rows: list[dict[str, Any]] = []
    indices: dict[str, list[int]] = {}
    for movie in movies.to_dict("records"):
        if movie["n_frames"] < window:
            raise UserError(
                f"{movie['clip_id']} has {movie['n_frames']} frames, fewer than --window {window}: lower it"
            )
        (path,) = paths[movie["clip_id"]]
        for number, taken in enumerate(sampling.of(path, movie["n_frames"], None, n_frames)):
            clip = f"{movie['clip_id']}@{number:05d}"
            indices[clip] = taken
            columns = {"video": movie["clip_id"], "window": number, "frame_indices": " ".join(map(str, taken))}
            columns |= {"window_start_frame": taken[0], "window_end_frame": taken[-1], "frame_times_s": ""}
            rows.append(
                {**movie, "clip_id": clip, **columns, "window_start_s": float("nan"), "window_end_s": float("nan")}
            )
    clips = pd.DataFrame(rows)
    return clips, {row.clip_id: paths[row.video] for row in clips.itertuples()}, indices


@dataclass(frozen=True)
class MovieFeatures:
    """Features of a benchmark's movies: the main `store`; for each control that needs a pass, its stores with their
    seeds; and `held_out`, the store of movies without labels, if they were asked for."""

    dataset: MovieDataset
    store: FeatureStore
    controls: dict[str, list[tuple[FeatureStore, int]]]
    held_out: FeatureStore | None = None


def movie_features(
    args: argparse.Namespace, pooling: str, asked: Sequence[str] = (), shard: Shard = WHOLE
) -> MovieFeatures:
    """Features of the movies that the options name, of those of --held-out and of the controls `asked`: made or reused.

    A control's complete store is always reused; beside other shards so is the main one. Raises UserError for a damaged
    tree, an encoder that cannot be had, a folder with other features, naming the first setting (model, weights,
    frames, transform, capture, ...) that differs, or a licence that is not accepted.
    """
    refuse_with_shards(shard, overwrite=args.overwrite)
    sampling = Sampling(window=args.window, window_stride=args.window_stride)
    if args.window is None and args.window_stride is not None:
        raise UserError("--window-stride is for --window: give it too, or leave both out")
    if args.window is not None and not shard.is_whole:
        raise UserError("--window makes one store of another, which shards cannot share: leave out --num-shards")
    named = MOVIE_DATASETS[args.benchmark or "intphys"]
    folder = args.intphys_root or named.root
    dataset = named if args.benchmark else dataset_at(folder)
    check_leaderboard(dataset, args.leaderboard, args.held_out)
    dataset.check_licence(args.accept_licence, ARTIFACTS_DIR)
    movies = dataset.movies(folder, skip_damaged=args.skip_damaged, max_scenes=args.max_scenes_per_block)
    source, unlabelled = movie_source(dataset, movies, args.n_frames_sample, sampling), None
    if args.held_out is not None:
        others = INTPHYS2.unlabelled(args.held_out, movies["clip_id"])
        unlabelled = movie_source(dataset, others, args.n_frames_sample, sampling)
    encoder = encoder_from_arguments(args)
    print(f"{encoder.model} ({encoder.weights_label}): {encoder.spec.depth} layers, width {encoder.spec.width}")
    print(f"{dataset.title}: {len(movies)} movies, {args.n_frames_sample} of {movies['n_frames'].max()} frames each")
    root = args.feature_root
    if root is None:
        model = re.sub(r"[^\w.-]+", "--", encoder.model)  # an id of the hub has a slash
        weights = encoder.weights_sha256[:8]
        root = FEATURES_DIR / f"intphys_{model}_{weights}_{args.capture}_{args.transform}_{pooling}"
    main = _store(args, encoder, source, root, pooling, shard, remake=not args.reuse_features)
    held_out = None
    if unlabelled is not None:
        print(f"{HELD_OUT}: {len(others)} movies without labels")
        held_out = _store(args, encoder, unlabelled, root / "held_out", pooling, shard, remake=not args.reuse_features)
    stores: dict[str, list[tuple[FeatureStore, int]]] = {}
    passes = [name for name in controls_for(MOVIES) if name in asked and CONTROLS[name].needs_pass]
    for control in controls(encoder, passes, args.frame_order, args.control_seeds):
        print(f"control {control.name}")
        directory = control_directory(root, control.name)
        store = _store(args, control.encoder, source, directory, pooling, shard, control.frame_order)
        stores.setdefault(control.kind, []).append((store, control.seed))  # not the control: it holds an encoder
    return MovieFeatures(dataset, main, stores, held_out)


def _store(
    args: argparse.Namespace,
    encoder: Encoder,
    source: ClipSource,
    root: Path,
    pooling: str,
    shard: Shard,
    frame_order: str | None = None,
    remake: bool = False,
) -> FeatureStore:
    """A complete store under `root` as the options say; `remake` it where it is complete, unless shards share it."""
    directory = root / source.name if args.window is None else root / "windows" / source.name  # of windows, beside it
    options = {**pass_options(args), "captures": [args.capture], "poolings": [pooling, *args.store_pooling]}
    if frame_order is not None:
        options["frame_order"] = frame_order
    overwrite = args.overwrite
    if remake and shard.is_whole:
        described = ("captures", "poolings", "transform", "frame_order", "dtype", "store_dtype")
        settings = store_settings(encoder, source, **{name: options[name] for name in described})
        with suppress(UserError):  # missing, incomplete or damaged: extract_features goes on with it, or refuses it
            overwrite |= FeatureStore.open(directory).settings == settings
    options |= {"reuse_existing": args.reuse_features, "overwrite": overwrite, "shard": shard}
    store = extract_features(encoder, source, directory, finish=True, **options)
    if args.window is None:
        return store
    return pool_windows(store, root / source.name, args.window_pooling, overwrite)


# ---------------------------------------------------------------- data to probe


def kind_of(dataset: MovieDataset) -> str:
    """What its movies are scored as, a key of pez.probes.scores.kinds.KINDS."""
    return "possible_pairs" if dataset.pair_column else POSSIBLE


def movie_data(
    store: FeatureStore, dataset: MovieDataset, capture: str, pooling: str, layers: Sequence[int] | None = None
) -> ProbeData:
    """The main curve's data; `layers` None: all of them."""
    movies = store.clips.drop(columns=[name for name in _OF_STORE if name in store.clips]).reset_index(drop=True)
    kind = kind_of(dataset)
    return ProbeData(
        name=dataset.set_name,
        clips=movies,
        group=scene_names(movies),
        variables=(possible_variable(movies["possible"].to_numpy(dtype=bool), kind),),
        layers=check_layers(layers, store.depth, "the encoder's layers"),
        depth=store.depth,
        features=store_features(store, capture, pooling),
        described=store.settings,
        precision=feature_precision(store.settings, pooling),
        parts=dataset.rows_of_parts,
        stores=(store,),
    )
