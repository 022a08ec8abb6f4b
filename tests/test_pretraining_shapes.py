"""Direction scores of the trainer's own kind of clips: planted features are read, noise is not."""

import numpy as np

from pez.encoder.loading import load_encoder
from pez.pretraining.shapes import direction_scores, shape_features


def test_planted_directions_are_read_and_noise_is_not():
    rng = np.random.default_rng(0)
    velocity = rng.normal(size=(200, 2))
    unit = velocity / np.linalg.norm(velocity, axis=1, keepdims=True)
    noise = rng.normal(size=(200, 20))
    planted = noise + 4 * np.concatenate([unit, np.zeros((200, 18))], axis=1)
    table = direction_scores(np.stack([noise, planted]), velocity)
    assert table["r2_pooled"][0] < 0.02 and table["r2_low"][0] < 0
    # the best linear estimate of u from 4u + noise of unit variance: signal power 16 * 1/2 a component
    assert abs(table["r2_pooled"][1] - 8 / 9) < 0.05
    assert table["r2_low"][1] < 8 / 9 < table["r2_high"][1] + 0.05


def test_features_are_those_of_every_block_and_repeat():
    encoder = load_encoder("tiny", "random", resolution=32)
    features, velocity = shape_features(encoder, 5)
    again, _ = shape_features(encoder, 5)
    assert features.shape == (12, 5, 192) and velocity.shape == (5, 2)
    assert np.array_equal(features, again)
    other, _ = shape_features(encoder, 5, seed=1)
    assert not np.allclose(features, other)
