"""Ties of movies: exact ones planted in every precision, whatever rounding makes of them; and real differences."""

import numpy as np
import pytest
import torch
from intphys_trees import movie_table

from pez.movies.intphys import INTPHYS
from pez.probes.data.movies import movie_data
from pez.probes.data.probe_data import feature_precision
from pez.probes.folds import repeated_scene_folds
from pez.probes.predictions import from_table, movie_rows
from pez.probes.scores.score import Scored
from pez.probes.solvers.linear import LinearSolver
from pez.probes.solvers.regression import Setting
from pez.probes.validation.cross_validate import cross_validate
from pez.store import FeatureStore, tensor_name

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, SCENES = 48, 6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def spliced_store(directory, dtype: str, signal: float = 0.0, loud: float = 1.0) -> FeatureStore:
    """Movies of a scene made of the same halves, p + q and r + s against p + s and r + q: exactly, any linear
    probe's sums tie. `signal` is added to possible movies; `loud` makes the first channel that much larger."""
    movies, generator = movie_table(SCENES), torch.Generator().manual_seed(0)
    settings = {
        "model": "tiny", "weights_label": "x", "weights_sha256": "0" * 64, "checkpoint_key": None,
        "captures": ["resid_pre"], "poolings": ["mean"], "transform": "resize", "frame_order": "original",
        "dtype": dtype, "store_dtype": "auto", "depth": 1, "width": WIDTH, "n_tubelets": 1, "n_patches": 1,
        "resolution": 256, "shard_clips": 200,
        "clip_set": {"name": "intphys", "fingerprint": dtype, "settings": {"n_frames_sample": 16, "n_frames": 100}},
    }  # fmt: skip
    store = FeatureStore.plan(directory, settings, movies, None)
    rows = store.clips_of(0)
    features = torch.zeros(len(rows), WIDTH, dtype=torch.float64)
    for _, scene in rows.reset_index(drop=True).groupby(["block", "scene"]):
        p, q, r, s = torch.randn(4, WIDTH, generator=generator, dtype=torch.float64)
        places = scene.index.to_numpy()
        possible = scene["possible"].to_numpy()
        for place, half in zip(places[possible], (p + q, r + s)):
            features[place] = half + signal
        for place, half in zip(places[~possible], (p + s, r + q)):
            features[place] = half
    features[:, 0] *= loud
    rounded = features.to(DTYPES[dtype]).float()
    store.write_shard(0, {tensor_name("mean", 0): rounded})
    return FeatureStore.open(directory)


def scored(store) -> dict[str, Scored]:
    data = movie_data(store, INTPHYS, "resid_pre", "mean")
    folds = repeated_scene_folds(data.clips, 3, 0, 1)
    solver = LinearSolver(tuple(Setting(rate, 0.01) for rate in (1e-3, 5e-3)), epochs=60)
    found = cross_validate(data, folds, solver, ("paper", "nested"), metric="relative_accuracy")
    return {each.protocol: Scored(each, 50) for each in found}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loud", [1.0, 1e3])
def test_planted_ties_are_ties_in_every_precision(tmp_path, dtype, loud):
    for protocol, own in scored(spliced_store(tmp_path / "intphys", dtype, loud=loud)).items():
        row = own.table.set_index("part").loc["overall"]
        assert row["n_ties"] == row["n_scenes"] == 3 * SCENES, protocol
        assert row["relative_accuracy_mean"] == row["relative_accuracy_pooled"] == 0.5
        assert row["n_near_ties"] == row["n_scenes"]


def test_a_difference_above_rounding_decides(tmp_path):
    """The same movies with a small but real difference: none ties, and the possible movies win."""
    own = scored(spliced_store(tmp_path / "intphys", "float32", signal=1e-2))["nested"]
    row = own.table.set_index("part").loc["overall"]
    assert row["n_ties"] == 0
    coarse = scored(spliced_store(tmp_path / "coarse" / "intphys", "bfloat16", signal=1e-5))["nested"]
    assert coarse.table.set_index("part").loc["overall", "n_ties"] == 3 * SCENES


def test_the_rounding_of_scores_survives_the_table(tmp_path):
    own = scored(spliced_store(tmp_path / "intphys", "bfloat16"))["nested"]
    (again,) = from_table(movie_rows(own.predictions, with_epoch=False))
    back = Scored(again, 50).table.set_index("part")
    assert back.loc["overall", "n_ties"] == 3 * SCENES
    assert back.loc["overall", "relative_accuracy_low"] == back.loc["overall", "relative_accuracy_high"] == 0.5
    assert np.isfinite(again.rounding).all() and (again.rounding > 0).all()


@pytest.mark.parametrize(
    ("settings", "pooling", "expected"),
    [
        ({"dtype": "float32"}, "mean", 2.0**-24),
        ({"dtype": "bfloat16", "n_tubelets": 8, "n_patches": 256}, "mean", 2.0**-8 / 2048**0.5),
        ({"dtype": "bfloat16", "n_tubelets": 8, "n_patches": 256}, "temporal_last", 2.0**-8 / 16),
        ({"dtype": "float32", "n_patches": 256}, "temporal_last_patch", 2.0**-11),  # stored in half precision
        ({"dtype": "float32", "store_dtype": "bfloat16"}, "mean", 2.0**-8),
    ],
)
def test_precision_follows_pass_pooling_and_store(settings, pooling, expected):
    assert feature_precision(settings, pooling) == pytest.approx(expected)
