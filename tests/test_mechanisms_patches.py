"""Readings at places, on planted places: one live place, the same code everywhere, offsets, a turned code."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import planted_root
from sklearn.linear_model import Ridge

import step4_mechanisms
from pez.cli import run_script
from pez.mechanisms.patches import ball_distance, nested, per_place, read_places, transfer
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.r2 import r2
from pez.probes.solvers.linear import linear_solver
from pez.probes.solvers.ridge import STRENGTHS
from pez.probes.validation.cross_validate import cross_validate, probe_name

pytestmark = pytest.mark.usefixtures("one_thread")
N, SIDE, D = 96, 4, 12
LEFT = np.flatnonzero(np.arange(SIDE * SIDE) % SIDE < SIDE / 2)
RIGHT = np.setdiff1d(np.arange(SIDE * SIDE), LEFT)
DEGREES = np.tile(np.arange(8) * 45.0, N // 8)
CODE = np.stack([np.cos(np.deg2rad(DEGREES)), np.sin(np.deg2rad(DEGREES))], 1)


def places(plant) -> tuple[ProbeData, Folds]:
    """Noise at every place, changed by `plant` (features [n, places, d], code written along two axes)."""
    rng = np.random.default_rng(0)
    features = 0.3 * rng.normal(size=(N, SIDE * SIDE, D))
    written = CODE @ rng.normal(size=(2, D))
    plant(features, written)
    group = np.array([f"group {number // 3}" for number in range(N)])
    given = torch.from_numpy(features)
    variable = Variable("direction", "velocity", CODE, "", ("cos", "sin"))
    clips = pd.DataFrame({"clip_id": [f"clip {number}" for number in range(N)]})
    data = ProbeData("velocity", clips, group, (variable,), (0,), 1, lambda layer: given)
    return data, Folds(group, grouped_folds(group, 4, 0))


def everywhere(features, written):
    features += written[:, None]


def scores(data: ProbeData, folds: Folds) -> np.ndarray:
    return np.array([r2(CODE, each) for each in per_place(data, folds, 0)[0]])


def pooled(found: np.ndarray) -> float:
    return r2(np.repeat(CODE, found.shape[1], axis=0), found.reshape(-1, 2))


def test_one_live_place_is_one_cell_of_the_map():
    def plant(features, written):
        features[:, 6] += written

    data, folds = places(plant)
    found = scores(data, folds)
    assert found[6] > 0.9 and np.delete(found, 6).max() < 0.1
    read = transfer(data, folds, 0, LEFT, RIGHT)
    assert pooled(read["raw"]) < 0.05 and pooled(read["standardised"]) < 0.05


def test_the_same_code_everywhere_transfers():
    data, folds = places(everywhere)
    assert scores(data, folds).min() > 0.9
    assert min(pooled(each) for each in transfer(data, folds, 0, LEFT, RIGHT).values()) > 0.9


def test_an_offset_between_the_halves_spoils_raw_transfer_alone():
    def plant(features, written):
        everywhere(features, written)
        features[:, RIGHT] += 3 * written[:1]  # along the code

    data, folds = places(plant)
    read = transfer(data, folds, 0, LEFT, RIGHT)
    assert pooled(read["raw"]) < -0.5 and pooled(read["standardised"]) > 0.9 and pooled(read["within"]) > 0.9


def test_a_turned_code_in_the_other_half_does_not_transfer():
    def plant(features, written):
        features[:, LEFT] += written[:, None]
        basis = np.linalg.lstsq(CODE, written, rcond=None)[0]
        turned = CODE @ np.array([[0, 1], [-1, 0]]) @ basis
        features[:, RIGHT] += turned[:, None]

    data, folds = places(plant)
    assert scores(data, folds).min() > 0.9
    read = transfer(data, folds, 0, LEFT, RIGHT)
    assert pooled(read["within"]) > 0.9 and pooled(read["standardised"]) < 0


def test_per_place_is_ridge_at_the_strength_that_the_next_fold_likes_best():
    data, folds = places(everywhere)
    predicted, strengths = per_place(data, folds, 0)
    for place in (0, 7, 15):
        x = data.features(0)[:, place].numpy()
        for fold, (train, held) in enumerate(folds.splits()):
            judge = folds.rows((fold + 1) % 4)
            rest = np.setdiff1d(train, judge)
            scale = CODE[rest].std(0)
            errors = [np.square((_ridge(x, rest, judge, at) - CODE[judge]) / scale).sum() for at in STRENGTHS]
            assert strengths[fold, place] == STRENGTHS[int(np.argmin(errors))]
            assert np.allclose(predicted[place, held], _ridge(x, train, held, strengths[fold, place]), atol=1e-8)


def _ridge(x: np.ndarray, train, held, strength: float) -> np.ndarray:
    mean, scale, y_mean, y_scale = x[train].mean(0), x[train].std(0), CODE[train].mean(0), CODE[train].std(0)
    probe = Ridge(alpha=strength).fit((x[train] - mean) / scale, (CODE[train] - y_mean) / y_scale)
    return probe.predict((x[held] - mean) / scale) * y_scale + y_mean


def test_pooled_patch_is_ridge_on_stacked_rows():
    data, folds = places(everywhere)
    _, probes = nested(data, folds)
    found = cross_validate(data, (folds,), linear_solver("ridge"), ("nested",))[0]
    for fold, (train, held) in enumerate(folds.splits()):
        features = data.features(0).numpy()
        rows, targets = features[train].reshape(-1, D), np.repeat(CODE[train], SIDE * SIDE, axis=0)
        mean, scale = rows.mean(0), rows.std(0)
        y_mean, y_scale = targets.mean(0), targets.std(0)
        strength = found.choices[0, 0, fold].weight_decay
        reference = Ridge(alpha=strength).fit((rows - mean) / scale, (targets - y_mean) / y_scale)
        expected = reference.predict((features[held].reshape(-1, D) - mean) / scale) * y_scale + y_mean
        weight, bias = (probes[probe_name(data, 0, 0, fold, what)] for what in ("weight", "bias"))
        own = read_places(data.features(0)[torch.from_numpy(held)], weight, bias)
        assert np.allclose(own.reshape(-1, 2).numpy(), expected, atol=1e-4)


def test_distance_from_the_path_of_the_ball():
    class Store:
        settings = {"clip_set": {"settings": {"resolution": 64}}}
        clips = pd.DataFrame({"clip_id": ["a"]})
        frames = pd.DataFrame({"clip_id": "a", "x_px": [8.0, 24.0], "y_px": [8.0, 8.0]})  # along the top row

    found = ball_distance(Store, 16)[0].reshape(4, 4)
    assert found[0, 0] == 0 and found[0, 1] == 0 and found[0, 3] == 2 and found[3, 0] == 3
    assert found[1, 2] == pytest.approx(np.sqrt(2))


def test_the_script(tmp_path, capsys):
    root = planted_root(tmp_path / "features", depth=2, width=8, patches=16, pooling="time_mean_patch")
    words = ["patches", "--run-name", "planted", "--feature-root", str(root), "--results-dir", str(tmp_path / "r")]
    assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*words, "--bootstrap", "50"]) == 0
    table = pd.read_csv(tmp_path / "r" / "patches_planted.csv").set_index(["layer", "readout", "statistic"])
    assert table.loc[(1, "mean_pooled", "r2"), "value"] > 0.6
    rows = table.dropna(subset=["low"])
    assert (rows["low"] <= rows["value"] + 1e-9).all() and (rows["value"] <= rows["high"] + 1e-9).all()
    maps = pd.read_parquet(tmp_path / "r" / "patches_map_planted.parquet")
    assert len(maps) == 2 * 16
    mean = maps[maps["layer"] == 1]["r2"].mean()
    assert mean == pytest.approx(table.loc[(1, "per_place", "r2_mean"), "value"])
    flat = planted_root(tmp_path / "flat", depth=2, width=8, pooling="mean")
    capsys.readouterr()
    words[4] = str(flat)
    assert run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*words, "--pooling", "mean"]) == 2
    assert "extract with --pooling time_mean_patch" in capsys.readouterr().err
