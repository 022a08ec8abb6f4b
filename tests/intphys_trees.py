"""For tests: synthetic IntPhys trees on disk, and stores of features planted in IntPhys movies."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pez.movies.intphys import INTPHYS, SUBTASKS
from pez.movies.intphys2 import matched
from pez.probes.data.movies import movie_data
from pez.probes.data.probe_data import ProbeData
from pez.probes.folds import repeated_scene_folds
from pez.probes.results import movie_predictions
from pez.probes.solvers.attentive import AttentiveSolver
from pez.probes.solvers.attentive_training import Recipe
from pez.probes.solvers.regression import Setting
from pez.probes.validation.checkpoints import LongCurve, cross_validate_long
from pez.shards import WHOLE, Shard
from pez.store import FeatureStore, tensor_name


def write_tree(
    root: Path, n_scenes: int = 2, n_frames: int = 6, size: int = 32, seed: int = 0, stand_in: bool = True
) -> Path:
    """A tree in the public layout: each movie has a grey level of its own, brighter frame by frame."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    if stand_in:  # without it a tree must be as large as the archive
        (root / "STAND_IN.json").write_text("{}")
    for block in SUBTASKS:
        for scene in range(1, n_scenes + 1):
            labels = rng.permutation([True, True, False, False])
            for movie, possible in enumerate(labels, start=1):
                folder = root / block / f"{scene:02d}" / str(movie)
                (folder / "scene").mkdir(parents=True)
                status = {"header": {"is_possible": bool(possible)}}
                (folder / "status.json").write_text(json.dumps(status))
                for frame in range(1, n_frames + 1):
                    level = int(rng.integers(0, 200)) + frame
                    (folder / "scene" / f"scene_{frame:03d}.png").write_bytes(png(size, level))
    return root


def pair_accuracy(movies: pd.DataFrame, pair_column: str = "pair") -> float:
    """Share of pairs whose possible video has strictly the higher `score`: a tie is wrong.

    With `pair_column` "" every possible movie of a scene is paired with every impossible one. The score is higher the
    more possible; of surprises, minus the mean or the largest over windows (their relative accuracy).
    """
    possible, impossible = matched(movies, pair_column)
    score = movies["score"].to_numpy()
    return float((score[possible] > score[impossible]).mean())


def png(size: int, level: int) -> bytes:
    """A grey PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def movie_table(n_scenes: int, seed: int = 0) -> pd.DataFrame:
    """Movies as `MovieDataset.movies` gives them, without a tree."""
    rng = np.random.default_rng(seed)
    rows = []
    for block, subtask in SUBTASKS.items():
        for scene in range(1, n_scenes + 1):
            for movie, possible in enumerate(rng.permutation([True, True, False, False]), start=1):
                clip_id = f"{block}_{scene:02d}_{movie}"
                rows.append([clip_id, block, subtask, f"{scene:02d}", movie, bool(possible), 100])
    return pd.DataFrame(rows, columns=["clip_id", "block", "subtask", "scene", "movie", "possible", "n_frames"])


def planted_store(
    directory: Path,
    *,
    n_scenes: int = 5,
    depth: int = 4,
    width: int = 8,
    tokens: int | None = None,
    planted: dict[int, float] | None = None,
    constant: bool = False,
    loud: int | None = None,
    model: str = "tiny",
    seed: int = 0,
) -> FeatureStore:
    """Noise features of IntPhys movies; at `planted` layers possible movies lie that much further along channel 0.

    `tokens` None: pooling "mean", else "temporal_last_patch" with so many. `constant`: every feature is 1. `loud`: a
    channel that is made a hundred times as large.
    """
    movies = movie_table(n_scenes, seed)
    pooling = "mean" if tokens is None else "temporal_last_patch"
    settings = {
        "model": model,
        "weights_label": "random weights (seed 0)",
        "weights_sha256": "0" * 64,
        "checkpoint_key": None,
        "captures": ["resid_pre"],
        "poolings": [pooling],
        "transform": "resize",
        "frame_order": "original",
        "depth": depth,
        "width": width,
        "n_tubelets": 8,
        "n_patches": tokens or 256,
        "resolution": 256,
        "shard_clips": 16,
        "clip_set": {"name": "intphys", "fingerprint": str(seed), "settings": {"n_frames_sample": 16, "n_frames": 100}},
    }
    store = FeatureStore.plan(directory, settings, movies, None)
    generator = torch.Generator().manual_seed(seed)
    shape = (width,) if tokens is None else (tokens, width)
    for shard in range(store.n_shards):
        possible = torch.as_tensor(store.clips_of(shard)["possible"].to_numpy(dtype=np.float32))
        tensors = {}
        for layer in range(depth):
            noise = torch.randn(len(possible), *shape, generator=generator)
            x = torch.ones_like(noise) if constant else noise
            x[..., 0] += ((planted or {}).get(layer, 0.0) * possible).reshape(-1, *[1] * (len(shape) - 1))
            if loud is not None:
                x[..., loud] *= 100
            tensors[tensor_name(pooling, layer)] = x
        store.write_shard(shard, tensors)
    return FeatureStore.open(directory)


def attentive_curve(
    data: ProbeData, recipe: Recipe, settings, protocols, metric: str, n_folds: int, repeats: int
) -> LongCurve:
    """A curve as pez/probes/runs.py describes it: everything that decides a score, by name."""
    described = {
        "weights_sha256": data.described["weights_sha256"],
        "n_folds": n_folds,
        **asdict(recipe),
        "settings": [list(setting) for setting in settings],
        "selection_metric": metric,
        "control": data.control,
        "control_seed": data.control_seed,
        "protocols": list(protocols),
    }
    folds = repeated_scene_folds(data.clips, n_folds, recipe.seed, repeats)
    return LongCurve(data, folds, tuple(protocols), described)


def probe_attentive(
    store: FeatureStore,
    directory: Path,
    *,
    recipe: Recipe,
    settings,
    protocols,
    n_folds: int,
    layers,
    metric: str = "relative_accuracy",
    repeats: int = 1,
    memory_bytes: int | None = None,
    shard: Shard = WHOLE,
    change=lambda data: data,
    controls=lambda data: [],
) -> pd.DataFrame | None:
    """Rows of predictions_RUN.parquet of attentive probes; `change` the main data, `controls` made of it."""
    main = change(movie_data(store, INTPHYS, "resid_pre", "temporal_last_patch", layers))
    asked = {"recipe": recipe, "settings": settings, "metric": metric, "n_folds": n_folds, "repeats": repeats}
    curves = [attentive_curve(main, protocols=protocols, **asked)]
    curves += [attentive_curve(data, protocols=protocols[-1:], **asked) for data in controls(main)]
    solver = AttentiveSolver(tuple(Setting(*own) for own in settings), recipe, memory_bytes=memory_bytes)
    found = cross_validate_long(curves, directory, solver, metric, shard)
    return None if found is None else movie_predictions(found, with_epoch=True)
