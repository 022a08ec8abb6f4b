"""Coordinates on planted rings and planes; tasks at their floors and ceilings, and the figures that are drawn."""

import numpy as np
import pandas as pd
import pytest
import torch
from clips import write_moving_squares
from probe_stores import ball_tables, planted_root
from scipy import ndimage

import step2_extract
import step4_mechanisms
from pez.cli import run_script
from pez.files import write_parquet
from pez.mechanisms.coordinates import errors, explained
from pez.mechanisms.tasks import OUTLINES, TEXTURES, _figure, classes, draw, score_task, versions
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


@pytest.mark.parametrize("task", ["count, still", "count, moving"])
def test_counted_figures_are_there_and_their_area_does_not_tell(task):
    rng, areas = np.random.default_rng(0), []
    for number in range(160):
        frames = draw(task, number % 4, 3, 96, rng)
        assert len(frames) == (3 if task.endswith("moving") else 1)
        extreme = (frames <= 20).any(-1) | (frames >= 235).any(-1)  # no ground is as dark or as bright in any channel
        filled = [ndimage.binary_fill_holes(each) for each in extreme]
        assert [ndimage.label(each, np.ones((3, 3)))[1] for each in filled] == [number % 4 + 1] * len(frames)
        areas.append(filled[0].sum())
        assert task.endswith("still") or not np.array_equal(frames[0], frames[2])
    assert abs(np.corrcoef(np.arange(160) % 4, areas)[0, 1]) < 0.25


def test_outlines_have_one_area_and_textures_two_colours():
    y, x = np.mgrid[-50:50, -50:50] + 0.5
    for outline in OUTLINES:
        inside, _ = _figure(outline, "plain", x, y, 25.0)
        assert inside.sum() == pytest.approx(np.pi * 625 * (0.75 if outline == "ring" else 1), rel=0.03)
    for texture in TEXTURES:
        inside, second = _figure("disc", texture, x, y, 25.0)
        share = second[inside].mean()
        assert share == 0 if texture == "plain" else 0.3 < share < 0.7


def test_classes_are_read_where_they_are_and_not_where_labels_are_shuffled(tmp_path):
    label = np.arange(96) % 4
    rng = np.random.default_rng(0)
    clips = pd.DataFrame({"clip_id": [f"clip_{number:02d}" for number in range(96)], "label": label})
    planted = torch.from_numpy(np.eye(4)[label] @ rng.normal(size=(4, 20)) + 0.1 * rng.normal(size=(96, 20)))

    class Store:  # what `classes` reads of a FeatureStore
        name, depth, settings = "appearance", 1, {}

        def __init__(self, labels):
            self.clips = clips.assign(label=labels)

        def layer(self, capture, pooling, layer):
            return planted

    for labels, low, high in ((label, 0.99, 1.0), (rng.permutation(label), 0.1, 0.4)):
        data, folds = classes(Store(labels), "resid_post", "mean", [0], 4, 0)
        curve, metric, chance = score_task("appearance", data, folds, group_resamples(data.group, 20, 0, 4))
        assert (metric, chance) == ("accuracy", 0.25) and low <= curve.estimate[0] <= high


def test_drawn_tasks_through_the_script(tmp_path, capsys):
    write_moving_squares(tmp_path / "data" / "velocity", 16, size=64)
    clips = pd.read_parquet(tmp_path / "data" / "velocity" / "clips.parquet")
    clips["direction_deg"] = (clips["direction_deg"] // 45) * 45
    clips["start_x_m"], clips["start_y_m"] = np.tile([-1.0, 1.0], 8), np.repeat([-1.0, 1.0], 8)
    write_parquet(tmp_path / "data" / "velocity" / "clips.parquet", clips.assign(magnitude=[1.0, 3.0] * 8))
    frames = pd.read_parquet(tmp_path / "data" / "velocity" / "frames.parquet")
    write_parquet(tmp_path / "data" / "velocity" / "frames.parquet", frames.assign(vx_px=1.0, vy_px=frames["x_px"] % 7))
    small = ["--model", "tiny", "--weights", "random", "--model-resolution", "64", "--workers", "0"]
    root = ["--output-root", str(tmp_path / "features"), "--data-root", str(tmp_path / "data"), "--dataset", "velocity"]
    words = [*small, *root, "--pooling", "mean", "--capture", "resid_post"]
    assert run_script(step2_extract.make_parser(), step2_extract.main, words) == 0
    base = ["tasks", "--run-name", "r", "--results-dir", str(tmp_path / "r"), "--task", "count", "--task-clips", "24"]
    base += ["--feature-root", str(tmp_path / "features"), "--layers", "0", "3", "--bootstrap", "10", "--folds", "3"]

    def run(*more: str) -> int:
        return run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*base, *more])

    assert run(*small) == 0
    table = pd.read_csv(tmp_path / "r" / "tasks_r.csv")
    assert set(table["task"]) == {"count, still", "count, moving"} and (table["chance"] == 0.25).all()
    assert (table["n_clips"] == 24).all() and table["value"].between(0, 1).all()
    assert len(list((tmp_path / "r").rglob("*.png"))) == 24 * 17
    capsys.readouterr()
    assert run(*small, "--weights-seed", "1") == 2 and "the encoder is of weights_sha256" in capsys.readouterr().err
