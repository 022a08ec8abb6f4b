"""Generalised linear models from sums: against scikit-learn, planted units, place-only units, shapes of speed."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import ball_tables
from sklearn.linear_model import Ridge

from pez.mechanisms.geometry import TokenGrid
from pez.mechanisms.tuning import (
    ALPHA,
    BINS,
    COLUMNS,
    MODELS,
    Sums,
    design_of,
    place_units,
    pooled_tuning,
    ring,
    speed_shape,
    units_table,
)
from pez.probes.folds import grouped_folds

CLIPS, FRAMES = ball_tables("velocity", "paper")
GROUP = (CLIPS["direction_deg"].astype(str) + CLIPS["start_index"].astype(str)).to_numpy()
FOLD = grouped_folds(GROUP, 5, 0)
DESIGN = design_of(CLIPS, FRAMES, GROUP, 8, 0)
ANGLE = np.deg2rad(CLIPS["direction_deg"].to_numpy())


def sums_of(responses: np.ndarray, shift: float = 0.0) -> Sums:
    """Responses [clips, T, K] in float64, added in batches."""
    given = torch.from_numpy(responses)
    found = Sums.zeros(5, torch.full(given.shape[1:], shift, dtype=torch.float64))
    for rows in torch.arange(len(given)).split(50):
        found.add(DESIGN[rows], given[rows], FOLD[rows.numpy()])
    return found


def test_every_model_is_ridge_fold_by_fold():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(len(CLIPS), 8, 3)) + 2
    found = sums_of(responses, shift=1.5)
    for model, names in MODELS.items():
        columns = [COLUMNS.index(name) for name in names if name != "one"]
        expected = np.zeros((8, 3))
        for tubelet in range(8):
            x = DESIGN[:, tubelet, columns].numpy()
            for fold in range(5):
                train, held = fold != FOLD, fold == FOLD
                if columns:
                    probe = Ridge(alpha=ALPHA).fit(x[train], responses[train, tubelet])
                    predicted = probe.predict(x[held])
                else:
                    predicted = responses[train, tubelet].mean(0)
                expected[tubelet] += np.square(responses[held, tubelet] - predicted).sum(0)
        assert np.allclose(found.errors(model).numpy(), expected, rtol=1e-8), model


def test_the_order_of_batches_does_not_matter_and_shards_add_up():
    responses = np.random.default_rng(1).normal(size=(len(CLIPS), 8, 2))
    whole, parts = sums_of(responses), []
    for rows in (np.arange(0, len(CLIPS), 2), np.arange(1, len(CLIPS), 2)):
        part = Sums.zeros(5, torch.zeros(8, 2, dtype=torch.float64))
        part.add(DESIGN[rows], torch.from_numpy(responses[rows]), FOLD[rows])
        parts.append(part)
    for name in ("xx", "xy", "yy"):
        assert torch.allclose(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name), atol=1e-9)


def test_planted_units():
    """A unit c + A cos(theta - phi) + noise: preferred direction phi, gain A, delta R^2 = A^2/2 / (A^2/2 + s^2)."""
    rng, grid = np.random.default_rng(2), TokenGrid(8, 1, 2)
    phi, gain, noise = np.deg2rad([30, 200, -100, 0]), np.array([1.0, 2.0, 0.5, 0.0]), 0.5
    clean = 3 + gain * np.cos(ANGLE[:, None] - phi)
    responses = noise * rng.normal(size=(len(CLIPS), 8, 2, 4))
    responses[:, 5, 1] += clean  # at one position only
    table, heat = units_table(sums_of(responses.reshape(len(CLIPS), 8, 8)), grid, CLIPS["magnitude"].to_numpy())
    for unit in range(3):
        row, expected = table.iloc[unit], gain[unit] ** 2 / 2 / (gain[unit] ** 2 / 2 + noise**2)
        assert (row["t"], row["y"], row["x"]) == (5, 0, 1)
        error = np.rad2deg(noise / gain[unit] * np.sqrt(2 / len(CLIPS)))  # standard error of the angle
        assert abs((row["pd_deg"] - np.rad2deg(phi[unit]) + 180) % 360 - 180) < 4 * error
        assert row["gain"] == pytest.approx(gain[unit], abs=4 * noise * np.sqrt(2 / len(CLIPS)))
        assert row["delta_r2_max"] == pytest.approx(expected, abs=0.07)
        assert row["r2_given_place"] > 0.3 * expected and row["r2_second_harmonic"] < 0.05
        assert heat[unit].argmax() == int((row["pd_deg"] + 180) / 360 * BINS)
    assert table.iloc[3]["delta_r2_max"] < 0.06 and table["shuffled_r2"].max() < 0.1


def test_pure_noise_is_below_zero_and_a_second_harmonic_is_not_a_direction():
    rng = np.random.default_rng(3)
    noise = sums_of(rng.normal(size=(len(CLIPS), 8, 400)))
    assert float(noise.delta_r2("direction").mean()) == pytest.approx(-2 / (0.8 * len(CLIPS)), abs=0.004)
    axis = sums_of(np.repeat(np.cos(2 * ANGLE)[:, None, None], 8, 1) + 0.1 * rng.normal(size=(len(CLIPS), 8, 1)))
    assert float(axis.delta_r2("second").min()) > 0.9 and float(axis.delta_r2("direction").max()) < 0.01


def test_units_that_see_place_alone_do_not_pass():
    grid = TokenGrid(8, 8, 8)
    units = place_units(FRAMES, CLIPS, grid, 256)
    assert units.shape == (len(CLIPS), 8, 64) and float(units.max()) > 0.5
    found = sums_of(units.numpy())
    direction = found.delta_r2("direction")
    assert 0.01 < float(direction.max()) < 0.25  # seen as tuning: why this maximum is a floor
    given = found.delta_r2("direction_and_place", "place")
    assert float(given[direction > 0.05].mean()) < float(direction[direction > 0.05].mean())
    pooled = Sums.zeros(5, torch.zeros(1, 1, dtype=torch.float64))
    pooled.add(DESIGN[:, :1], units.mean((1, 2))[:, None, None], FOLD)
    assert pooled_tuning(pooled)[0][0] < 0.05


def test_shapes_of_speed():
    speeds = np.array([1.0, 2, 3, 4, 5, 6, 7])
    z = (speeds - speeds.mean()) / speeds.std()
    parabola = -((speeds - 4.5) ** 2)
    b2, b1, _ = np.polyfit(z, parabola, 2)
    vertex, shape = speed_shape(np.array([b1, 1.0, -1.0, 0.2]), np.array([b2, 0.0, 0.01, 1.0]), speeds)
    assert vertex[0] == pytest.approx(4.5) and list(shape) == ["peaked", "up", "down", "trough"]
    assert vertex[1] == 7 and vertex[2] == 1


def test_a_ring_is_a_ring():
    angles = 2 * np.pi * np.arange(8) / 8
    phases = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    first = ring(np.cos(angles[:, None] - phases))
    assert first["ring_axis_ratio"] == pytest.approx(1) and first["harmonic_1"] == pytest.approx(1)
    second = ring(np.cos(2 * (angles[:, None] - phases)))
    assert second["harmonic_2"] == pytest.approx(1) and second["harmonic_1"] == pytest.approx(0, abs=1e-9)
    line = ring(np.cos(angles[:, None]) * np.ones(40))
    assert line["ring_axis_ratio"] == pytest.approx(0, abs=1e-6)


def test_the_design_shuffles_whole_groups():
    shuffled = DESIGN[:, 0, [COLUMNS.index("shuffled_cos"), COLUMNS.index("shuffled_sin")]].numpy()
    table = pd.DataFrame(shuffled).groupby(GROUP).nunique()
    assert (table <= 1).all().all()
    assert abs(np.corrcoef(shuffled[:, 0], np.cos(ANGLE))[0, 1]) < 0.5
