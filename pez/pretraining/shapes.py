"""How well direction can be read from an encoder on the trainer's own kind of clips, drawn anew."""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pez.encoder.extract import encode_pooled
from pez.encoder.protocol import Encoder
from pez.pretraining.video import VideoSettings, single_shape_clips
from pez.probes.data.probe_data import Variable
from pez.probes.folds import Folds
from pez.probes.predictions import Predictions
from pez.probes.scores.score import Scored
from pez.probes.solvers.ridge import STRENGTHS
from pez.runs import progress
from pez.store import tensor_name

SEED = 2**40  # training draws from seed * 1,000,003 + step, far below
N_FOLDS = 5
BATCH = 16


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


def direction_scores(features: np.ndarray, velocities: np.ndarray) -> pd.DataFrame:
    """R^2 of (cos, sin) out of fold, a row a layer (`Scored.table`); a ridge probe whose strength is chosen inside the
    training folds."""
    unit = velocities / np.linalg.norm(velocities, axis=1, keepdims=True)
    n = len(unit)
    folds = Folds(np.arange(n).astype(str), np.arange(n) % N_FOLDS)
    probe = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS))
    predicted = np.stack([cross_val_predict(probe, layer, unit, cv=list(folds.splits())) for layer in features])
    variable = Variable("direction", "shapes", unit, "", ("cos", "sin"))
    clips = pd.DataFrame({"clip_id": folds.group})
    one = {"clips": clips, "group": folds.group, "fold": folds.fold[None], "predicted": predicted[None]}
    return Scored(Predictions(variable, "nested", np.arange(len(features)), **one)).table
