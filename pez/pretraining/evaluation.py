"""How well direction and speed can be read from the encoder that is being trained, on rendered ball clips."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from constants import MODELS, RESOLUTION
from pez.encoder.extract import extract_features
from pez.encoder.loading import encoder_from_state
from pez.encoder.sources import ball_source
from pez.probes.curves import predict
from pez.probes.folds import repeated_folds
from pez.probes.layer_scores import layer_scores
from pez.probes.probe_set import ProbeOptions, ProbeSet
from pez.probes.targets import variables
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
    options = ProbeOptions("in training", store.directory.parent, "fig2c", solver="ridge", device=str(device))
    probe_set = ProbeSet(
        store=store,
        pooling="temporal_last",
        variables=variables("fig2c", store, "sincos"),
        repeats=repeated_folds(store, options.grouping, options.folds, options.seed, 1),
        layers=tuple(range(store.settings["depth"])),
        protocols=("nested",),
        capture="resid_post",
    )
    predicted, found = predict(options, probe_set), {}
    for index, variable in enumerate(probe_set.variables):
        curve = layer_scores(variable, predicted.of_variable(index)["nested"], probe_set.repeats, None).table["pooled"]
        found |= {f"{variable.name}_r2": float(curve.max()), f"{variable.name}_layer": int(curve.argmax())}
    return found
