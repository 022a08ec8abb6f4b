"""For tests: synthetic IntPhys trees on disk, and stores of features planted in IntPhys movies."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pez.stimuli.intphys import SUBTASKS
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


def png(size: int, level: int) -> bytes:
    """A grey PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def movie_table(n_scenes: int, seed: int = 0) -> pd.DataFrame:
    """Movies as read_intphys gives them, without a tree."""
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
