"""Coordinates on planted rings and planes; the order task at its floor and at its ceiling."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import ball_tables, planted_root

import step4_mechanisms
from pez.cli import run_script
from pez.mechanisms.coordinates import errors, explained
from pez.mechanisms.tasks import versions
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.bootstrap import group_resamples
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate

CLIPS, _ = ball_tables("velocity", "quick")
GROUP = (CLIPS["direction_deg"].astype(str) + CLIPS["start_index"].astype(str)).to_numpy()
FOLDS = Folds(GROUP, grouped_folds(GROUP, 5, 0))
ANGLE, SPEED = np.deg2rad(CLIPS["direction_deg"].to_numpy()), CLIPS["magnitude"].to_numpy(dtype=float)
CODE = np.stack([np.cos(ANGLE), np.sin(ANGLE)], 1)


def shares(features: np.ndarray) -> dict:
    return {name: curve.estimate[0] for name, curve in
            explained(features, CLIPS, FOLDS, group_resamples(GROUP, 20, 0, 5)).items()}  # fmt: skip


def test_a_ring_is_polar_and_a_plane_cartesian():
    rng = np.random.default_rng(0)
    ring, plane = shares(CODE @ rng.normal(size=(2, 9))), shares(CODE * SPEED[:, None] @ rng.normal(size=(2, 9)))
    assert ring["polar_2"] == pytest.approx(1) and plane["cartesian_2"] == pytest.approx(1)
    assert ring["cells"] == pytest.approx(1) and plane["cells"] == pytest.approx(1)
    assert ring["polar_less_cartesian_2"] > 0.1 and plane["polar_less_cartesian_2"] < -0.1
    ratio = SPEED.mean() ** 2 / np.square(SPEED).mean()  # of a plane's variance, on the circle of mean speed
    assert plane["polar_2"] == pytest.approx(ratio, abs=0.05)
    noise = shares(rng.normal(size=(len(CLIPS), 50)))
    assert all(value < 0.05 for value in noise.values())


def test_errors_of_an_empty_design_are_those_of_the_training_mean():
    features = np.random.default_rng(1).normal(size=(len(CLIPS), 3))
    found = errors(features, np.zeros((len(CLIPS), 0)), FOLDS)
    for train, held in FOLDS.splits():
        assert np.allclose(found[held], np.square(features[held] - features[train].mean(0)).sum(1))


def accuracy(other) -> float:
    features = torch.from_numpy(np.random.default_rng(2).normal(size=(len(CLIPS), 8)))
    speed = Variable("speed", "velocity", SPEED[:, None], "", ("speed",))
    data = ProbeData("velocity", CLIPS, GROUP, (speed,), (0,), 1, lambda layer: features)
    doubled, folds = versions(data, lambda layer: other(features), FOLDS, "shuffled_frames")
    (found,) = cross_validate(doubled, (folds,), linear_solver("ridge"), ("nested",))
    return float(((found.predicted[0, 0, :, 0] > 0.5) == (found.variable.targets[:, 0] > 0.5)).mean())


def test_order_cannot_be_read_from_equal_features_and_can_from_shifted_ones():
    assert accuracy(lambda features: features) == pytest.approx(0.5)
    assert accuracy(lambda features: features + 8.0) == 1.0


def test_the_scripts(tmp_path, capsys):
    root = planted_root(tmp_path / "features", depth=3, width=16, pooling="mean")
    planted_root(root / "controls" / "shuffled_frames", depth=3, width=16, pooling="mean", seed=0)

    def run(command: str, *words: str) -> int:
        base = [command, "--run-name", "planted", "--feature-root", str(root), "--results-dir", str(tmp_path / "r")]
        return run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*base, "--bootstrap", "30", *words])

    assert run("coordinates") == 0 and run("tasks") == 0
    table = pd.read_csv(tmp_path / "r" / "tasks_planted.csv")
    order = table[table["task"] == "original or shuffled_frames"]
    assert np.allclose(order["value"], 0.5)  # the very same features
    direction = table[table["task"] == "direction"].set_index("layer")["value"]
    assert direction[1] > direction[0] and direction.between(0.4, 0.9).all()  # planted from one third of the depth on
    capsys.readouterr()
    assert run("tasks", "--order", "reversed") == 2 and "--control reversed needs features" in capsys.readouterr().err
