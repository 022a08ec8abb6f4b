"""Groupings, folds, targets and scores against their definitions and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from probe_stores import PX_PER_M, RATE, SIZE, ball_tables, planted_features, write_store
from sklearn.metrics import r2_score

from pez.errors import UserError
from pez.probes.data.ball import check_direction_target, variables
from pez.probes.data.groupings import GROUPINGS, HELD_OUT, groups
from pez.probes.data.probe_data import NEVER
from pez.probes.folds import grouped_folds, make_folds
from pez.probes.scores.r2 import r2
from pez.stimuli.clipset import ClipSet


def make_store(root, kind, preset="quick", change=lambda clips, frames: (clips, frames)):
    clips, frames = change(*ball_tables(kind, preset))
    clips, frames = clips.sample(frac=1, random_state=1), frames.sample(frac=1, random_state=2)
    states = planted_features(clips, frames, 1, 4, 0, 0)
    return write_store(root, kind, clips, frames, states, "temporal_last", "tiny", "random weights (seed 0)")


@pytest.fixture(scope="module", params=["quick", "paper"])
def stores(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return {kind: make_store(root, kind, request.param) for kind in ("velocity", "acceleration")}


@pytest.fixture(scope="module")
def velocity(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("one"), "velocity")


@pytest.mark.parametrize("grouping", [name for name in GROUPINGS if name not in HELD_OUT])
@pytest.mark.parametrize("kind", ["velocity", "acceleration"])
def test_a_group_never_straddles_folds(stores, kind, grouping):
    for seed in range(3):
        folds = make_folds(stores[kind], grouping, 5, seed)
        for name in set(folds.group):
            assert len(set(folds.fold[folds.group == name])) == 1
        assert folds.n_folds == min(5, folds.n_groups)
        held_out = np.concatenate([rows for _, rows in folds.splits()])
        assert sorted(held_out) == list(range(len(folds.fold)))
        assert all(not set(train) & set(rows) for train, rows in folds.splits())


def test_number_of_groups(stores):
    for kind, store in stores.items():
        clips = store.clips
        counts = {name: len(set(groups(store, name))) for name in GROUPINGS}
        magnitudes, starts = clips["magnitude"].nunique(), clips["start_index"].nunique()
        assert counts["video"] == len(clips), kind
        assert counts["position"] == starts
        assert (counts["direction"], counts["magnitude"], counts["condition"]) == (8, magnitudes, 8 * magnitudes)
        assert counts["spatial_sector"] == 8 and counts["spatial_cluster"] == 10
        assert counts["pixel_region"] <= 16
        assert counts["direction_spatial_sector"] <= 64 and counts["magnitude_spatial_sector"] <= 8 * magnitudes


def test_sector_and_region_are_where_the_ball_is(velocity):
    clips = velocity.clips
    for name, (_, row) in zip(groups(velocity, "spatial_sector"), clips.iterrows()):
        degrees = np.rad2deg(np.arctan2(row["start_y_m"], row["start_x_m"])) % 360
        assert int(name.split()[1]) * 45 <= degrees < int(name.split()[1]) * 45 + 45
    pixels = velocity.frames.groupby("clip_id")[["x_px", "y_px"]].mean().clip(0, SIZE - 1e-9)
    for name, clip in zip(groups(velocity, "pixel_region"), clips["clip_id"]):
        _, row, _, column = name.split()
        assert int(column) == int(pixels.loc[clip, "x_px"] // 64) and int(row) == int(pixels.loc[clip, "y_px"] // 64)


def test_regions_of_a_clip_set_are_of_its_own_resolution(velocity, tmp_path):
    """The same clips at half the resolution, before any encoder has seen them, fall into the same cells."""
    smaller = velocity.frames.assign(**{name: velocity.frames[name] / 2 for name in ("x_px", "y_px")})
    clips = ClipSet(tmp_path / "velocity", {"resolution": SIZE // 2}, velocity.clips, smaller)
    assert groups(clips, "pixel_region").tolist() == groups(velocity, "pixel_region").tolist()


def test_every_fold_gets_its_share_of_directions(velocity):
    clips = velocity.clips
    for grouping in ("video", "direction_spatial_sector", "magnitude_spatial_sector"):
        folds = make_folds(velocity, grouping, 5)
        counts = pd.crosstab(folds.fold, clips["direction_deg"])
        assert counts.to_numpy().min() >= 1 and counts.to_numpy().max() <= 7  # 16 clips a direction, so about 3
        assert counts.sum(axis=1).between(20, 32).all()


def test_held_out_values_are_one_fold_each_and_extreme_magnitudes_never(stores):
    for store in stores.values():
        value = store.clips["magnitude"].to_numpy()
        folds = make_folds(store, "held_out_speed", 5)
        extreme = (value == value.min()) | (value == value.max())
        assert np.array_equal(folds.fold == NEVER, extreme)
        assert folds.n_folds == len(set(value)) - 2
        for number in range(folds.n_folds):
            assert len(set(value[folds.fold == number])) == 1
        for train, held_out in folds.splits():
            assert value[train].min() < value[held_out].min() and value[train].max() > value[held_out].max()
            assert not set(value[train]) & set(value[held_out])
        turns = make_folds(store, "held_out_direction", 5)
        assert turns.n_folds == 8 and (turns.fold >= 0).all()
        assert (pd.crosstab(turns.fold, store.clips["direction_deg"]) > 0).sum(axis=1).eq(1).all()


def test_seed_changes_folds_and_repeats_them():
    group = np.repeat(np.arange(30), 4)
    assert np.array_equal(grouped_folds(group, 5, 1), grouped_folds(group, 5, 1))
    assert not np.array_equal(grouped_folds(group, 5, 1), grouped_folds(group, 5, 2))


def test_folds_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="one group"):
        grouped_folds(np.zeros(9), 5)
    with pytest.raises(UserError, match="--folds"):
        grouped_folds(np.arange(9), 1)
    bare = make_store(
        tmp_path, "velocity", change=lambda clips, frames: (clips[["clip_id", "direction_deg", "magnitude"]], frames)
    )
    with pytest.raises(UserError, match="start_x_m"):
        make_folds(bare, "spatial_sector", 5)
    with pytest.raises(UserError, match="spatial_sector"):
        make_folds(bare, "spatial_sectr", 5)
    assert make_folds(bare, "video", 5).n_groups == 128


def by_clip(store, variable):
    return dict(zip(store.clips["clip_id"], variable.targets))


def test_targets_of_figure_2c(stores):
    speed, direction, _partner = variables("fig2c", stores["velocity"], "angle")
    (acceleration,) = variables("fig2c", stores["acceleration"], "angle")
    for clip, value in by_clip(stores["velocity"], speed).items():
        assert value == pytest.approx(float(clip.split("_m")[1].split("_")[0]) * PX_PER_M / RATE)
    for clip, value in by_clip(stores["velocity"], direction).items():
        degrees = float(clip.split("_d")[1].split("_")[0])
        assert value[0] == (degrees if degrees <= 180 else degrees - 360)
    for clip, value in by_clip(stores["acceleration"], acceleration).items():
        assert value == pytest.approx(float(clip.split("_m")[1].split("_")[0]) * PX_PER_M / RATE**2)
    assert [v.unit for v in (speed, direction, acceleration)] == ["px/frame", "degrees", "px/frame²"]


def test_vector_targets_are_in_image_axes(velocity):
    (xy,) = variables("fig2b_velocity_xy", velocity, "vxy")
    vx, vy = variables("fig2b_velocity_axes", velocity, "vxy")
    np.testing.assert_array_equal(np.concatenate([vx.targets, vy.targets], 1), xy.targets)
    _, as_vector, _ = variables("fig2c", velocity, "vxy")
    _, sincos, _ = variables("fig2c", velocity, "sincos")
    np.testing.assert_array_equal(as_vector.targets, xy.targets)
    for clip, value in by_clip(velocity, xy).items():
        angle = np.deg2rad(float(clip.split("_d")[1].split("_")[0]))
        speed = float(clip.split("_m")[1].split("_")[0]) * PX_PER_M / RATE
        np.testing.assert_allclose(value, [speed * np.cos(angle), -speed * np.sin(angle)], atol=1e-9)
        np.testing.assert_allclose(by_clip(velocity, sincos)[clip], [np.cos(angle), np.sin(angle)], atol=1e-12)


def test_targets_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="vxy"):
        check_direction_target("fig2b_velocity_xy", "angle")
    assert check_direction_target("fig2c", None) == "angle"
    assert check_direction_target("fig2b_acceleration_axes", None) == "vxy"
    lost = "velocity_d0_m1_s0"
    store = make_store(tmp_path, "velocity", change=lambda clips, frames: (clips, frames[frames["clip_id"] != lost]))
    with pytest.raises(UserError, match=lost):
        variables("fig2b_velocity_xy", store, "vxy")


def test_one_clip_a_direction_still_splits_into_even_folds():
    folds = grouped_folds([f"clip {i}" for i in range(8)], 5, seed=0, strata=45.0 * np.arange(8))
    assert sorted(np.bincount(folds)) == [1, 1, 2, 2, 2]
    again = grouped_folds([f"clip {i}" for i in range(8)], 5, seed=0, strata=45.0 * np.arange(8))
    np.testing.assert_array_equal(folds, again)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(velocity, seed):
    for grouping in ("position", "spatial_cluster"):
        with pytest.raises(UserError, match=f"--seed must be 0 ... 4294967295; got {seed}"):
            make_folds(velocity, grouping, 5, seed)


def test_r2_is_scikit_learns():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(50, 3)) * [1, 10, 0.1] + 4
    guess = target + rng.normal(size=(50, 3)) * [0.5, 12, 0.01]
    assert r2(target, guess) == pytest.approx(r2_score(target, guess))
    assert r2(target[:, 0], guess[:, 0]) == pytest.approx(r2_score(target[:, 0], guess[:, 0]))
    flat = np.column_stack([target[:, 0], np.full(50, 2.0)])
    assert r2(flat, guess[:, :2]) == pytest.approx(r2_score(target[:, 0], guess[:, 0]))
    assert np.isnan(r2(np.ones(5), np.arange(5)))
