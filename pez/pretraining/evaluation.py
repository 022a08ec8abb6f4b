"""How well direction and speed can be read from the encoder that is being trained, on rendered ball clips."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from constants import MODELS, N_FOLDS, RESOLUTION
from pez.encoder.extract import extract_features
from pez.encoder.loading import encoder_from_state
from pez.encoder.sources import ball_source
from pez.probes.data.ball import variables
from pez.probes.data.probe_data import ProbeData, store_features
from pez.probes.folds import repeated_folds
from pez.probes.scores.score import score
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate
from pez.stimuli.generate import set_settings, write_clip_set
from pez.store import FeatureStore

SEED = 1  # of the clips: the sets that users and the model card probe are made with seed 0


class BallEvaluation:
    """Nested ridge probes, folds grouped by direction and place, on `velocity` clips of the quick preset."""

    def __init__(self, directory: Path, model: str, limit: int | None = None, resolution: int | None = None):
        self.directory, self.model = Path(directory), model
        self.spec = replace(MODELS[model], resolution=resolution or MODELS[model].resolution)
        settings = set_settings("velocity", "quick", "pybullet", SEED, "paper", RESOLUTION)
        self.source = ball_source(write_clip_set(self.directory / "data", settings, limit).directory)

    def __call__(self, encoder: nn.Module, device: torch.device) -> dict:
        """`direction_r2`, `speed_r2` at their best layers, and those layers."""
        frozen = encoder_from_state(encoder.state_dict(), self.model, self.spec, "in training", device)
        root = self.directory / "features"
        extract_features(
            frozen,
            self.source,
            root / self.source.name,
            captures=["resid_post"],
            poolings=["temporal_last"],
            overwrite=True,
            workers=0,
        )
        return _best_layers(FeatureStore.open(root / self.source.name), device)


def _best_layers(store: FeatureStore, device: torch.device) -> dict:
    folds = repeated_folds(store, "direction_spatial_sector", N_FOLDS, 0, 1)
    data = ProbeData(
        name=store.name,
        clips=store.clips,
        group=folds[0].group,
        variables=tuple(variables("fig2c", store, "sincos")[:2]),  # speed and direction
        layers=tuple(range(store.depth)),
        depth=store.depth,
        features=store_features(store, "resid_post", "temporal_last"),
    )
    scores = score(cross_validate(data, folds, linear_solver("ridge", device=str(device)), ("nested",)), 0)
    best = {}
    for name in scores.variables():
        curve = scores.main(name).pooled("r2")
        best |= {f"{name}_r2": float(curve.max()), f"{name}_layer": int(curve.argmax())}
    return best
