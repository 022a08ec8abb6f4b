"""Small feature stores with planted signals, for the tests of probes and figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from constants import STIMULUS_GRIDS
from pez.files import fingerprint
from pez.store import FeatureStore, states_of, tensor_name

PX_PER_M, RATE, FRAMES, SIZE = 25.0, 24.0, 16, 256


def ball_tables(kind: str, preset: str = "quick", seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clip and frame tables of a ball set, with the columns that pez.stimuli.clipset documents and probes read."""
    grid, rng = STIMULUS_GRIDS[preset], np.random.default_rng(seed)
    magnitudes = grid.speeds if kind == "velocity" else grid.accelerations
    clips, frames = [], []
    for direction in grid.directions_deg:
        for magnitude in magnitudes:
            for start in range(grid.n_starts):
                place = rng.uniform(-2, 2, 2)
                name = f"{kind}_d{direction:g}_m{magnitude:g}_s{start}"
                clips.append((name, kind, direction, magnitude, *place, start))
                frames.append(_frames(name, kind, np.deg2rad(direction), magnitude, place))
    columns = ["clip_id", "set", "direction_deg", "magnitude", "start_x_m", "start_y_m", "start_index"]
    return pd.DataFrame(clips, columns=columns), pd.concat(frames, ignore_index=True)


def _frames(name, kind, angle, magnitude, place) -> pd.DataFrame:
    heading, time = np.array([np.cos(angle), np.sin(angle)]), np.arange(FRAMES) / RATE
    speed = np.full(FRAMES, magnitude) if kind == "velocity" else magnitude * time
    way = magnitude * (time if kind == "velocity" else time**2 / 2)
    pixel = np.array([PX_PER_M, -PX_PER_M])  # image y points down
    position = SIZE / 2 + (place + way[:, None] * heading) * pixel
    velocity = speed[:, None] * heading * pixel / RATE
    change = (0.0 if kind == "velocity" else magnitude) * heading * pixel / RATE**2
    columns = {"clip_id": name, "frame": np.arange(FRAMES)}
    for letter, values in (("", position), ("v", velocity), ("a", np.tile(change, (FRAMES, 1)))):
        columns |= {f"{letter}x_px": values[:, 0], f"{letter}y_px": values[:, 1]}
    return pd.DataFrame(columns)


def strengths(depth: int) -> dict[str, np.ndarray]:
    """Signal of each quantity by layer: size early, direction from one third on, all fading late."""
    layer = np.arange(depth + 1) / depth
    late = 1 - 0.3 * np.clip(layer - 0.6, 0, None)
    return {
        "size": late * (0.6 + 0.4 * np.clip(layer / 0.2, 0, 1)),
        "heading": late / (1 + np.exp(-(layer - 0.28) / 0.04)),
    }


def planted_features(
    clips: pd.DataFrame, frames: pd.DataFrame, depth: int, width: int, patches: int, seed: int
) -> dict:
    """State -> [clips, width] or [clips, patches, width]: size and heading of motion, noise everywhere.

    Directions of the signal in feature space are drawn per layer; strength follows `strengths`.
    """
    rng, planted = np.random.default_rng(seed), strengths(depth)
    clips = clips.sort_values("clip_id")
    angle, size = np.deg2rad(clips["direction_deg"].to_numpy()), clips["magnitude"].to_numpy()
    sector = np.eye(8)[(clips["direction_deg"].to_numpy() // 45).astype(int)]
    size = (size - size.mean()) / size.std()
    vector = np.stack([np.cos(angle), np.sin(angle)], 1) * (size + 2)[:, None]
    states = {}
    for state in range(depth + 1):
        shape = (len(clips), patches or 1, width)
        heading = np.concatenate([sector, vector], 1) @ rng.normal(size=(10, width))
        signal = planted["size"][state] * size[:, None] * rng.normal(size=width) + planted["heading"][state] * heading
        features = signal[:, None] + 0.6 * width**0.5 * rng.normal(size=shape) + rng.normal(size=width)
        states[state] = torch.tensor(features if patches else features[:, 0], dtype=torch.float32)
    return states


def settings_of(
    kind: str, depth: int, width: int, pooling: str, patches: int, model: str, label: str, shard: int, clips: str
) -> dict:
    """What step 2 writes about its features; `clips` is the fingerprint of the clip set."""
    return {
        "model": model,
        "weights": "random",
        "weights_label": label,
        "weights_sha256": "0" * 64,
        "checkpoint_key": "target_encoder",
        "captures": ["resid_post"],
        "poolings": [pooling],
        "transform": "resize",
        "frame_order": "original",
        "dtype": "float32",
        "store_dtype": "float32",
        "depth": depth,
        "width": width,
        "n_tubelets": 8,
        "n_patches": patches or 256,
        "resolution": SIZE,
        "shard_clips": shard,
        "clip_set": {"name": kind, "fingerprint": clips, "settings": {"resolution": SIZE}},
    }


def write_store(
    root, kind: str, clips, frames, states: dict, pooling: str, model: str, label: str, shard: int = 50, vary=()
):
    """Write `states` (in the order of sorted clip ids) as a complete store under `root`; `vary`: of the clip set."""
    depth, some = max(states), next(iter(states.values()))
    patches = some.shape[1] if some.ndim == 3 else 0
    print_of = fingerprint(clips.sort_values("clip_id").to_csv(index=False))
    settings = settings_of(kind, depth, some.shape[-1], pooling, patches, model, label, shard, print_of)
    if vary:
        settings["clip_set"]["settings"]["vary"] = {factor: {} for factor in vary}
    store = FeatureStore.plan(Path(root) / kind, settings, clips, frames)
    for number in range(store.n_shards):
        rows = slice(number * shard, (number + 1) * shard)
        wanted = states_of(settings["captures"], depth)
        store.write_shard(number, {tensor_name(pooling, state): states[state][rows] for state in wanted})
    return FeatureStore.open(Path(root) / kind)


def planted_root(
    root,
    *,
    preset: str = "quick",
    depth: int = 6,
    width: int = 32,
    patches: int = 0,
    pooling: str = "temporal_last",
    model: str = "tiny",
    label: str = "random weights (seed 0)",
    seed: int = 0,
) -> Path:
    """A feature root with both ball sets planted; returns it."""
    for kind in ("velocity", "acceleration"):
        clips, frames = ball_tables(kind, preset, seed)
        clips = clips.sample(frac=1, random_state=seed)  # whoever joins by order gets it wrong
        states = planted_features(clips, frames, depth, width, patches, seed)
        write_store(root, kind, clips, frames, states, pooling, model, label)
    return Path(root)
