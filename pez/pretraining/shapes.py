"""How well direction and speed can be read from an encoder on the trainer's own kinds of clips, drawn anew.

Two sets, a thing of random look before a camera at rest in each, at a constant velocity: flat shapes
(pez.pretraining.video) and lit balls on floors (pez.pretraining.scenes), whose velocity is the one seen in the picture.
"""

from dataclasses import fields

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from pez.encoder.extract import encode_pooled
from pez.encoder.pooling import POOLINGS
from pez.encoder.preprocessing import normalise
from pez.encoder.protocol import Encoder
from pez.pretraining.network import run_block
from pez.pretraining.objective import JEPA
from pez.pretraining.scenes import SceneSettings, scene_clips
from pez.pretraining.video import VideoSettings, single_shape_clips
from pez.probes.data.probe_data import Variable
from pez.probes.folds import Folds
from pez.probes.predictions import Predictions
from pez.probes.scores.score import N_RESAMPLES, Scored
from pez.probes.solvers.ridge import STRENGTHS
from pez.progress import progress
from pez.store import tensor_name

SEED = 2**40  # training draws from seed * 1,000,003 + step, far below
N_FOLDS = 5
BATCH = 16
EVALUATED_AT_ONCE = 64  # clips, on the training device


def shape_features(
    encoder: Encoder, n_clips: int, seed: int = SEED, pooling: str = "temporal_last"
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled outputs of every block, [depth, n, width], and velocities, [n, 2] pixels a frame, of fresh clips."""
    video = VideoSettings(resolution=encoder.resolution)
    settings = {
        "captures": ["resid_post"],
        "poolings": [pooling],
        "dtype": "float32",
        "n_tubelets": encoder.layout.n_tubelets(video.n_frames),
        "n_patches": encoder.layout.n_patches,
    }
    generator, features, velocities = torch.Generator().manual_seed(seed), [], []
    for start in progress(range(0, n_clips, BATCH), description=f"shapes: {encoder.weights_label}", unit="batch"):
        clips, velocity = single_shape_clips(min(BATCH, n_clips - start), video, generator)
        pooled = encode_pooled(encoder, (clips * 255).round().to(torch.uint8), settings)
        states = [pooled[tensor_name(pooling, layer + 1)] for layer in range(encoder.depth)]
        features.append(torch.stack(states).cpu().numpy())
        velocities.append(velocity.numpy())
    return np.concatenate(features, axis=1), np.concatenate(velocities)


SETS = ("shapes", "balls")


def moving_clips(
    kind: str, n_clips: int, video: VideoSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of one of SETS in [0, 1], [n, T, 3, R, R], and velocities, [n, 2] pixels a frame."""
    if kind == "shapes":
        return single_shape_clips(n_clips, video, generator)
    alone = dict.fromkeys((field.name for field in fields(SceneSettings) if field.name.startswith("share_")), 0.0)
    settings = SceneSettings(top_speed=0.2, **alone)  # slow enough to stay before the camera
    clips, centre = scene_clips(n_clips, video.n_frames, video.resolution, settings, generator)
    return clips, centre.diff(dim=1).mean(1)


@torch.no_grad()
def jepa_features(
    model: JEPA, encoder: nn.Module, kind: str, n_clips: int, resolution: int, generator: torch.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of every block of `model`'s (target) encoder by pooling, [depth, n, width], and velocities [n, 2].

    In training's precision, on the generator's device; poolings: `temporal_last` and `mean`.
    """
    video = VideoSettings(resolution=resolution)
    grid = video.n_frames // model.spec.tubelet_size, resolution // model.spec.patch_size
    pooled, velocities = {"temporal_last": [], "mean": []}, []
    for start in range(0, n_clips, EVALUATED_AT_ONCE):
        clips, velocity = moving_clips(kind, min(EVALUATED_AT_ONCE, n_clips - start), video, generator)
        tokens = model.tokens(normalise((clips * 255).round()))
        states = model.states(encoder, tokens, grid, block=run_block)
        for pooling, values in pooled.items():
            values.append(torch.stack([POOLINGS[pooling](state.unflatten(1, (grid[0], -1))) for state in states]))
        velocities.append(velocity)
    features = {pooling: torch.cat(values, dim=1).cpu().numpy() for pooling, values in pooled.items()}
    return features, torch.cat(velocities).cpu().numpy()


def direction_scores(features: np.ndarray, velocities: np.ndarray) -> pd.DataFrame:
    """R^2 of (cos, sin) out of fold, a row a layer (`Scored.table`); a ridge probe whose strength is chosen inside the
    training folds."""
    return scored("direction", features, velocities).table


def scored(name: str, features: np.ndarray, velocities: np.ndarray, n_resamples: int = N_RESAMPLES) -> Scored:
    """Out-of-fold scores of "direction" or "speed", read from features [layers, n, width] and velocities [n, 2]."""
    speed = np.linalg.norm(velocities, axis=1, keepdims=True)
    if name == "direction":
        variable = Variable(name, "shapes", velocities / speed, "", ("cos", "sin"))
    else:
        variable = Variable(name, "shapes", speed, "pixels a frame", (name,))
    n = len(speed)
    folds = Folds(np.arange(n).astype(str), np.arange(n) % N_FOLDS)
    probe = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS))
    splits = list(folds.splits())
    predicted = [cross_val_predict(probe, layer, variable.targets, cv=splits).reshape(n, -1) for layer in features]
    clips = pd.DataFrame({"clip_id": folds.group})
    one = {"clips": clips, "group": folds.group, "fold": folds.fold[None], "predicted": np.stack(predicted)[None]}
    return Scored(Predictions(variable, "nested", np.arange(len(features)), **one), n_resamples)
